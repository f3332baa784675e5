"""transformers' tests over Swin."""

import unittest

from common import SIZES, NetworkMaker, OfImages, Spiking

from spikezip_hf import (
    QuantSwinConfig,
    QuantSwinForImageClassification,
    QuantSwinModel,
    SpikeSwinConfig,
    SpikeSwinForImageClassification,
    SpikeSwinModel,
)

FIELDS = {
    "image_size": NetworkMaker.image_size,
    "patch_size": 1,
    "window_size": 2,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "quantization_levels": SIZES["quantization_levels"],
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}


class QuantSwinTest(OfImages, unittest.TestCase):
    all_model_classes = (QuantSwinModel, QuantSwinForImageClassification)
    config_class, fields = QuantSwinConfig, FIELDS


class SpikeSwinTest(Spiking, OfImages, unittest.TestCase):
    all_model_classes = (SpikeSwinModel, SpikeSwinForImageClassification)
    config_class, fields = SpikeSwinConfig, {**FIELDS, "time_steps": 8}
