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


class OfWindows(OfImages):
    """Sizes of the first stage, and of its windows."""

    def setUp(self):
        super().setUp()
        self.model_tester.seq_length = NetworkMaker.image_size**2
        self.model_tester.hidden_size = FIELDS["embed_dim"]

    def test_attention_outputs(self):
        self.model_tester.seq_length = FIELDS["window_size"] ** 2  # attention is within windows
        super().test_attention_outputs()


class QuantSwinTest(OfWindows, unittest.TestCase):
    all_model_classes = (QuantSwinModel, QuantSwinForImageClassification)
    config_class, fields = QuantSwinConfig, FIELDS


class SpikeSwinTest(Spiking, OfWindows, unittest.TestCase):
    all_model_classes = (SpikeSwinModel, SpikeSwinForImageClassification)
    config_class, fields = SpikeSwinConfig, {**FIELDS, "time_steps": 8}
