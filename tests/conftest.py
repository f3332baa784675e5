"""Fixtures: small random networks, calibrated, and their spiking twins."""

import copy
import gc
import os
import signal
import sys
from functools import wraps
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import spikezip_hf
from spikezip_hf import QuantSwinForImageClassification, QuantViTForImageClassification
from spikezip_hf.models.configuration_quantization import pair
from spikezip_hf.models.engines import QuantEngine
from spikezip_hf.models.quantization import ratio
from spikezip_hf.models.rows import unwrap

from .deprecations import no_deprecations

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core already, and threads beyond that wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_collection_finish(session):
    """All that is imported stays: Python need not look through it each time that it collects garbage.

    Nor at the start of each training, which by then takes a second: networks so small need no room made.
    """
    gc.collect()
    gc.freeze()
    if memory := sys.modules.get("accelerate.utils.memory"):
        memory.gc = SimpleNamespace(collect=lambda: 0)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_deprecated():
    with no_deprecations():
        yield


def crossed(*values: list, default: list[tuple]) -> list:
    """Rows of crossed parameters: all but the default ones, which have each value at least once, are slow."""
    every = list(product(*values))
    assert set(default) <= set(every)
    assert all(set(column) == set(one) for column, one in zip(zip(*default), values, strict=True))
    return [row if row in default else pytest.param(*row, marks=pytest.mark.slow) for row in every]


def made_once(make):
    """`make`, for networks that depend on its arguments alone, run once for each: what is returned are copies.

    The generator is left as `make` leaves it.
    """
    kept = {}

    @wraps(make)
    def inner(*args, **fields):
        key = repr((args, sorted(fields.items()), torch.get_default_dtype(), torch.is_inference_mode_enabled()))
        assert " at 0x" not in key, "An argument does not say what it is."
        assert "tensor(" not in key, "A tensor does not say all that is in it."
        if key not in kept:
            kept[key] = make(*args, **fields), torch.get_rng_state()
        made, generator = kept[key]
        torch.set_rng_state(generator)
        return copy.deepcopy(made)

    return inner


def make_ann(seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> ViTForImageClassification:
    """A random ReLU ViT with activations large enough to use all levels."""
    torch.manual_seed(seed)
    defaults = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "relu",
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 5,
        "initializer_range": 0.15,
    }
    ann = ViTForImageClassification(ViTConfig(**{**defaults, **fields}))
    for name, parameter in ann.named_parameters():
        if name.endswith("bias"):  # transformers starts biases at 0, which would hide a bias counted twice
            torch.nn.init.normal_(parameter, std=0.1)
    return ann.to(dtype).eval()


@made_once
def make_qann(seed: int = 0, dtype: torch.dtype = torch.float32, levels: int = 16, granularity="per_tensor", **fields):
    """Its quantized twin, calibrated on noise."""
    ann = make_ann(seed, dtype, **fields)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=levels, scale_granularity=granularity)
    return qann.calibrate([{"pixel_values": make_images(qann.config, 32, dtype, seed + 1)}])


def make_swin_ann(seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> SwinForImageClassification:
    """A random ReLU Swin: two stages, the first with four windows, shifted in its second block."""
    torch.manual_seed(seed)
    defaults = {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
        "mlp_ratio": 1.5,
        "hidden_act": "relu",
        "drop_path_rate": 0.0,
        "num_labels": 5,
        "initializer_range": 0.15,
    }
    ann = SwinForImageClassification(SwinConfig(**{**defaults, **fields}))
    for name, parameter in ann.named_parameters():
        # All of them start at 0 in transformers, which would hide one that is left out or counted twice.
        if name.endswith(("bias", "relative_position_bias_table", "position_embeddings")):
            torch.nn.init.normal_(parameter, std=0.3)
    return ann.to(dtype).eval()


@made_once
def make_swin_qann(seed: int = 0, dtype: torch.dtype = torch.float32, levels: int = 16, ann_fields=None, **fields):
    """Its quantized twin, calibrated on noise."""
    ann = make_swin_ann(seed, dtype, **(ann_fields or {}))
    qann = QuantSwinForImageClassification.from_ann(ann, quantization_levels=levels, **fields)
    return qann.calibrate([{"pixel_values": make_images(qann.config, 16, dtype, seed + 1)}])


def make_images(config, batch: int, dtype: torch.dtype = torch.float32, seed: int = 7, steps: int | None = None):
    """Noise (batch, channels, H, W), or (batch, steps, channels, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = pair(config.image_size)
    shape = (batch, config.num_channels, height, width) if steps is None else (batch, steps, 3, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


TEXT = {
    "bert": (BertConfig, BertModel, BertForSequenceClassification, BertForTokenClassification),
    "roberta": (RobertaConfig, RobertaModel, RobertaForSequenceClassification, RobertaForTokenClassification),
}
ARCHITECTURES = list(TEXT)
TASKS = ("Model", "ForSequenceClassification", "ForTokenClassification")


def text_class(kind: str, architecture: str, task: str = "ForSequenceClassification") -> type:
    """A class of this library: kind "Quant" or "Spike"."""
    return getattr(spikezip_hf, f"{kind}{architecture.capitalize()}{task}")


def spiking_twin(qann, **fields):
    """The Spike model of a Quant model of any class."""
    return getattr(spikezip_hf, type(qann).__name__.replace("Quant", "Spike")).from_quantized(qann, **fields)


def make_text_ann(
    architecture: str, task: str = "ForSequenceClassification", seed: int = 0, dtype=torch.float32, **fields
):
    """A random ReLU BERT or RoBERTa with activations large enough to use all levels."""
    torch.manual_seed(seed)
    config_class, *models = TEXT[architecture]
    defaults = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "relu",
        "max_position_embeddings": 24,
        "pad_token_id": 1 if architecture == "roberta" else 0,
        "num_labels": 3,
        "initializer_range": 0.25,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = config_class(**{**defaults, **fields})
    model = models[TASKS.index(task)]
    ann = model(config, add_pooling_layer=False) if task == "Model" else model(config)
    for name, parameter in ann.named_parameters():
        if name.endswith("bias"):  # transformers starts biases at 0, which would hide a bias counted twice
            torch.nn.init.normal_(parameter, std=0.1)
        if "LayerNorm.weight" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return ann.to(dtype).eval()


@made_once
def make_text_qann(
    architecture: str,
    task: str = "ForSequenceClassification",
    seed: int = 0,
    dtype=torch.float32,
    levels: int = 16,
    granularity: str = "per_tensor",
    head_act: str = "relu",
    node_placement: str = "full",
    **fields,
):
    """Its quantized twin, calibrated on random texts."""
    ann = make_text_ann(architecture, task, seed, dtype, **fields)
    qann = text_class("Quant", architecture, task).from_ann(
        ann,
        quantization_levels=levels,
        scale_granularity=granularity,
        head_act=head_act,
        node_placement=node_placement,
    )
    return qann.calibrate([make_texts(qann.config, [12, 7, 9, 3, 12, 5, 8, 12], seed=seed + 1)])


def make_texts(config, lengths: list[int], seed: int = 7, side: str = "right", extra: int = 0) -> dict:
    """Random texts of these lengths, padded on one side to the longest and by `extra` more: ids, types and mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths) + extra
    batch = {
        "input_ids": torch.full((len(lengths), longest), config.pad_token_id),
        "token_type_ids": torch.zeros(len(lengths), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(lengths), longest, dtype=torch.long),
    }
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(longest - length, longest)
        batch["input_ids"][row, where] = torch.randint(2, config.vocab_size, (length,), generator=generator)
        batch["token_type_ids"][row, where] = (torch.arange(length) >= length // 2).long()
        batch["attention_mask"][row, where] = 1
    return batch


def make_batch(qann, seed: int = 7) -> dict:
    """Six samples for a Quant or Spike model of any architecture."""
    if qann.main_input_name == "pixel_values":
        return {"pixel_values": make_images(qann.config, 6, qann.dtype, seed)}
    return make_texts(qann.config, [12, 7, 9, 3, 12, 5], seed)


def heed_sigint() -> None:
    """For `preexec_fn`: where the suite runs in the background, a shell has had it ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TieEngine(QuantEngine):
    """Keeps the distance of every x/s from the nearest half-integer, {node: (B, ...)}."""

    def __init__(self):
        self.distances = {}

    def fire(self, node, current):
        position = ratio(unwrap(current), node.scale) + 0.5
        self.distances[node.name] = (position - position.round()).abs()
        return super().fire(node, current)


@torch.no_grad()
def tie_distances(qann, **inputs) -> dict[str, torch.Tensor]:
    """How close each neuron stands to a tie in the QANN's forward pass: where rounding may move its level."""
    engine = TieEngine()
    qann.eval()(**inputs, engine=engine)
    return engine.distances
