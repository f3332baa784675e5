"""transformers' tests over BERT and RoBERTa."""

import unittest

from common import SIZES, OfText, Spiking

from spikezip_hf import (
    QuantBertConfig,
    QuantBertForSequenceClassification,
    QuantBertForTokenClassification,
    QuantBertModel,
    QuantRobertaConfig,
    QuantRobertaForSequenceClassification,
    QuantRobertaForTokenClassification,
    QuantRobertaModel,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikeBertForTokenClassification,
    SpikeBertModel,
    SpikeRobertaConfig,
    SpikeRobertaForSequenceClassification,
    SpikeRobertaForTokenClassification,
    SpikeRobertaModel,
)

FIELDS = {**SIZES, "vocab_size": 40, "max_position_embeddings": 32}
SPIKE_FIELDS = {**FIELDS, "time_steps": 8}


class QuantBertTest(OfText, unittest.TestCase):
    all_model_classes = (QuantBertModel, QuantBertForSequenceClassification, QuantBertForTokenClassification)
    config_class, fields = QuantBertConfig, FIELDS


class SpikeBertTest(Spiking, OfText, unittest.TestCase):
    all_model_classes = (SpikeBertModel, SpikeBertForSequenceClassification, SpikeBertForTokenClassification)
    config_class, fields = SpikeBertConfig, SPIKE_FIELDS


class QuantRobertaTest(OfText, unittest.TestCase):
    all_model_classes = (QuantRobertaModel, QuantRobertaForSequenceClassification, QuantRobertaForTokenClassification)
    config_class, fields = QuantRobertaConfig, FIELDS


class SpikeRobertaTest(Spiking, OfText, unittest.TestCase):
    all_model_classes = (SpikeRobertaModel, SpikeRobertaForSequenceClassification, SpikeRobertaForTokenClassification)
    config_class, fields = SpikeRobertaConfig, SPIKE_FIELDS
