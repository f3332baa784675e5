"""transformers' tests over the ViTs."""

import unittest

from common import SIZES, NetworkMaker, OfImages, Spiking

from spikezip_hf import (
    QuantViTConfig,
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTConfig,
    SpikeViTForImageClassification,
    SpikeViTModel,
)

FIELDS = {**SIZES, "image_size": NetworkMaker.image_size, "patch_size": 4}
EVENT_FIELDS = {**FIELDS, "num_channels": 2, "reduced_channels": 3}


class QuantViTTest(OfImages, unittest.TestCase):
    all_model_classes = (QuantViTModel, QuantViTForImageClassification)
    config_class, fields = QuantViTConfig, FIELDS


class SpikeViTTest(Spiking, OfImages, unittest.TestCase):
    all_model_classes = (SpikeViTModel, SpikeViTForImageClassification)
    config_class, fields = SpikeViTConfig, {**FIELDS, "time_steps": 8}


class QuantEventViTTest(OfImages, unittest.TestCase):
    all_model_classes = (QuantViTModel, QuantViTForImageClassification)
    config_class, fields = QuantViTConfig, EVENT_FIELDS


class SpikeEventViTTest(Spiking, OfImages, unittest.TestCase):
    all_model_classes = (SpikeViTModel, SpikeViTForImageClassification)
    config_class, fields = SpikeViTConfig, {**EVENT_FIELDS, "time_steps": 8}
