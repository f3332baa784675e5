# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking BERT: positions from 0, and a head on the pooler, which belongs to the encoder."""

from .configuration_spike_bert import QuantBertConfig, SpikeBertConfig
from .modeling_text import (
    QuantTextClassifier,
    QuantTextModel,
    SequenceClassifierNetwork,
    SpikeTextClassifier,
    SpikeTextModel,
    TokenClassifierNetwork,
    head_dropout,
)
from .operators import Linear, name_operators
from .text_network import TextPreTrainedModel


class BertPreTrainedModel(TextPreTrainedModel):
    base_model_prefix = "bert"

    @property
    def first_position(self):
        return 0


class QuantBertModel(BertPreTrainedModel, QuantTextModel):
    """Quantized BERT without a head."""

    config: QuantBertConfig


class SpikeBertModel(BertPreTrainedModel, SpikeTextModel):
    """Spiking BERT without a head."""

    config: SpikeBertConfig
    quant_class = QuantBertModel


class BertSequenceClassifierNetwork(BertPreTrainedModel, SequenceClassifierNetwork):
    """The encoder with its pooler, and an output map."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = self.base_class(config, add_pooling_layer=True)
        self.dropout = head_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels, weight_bits=config.weight_bits)
        name_operators(self.classifier, "classifier")
        self.post_init()

    def classify(self, outputs, engine):
        return engine.linear(self.classifier, self.dropout(outputs.pooler_output))


class QuantBertForSequenceClassification(QuantTextClassifier, BertSequenceClassifierNetwork):
    """Quantized BERT that classifies texts."""

    config: QuantBertConfig
    base_class = QuantBertModel


class SpikeBertForSequenceClassification(SpikeTextClassifier, BertSequenceClassifierNetwork):
    """Spiking BERT that classifies texts."""

    config: SpikeBertConfig
    base_class = SpikeBertModel
    quant_class = QuantBertForSequenceClassification


class BertTokenClassifierNetwork(BertPreTrainedModel, TokenClassifierNetwork):
    """The encoder and a linear classifier of each token."""


class QuantBertForTokenClassification(QuantTextClassifier, BertTokenClassifierNetwork):
    """Quantized BERT that classifies tokens."""

    config: QuantBertConfig
    base_class = QuantBertModel


class SpikeBertForTokenClassification(SpikeTextClassifier, BertTokenClassifierNetwork):
    """Spiking BERT that classifies tokens."""

    config: SpikeBertConfig
    base_class = SpikeBertModel
    quant_class = QuantBertForTokenClassification
