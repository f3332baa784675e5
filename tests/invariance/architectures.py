"""The one table that every invariance test runs over: a new architecture is one line of `ARCHITECTURES`.

Sample i of an architecture is made from seed i alone, so it is the same whatever batch it is in.
"""

import copy
import hashlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from spikezip_hf import QuantSwinModel, QuantViTModel
from spikezip_hf.models import kernels
from spikezip_hf.models.engines import RecordingEngine
from spikezip_hf.models.simulation import Trajectory
from tests.conftest import make_images, make_qann, make_swin_qann, make_text_qann, make_texts, spiking_twin
from tests.models.test_event_vit import frames_of, make_event_qann
from tests.models.test_vit_variants import make_variant

TIME_STEPS = 48  # more than any of them needs, and no more than that: a chunk is computed whole
LEVELS = 8  # few, so that runs are short


def images(model, samples: int) -> dict:
    each = [make_images(model.config, 1, model.dtype, seed) for seed in range(100, 100 + samples)]
    return {"pixel_values": torch.cat(each)}


def recordings(model, samples: int) -> dict:
    """Input per step: (B, 6, 2, 9, 9)."""
    return {"pixel_values": frames_of(samples, model.dtype)}


def texts(model, samples: int) -> dict:
    """Of 1 to 12 tokens, no two lengths in a row alike, padded on the right to 14."""
    each = [make_texts(model.config, [1 + 5 * seed % 12], seed, extra=13 - 5 * seed % 12) for seed in range(samples)]
    return {name: torch.cat([text[name] for text in each]) for name in each[0]}


class Architecture(NamedTuple):
    """Attributes:
    make: of a calibrated Quant model, from a dtype.
    inputs: of n samples for a model.
    own_bits: whether the bits of a sample are its own in float32, whatever batch and chunk it is in. So where all
        that many rows share are exact sums: with weights of 8 bits and one scale a node, and where products are done
        in fixed point.
    spiking: fields of the Spike model.
    """

    make: Callable
    inputs: Callable
    own_bits: bool = False
    spiking: dict = {}

    @property
    def is_text(self) -> bool:
        return self.inputs is texts


def text(architecture: str, task: str = "ForSequenceClassification", **fields) -> Callable:
    return lambda dtype: make_text_qann(architecture, task, dtype=dtype, levels=LEVELS, **fields)


def bare(base_class: type, classifier: Callable) -> Callable:
    """The network without its head."""

    def make(dtype):
        whole = classifier(dtype)
        base = base_class(whole.config)
        base.load_state_dict(whole.base_model.state_dict(), assign=True)
        return base.eval()

    return make


def vit(levels: int = LEVELS, **fields) -> Callable:
    return lambda dtype: make_qann(dtype=dtype, levels=levels, **fields)


def swin(**fields) -> Callable:
    return lambda dtype: make_swin_qann(dtype=dtype, levels=LEVELS, **fields)


FIXED = kernels.in_fixed_point(torch.zeros(1))
ARCHITECTURES = {
    "vit": Architecture(vit(), images, own_bits=FIXED),
    "vit, scales of channels": Architecture(vit(granularity="per_channel"), images),
    "vit, mean": Architecture(lambda dtype: make_variant("mean, norm behind", dtype, LEVELS), images, own_bits=FIXED),
    "vit, distilled": Architecture(lambda dtype: make_variant("distilled", dtype, LEVELS), images, own_bits=FIXED),
    "vit, 8 bits": Architecture(vit(16, weight_bits=8), images, own_bits=True),
    "vit, 256 levels": Architecture(vit(levels=256), images, spiking={"max_spikes_per_step": 16}),
    "vit, bare": Architecture(bare(QuantViTModel, vit()), images, own_bits=FIXED),
    "swin": Architecture(swin(), images),  # its softmax is of floating-point numbers
    "swin, 8 bits": Architecture(swin(weight_bits=8), images, own_bits=True),
    "swin, bare": Architecture(bare(QuantSwinModel, swin()), images),
    "events": Architecture(make_event_qann, recordings, own_bits=FIXED),
    "events, 8 bits": Architecture(lambda dtype: make_event_qann(dtype, weight_bits=8), recordings, own_bits=True),
    "bert": Architecture(text("bert", head_act="tanh"), texts, own_bits=FIXED),
    "bert, tokens": Architecture(text("bert", "ForTokenClassification"), texts, own_bits=FIXED),
    "bert, bare": Architecture(text("bert", "Model"), texts, own_bits=FIXED),
    "roberta": Architecture(text("roberta"), texts, own_bits=FIXED),
    "roberta, scales of channels": Architecture(text("roberta", granularity="mixed"), texts, own_bits=FIXED),
    "roberta, 8 bits": Architecture(text("roberta", weight_bits=8), texts, own_bits=True),
    "roberta, tokens": Architecture(text("roberta", "ForTokenClassification"), texts, own_bits=FIXED),
    "roberta, bare": Architecture(text("roberta", "Model"), texts, own_bits=FIXED),
    "roberta, the reference's nodes": Architecture(text("roberta", node_placement="reference"), texts),
}


class Twins(NamedTuple):
    """A network and six samples for it. Shared by all tests of a process: who changes a model takes a copy."""

    name: str
    qann: torch.nn.Module
    snn: torch.nn.Module
    batch: dict

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.name]

    @property
    def exact(self) -> bool:
        """Whether a sample has the same bits wherever it is, and not only the same levels."""
        return self.architecture.own_bits and self.qann.dtype == torch.float32

    def copies(self) -> "Twins":
        return copy.deepcopy(self)


@cache
def twins(name: str, dtype: torch.dtype) -> Twins:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    qann = architecture.make(dtype).eval()
    return Twins(
        name, qann, spiking_twin(qann, time_steps=TIME_STEPS, **architecture.spiking), architecture.inputs(qann, 6)
    )


@cache
def reference(name: str, dtype: torch.dtype) -> Trajectory:
    """What the twins do, undisturbed."""
    _, _, snn, batch = twins(name, dtype)
    return run(snn, batch, output_time_steps=True)


def select(batch: dict, samples) -> dict:
    return {name: tensor[samples] for name, tensor in batch.items()}


@torch.no_grad()
def quantized(qann, batch: dict) -> torch.Tensor:
    """What the spiking twin is held to."""
    outputs = qann(**batch)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@torch.no_grad()
def quantized_levels(qann, batch: dict) -> dict[str, torch.Tensor]:
    """The level of every node in the quantized network's pass."""
    recorder = RecordingEngine()
    qann.network(qann.prepare(**batch), recorder)
    return recorder.levels


@torch.no_grad()
def run(snn, batch: dict, **arguments) -> Trajectory:
    return snn.trajectory(**batch, **arguments)


def assert_same_samples(found: Trajectory, expected: Trajectory, exact: bool, order=slice(None)) -> None:
    """The samples `order` of a run did the same in another one: every level, spike and T_eq; and the readout.

    Args:
        exact: whether the readout has the same bits. If not, a float64 product of another shape has another order of
            sums, and with it other last bits.
    """
    assert torch.equal(found.equilibrium_step, expected.equilibrium_step[order])
    assert torch.equal(found.spike_counts, expected.spike_counts[order])
    assert torch.equal(found.neuron_counts, expected.neuron_counts[order])
    assert found.levels.keys() == expected.levels.keys()
    for name, levels in found.levels.items():
        assert torch.equal(levels, expected.levels[name][order]), name
    assert_readout(found.readout, expected.readout[order], exact)
    if found.per_step is not None and expected.per_step is not None:
        steps = min(found.per_step.shape[1], expected.per_step.shape[1])
        assert_readout(found.per_step[:, :steps], expected.per_step[order, :steps], exact)


def assert_readout(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> None:
    assert found.dtype == expected.dtype
    if exact:
        assert torch.equal(found, expected)
    else:
        assert found.dtype == torch.float64  # in float32 not even levels are promised, at ties
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def fingerprint(trajectory: Trajectory) -> str:
    """Of all bits of a run: what another process or thread must come to."""
    digest = hashlib.sha256()
    levels = trajectory.levels.values()
    for tensor in (trajectory.readout, trajectory.equilibrium_step, trajectory.spike_counts, *levels):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
