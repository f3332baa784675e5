"""What the judged architectures share.

The mixin looks up by the names of transformers' own classes which of them has a head: ours are put into its tables.
Two refusals of this library are switched off where they would hide what the mixin is to judge: of a checkpoint without
scales, and of a spiking network whose scales were never set. tests/models holds both.
"""

import io
from unittest.mock import patch

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from torch import nn
from transformers import initialization as init
from transformers.models.auto import modeling_auto

from spikezip_hf.auto import CONFIGS
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel
from spikezip_hf.models.quantization import Quantizer

TABLES = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
for _config in CONFIGS:
    for _auto_class, _place in _config.make_auto_map().items():
        if _auto_class in TABLES:
            TABLES[_auto_class][_config.model_type] = _place.rpartition(".")[2]


class NetworkMaker:
    """What the mixin asks of an architecture: a small config, and inputs for it."""

    batch_size = 3
    hidden_size = 16
    num_hidden_layers = 2
    num_attention_heads = 2
    seq_length = 5
    image_size = 8  # seq_length: a class token and four patches

    def __init__(self, config_class, fields: dict, inputs):
        self.config_class = config_class
        self.fields = fields
        self.inputs = inputs
        self.is_training = config_class.model_type.startswith("quant_")

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        torch.manual_seed(0)
        return self.get_config(), self.inputs(self)


def with_scales_set(initialise):
    """`initialise` of a module, after which its scales count as set."""

    def _init_weights(self, module):
        initialise(self, module)
        if isinstance(module, Quantizer):
            init.ones_(module.initialized)

    return _init_weights


def accepting(test):
    """`test` with checkpoints accepted in which everything is missing."""
    for base in (TwinPreTrainedModel, SpikePreTrainedModel):
        test = patch.object(base, "check_loaded", lambda *args: None)(test)
    return patch.object(TwinPreTrainedModel, "check_whole", lambda *args: None)(test)


class Judged(ModelTesterMixin):
    """The mixin over the classes of one config. What it overrides says why."""

    config_class: type
    fields: dict

    def inputs(self, maker) -> dict:
        raise NotImplementedError

    def setUp(self):
        self.model_tester = NetworkMaker(self.config_class, self.fields, self.inputs)
        has_text = "vocab_size" in self.fields
        self.config_tester = ConfigTester(self, self.config_class, has_text_modality=has_text, hidden_size=36)

    def test_config(self):
        self.config_tester.run_common_tests()

    @accepting
    def test_can_init_all_missing_weights(self):
        super().test_can_init_all_missing_weights()

    @accepting
    def test_model_weights_reload_no_missing_tied_weights(self):
        super().test_model_weights_reload_no_missing_tied_weights()

    def test_torch_save_load(self):
        # The mixin's own calls the state dict as if it were a function, and so fails for any model with a head.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            file = io.BytesIO()
            torch.save(model.state_dict(), file)
            file.seek(0)
            loaded = torch.load(file, weights_only=True)
            assert list(loaded) == list(model.state_dict())
            for key, value in model.state_dict().items():
                assert torch.equal(value, loaded[key]), key


class Spiking:
    """For Spike classes: a network that cannot be trained, and that refuses to answer at random."""

    def setUp(self):
        super().setUp()
        initialise = TwinPreTrainedModel._init_weights
        self.scales = patch.object(TwinPreTrainedModel, "_init_weights", with_scales_set(initialise))
        self.scales.start()
        self.addCleanup(self.scales.stop)

    @accepting
    def test_base_model_prefix_loads_base_weights(self):
        super().test_base_model_prefix_loads_base_weights()

    @accepting
    def test_can_load_ignoring_mismatched_shapes(self):
        super().test_can_load_ignoring_mismatched_shapes()

    @accepting
    def test_load_with_mismatched_shapes(self):
        super().test_load_with_mismatched_shapes()

    @accepting
    def test_correct_missing_keys(self):
        super().test_correct_missing_keys()

    def test_init_weights_can_init_buffers(self):
        self.scales.stop()  # what is judged is the library's own initialisation
        super().test_init_weights_can_init_buffers()
        self.scales.start()

    @patch.object(torch.Tensor, "backward", lambda loss: None)
    def test_problem_types(self):
        # Losses of all kinds are judged; spikes have no gradient, and asking for one is an error (tests/models).
        super().test_problem_types()

    def test_retain_grad_hidden_states_attentions(self):
        self.skipTest("a spiking network has no gradients")


class OfImages(Judged):
    """For networks of images."""

    test_resize_embeddings = False  # there is no vocabulary

    def inputs(self, maker):
        channels = self.fields.get("num_channels", 3)
        return {"pixel_values": torch.rand(maker.batch_size, channels, maker.image_size, maker.image_size)}

    def test_model_get_set_embeddings(self):
        # As transformers' own test of its ViT: what makes tokens of an image is a module, and no nn.Embedding.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), nn.Module)
            assert model.get_output_embeddings() is None


class OfText(Judged):
    """For networks of texts."""

    def inputs(self, maker):
        ids = torch.randint(3, self.fields["vocab_size"], (maker.batch_size, maker.seq_length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SIZES = {
    "hidden_size": NetworkMaker.hidden_size,
    "num_hidden_layers": NetworkMaker.num_hidden_layers,
    "num_attention_heads": NetworkMaker.num_attention_heads,
    "intermediate_size": 24,
    "quantization_levels": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
