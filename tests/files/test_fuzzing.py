"""Configs and weights with anything in them: an error that says where, or a network that works."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from spikezip_hf import EventViTConfig, QuantSwinConfig, QuantViTConfig, SpikeSwinConfig, SpikeViTConfig
from spikezip_hf.loading import class_of
from spikezip_hf.models.configuration_quantization import QuantizationFields, SpikeFields
from spikezip_hf.models.configuration_spike_vit import ViTFields

from .common import WEIGHTS, answers, tensors_of, write_tensors

OWN = sorted({field.name for cls in (QuantizationFields, SpikeFields, ViTFields) for field in fields(cls)})
SAID = (ValueError, TypeError, OSError, StrictDataclassError)  # the last is huggingface_hub's, of a field's type

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=800, derandomize=False)

KINDS = st.sampled_from(["Quant", "Spike"])
NUMBERS = st.one_of(
    st.integers(-3, 300), st.sampled_from([2**31, 2**63, 10**30, -(2**63)]), st.floats(), st.sampled_from([0.5, 1e308])
)
WORDS = st.sampled_from(["layerwise", "nodewise", "never", "mean", "per_channel", "8", "", "None", "a" * 500, "\0ü"])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
CHANGES = st.dictionaries(st.sampled_from(OWN), st.tuples(st.booleans(), VALUES), min_size=1, max_size=3)


@contextmanager
def copied(folder: Path):
    """A copy, of which hypothesis makes one for each example: a fixture would make one for all."""
    with tempfile.TemporaryDirectory() as home:
        yield Path(shutil.copytree(folder, Path(home) / "checkpoint"))


def load(networks, kind, folder, errors=SAID):
    """The model of a folder, and None; or None, and what the error says."""
    try:
        return type(networks[kind]).from_pretrained(folder), ""
    except errors as error:
        return None, str(error)


def check_config(networks, originals, kind, changes):
    with copied(originals[kind, False]) as folder:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, (leave_out, value) in changes.items():
            config.pop(name, None) if leave_out else config.update({name: value})
        path.write_text(json.dumps(config))
        model, said = load(networks, kind, folder)
        if model is None:
            assert "config.json" in said or any(name in said for name in OWN), said
            return
        steps = {"time_steps": 12} if kind == "Spike" else {}  # a config may ask for 10^30 of them
        with torch.no_grad():
            logits = model(pixel_values=torch.ones(1, 3, 8, 8), **steps).logits
        assert bool(logits.isfinite().all())


def check_config_text(networks, originals, kind, text):
    with copied(originals[kind, False]) as folder:
        (folder / "config.json").write_bytes(text)
        with pytest.raises(SAID, match=r"config\.json"):
            type(networks[kind]).from_pretrained(folder)
        with pytest.raises(SAID, match=r"config\.json"):
            class_of(str(folder))


@st.composite
def damages(draw, size: int):
    """One run of bytes changed, taken out, or put in; as (first, last, bytes)."""
    first = draw(st.integers(0, 200) | st.integers(0, size - 1))
    last = min(size, first + draw(st.integers(0, 40) | st.integers(0, size)))
    return first, last, draw(st.binary(max_size=40))


def check_bytes(networks, originals, kind, data):
    with copied(originals[kind, False]) as folder:
        path = folder / WEIGHTS
        before = path.read_bytes()
        first, last, new = data.draw(damages(len(before)))
        assume(before[first:last] != new)
        path.write_bytes(before[:first] + new + before[last:])
        model, said = load(networks, kind, folder)
        if model is None:
            assert WEIGHTS in said
            return
        expected = networks[kind].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def check_values(networks, originals, kind, data):
    """Without a seal, nothing says that values are others; what cannot be computed with is refused all the same."""
    with copied(originals[kind, False]) as folder:
        tensors = tensors_of(folder)
        name = data.draw(st.sampled_from(sorted(tensors)))
        raw = tensors[name].view(-1).view(torch.uint8)
        at = data.draw(st.integers(0, raw.numel() - 1))
        raw[at] = data.draw(st.integers(0, 255 if tensors[name].dtype != torch.bool else 1))
        write_tensors(folder, tensors)
        model, said = load(networks, kind, folder)
        if model is None:
            assert name.removeprefix("vit.").rpartition(".")[0] in said
            return
        with torch.no_grad():
            logits = answers(model)
        assert bool(logits.isfinite().all())


def fuzzed(check, *strategies, examples=()):
    """A test of a few examples, always the same and with those that are given, and a slow one of many."""
    few = given(*strategies)(check)
    for one in examples:
        few = example(*one)(few)
    return FEW(few), pytest.mark.slow(MANY(given(*strategies)(check)))


test_configs, test_many_configs = fuzzed(
    check_config,
    KINDS,
    CHANGES,
    examples=[
        ("Spike", {"time_steps": (False, 2**63)}),
        ("Spike", {"chunk_steps": (False, 10**30)}),
        ("Spike", {"max_spikes_per_step": (False, 10**30)}),
        ("Spike", {"firing_schedule": (False, "layerwise"), "firing_window": (False, 10**30)}),
        ("Spike", {"firing_schedule": (False, "nodewise"), "firing_steps": (False, {"": 1})}),
        ("Spike", {"firing_schedule": (False, "nodewise"), "firing_steps": (False, [1])}),
        ("Spike", {"stop": (False, "confidence"), "confidence_threshold": (False, float("nan"))}),
        ("Quant", {"reduced_channels": (False, 10**12)}),
        ("Quant", {"spikezip_version": (False, None)}),
        ("Quant", {"quantization_levels": (False, 16.0)}),
        ("Quant", {"quantization_levels": (False, True)}),
    ],
)
test_bytes, test_many_bytes = fuzzed(check_bytes, KINDS, st.data())
test_values, test_many_values = fuzzed(check_values, KINDS, st.data())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b'"a"', b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none(networks, originals, kind, text):
    check_config_text(networks, originals, kind, text)


SIZES = {
    "num_channels": (0, -1),
    "image_size": (0, -8, [8, 0], 3),  # of which patches of 4 take none
    "patch_size": (0, -4, [4, -1]),
    "reduced_channels": (0, -1, 10**9),
}


IMAGES = [QuantViTConfig, SpikeViTConfig, QuantSwinConfig, SpikeSwinConfig, EventViTConfig]
WRONG = [(cls, name, one) for cls in IMAGES for name, some in SIZES.items() if hasattr(cls, name) for one in some]


@pytest.mark.parametrize(("config_class", "field", "value"), WRONG)
def test_sizes_of_which_no_network_can_be_made(config_class, field, value):
    with pytest.raises((ValueError, StrictDataclassError), match=field):
        config_class(**{"image_size": 8, "patch_size": 4, field: value})
