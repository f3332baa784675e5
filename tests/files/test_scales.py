"""Scales and weights of a file that do not fit: refused by name, at loading and at converting; never computed with."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoModelForImageClassification

from spikezip_hf import QuantBertForSequenceClassification
from tests.conftest import make_qann, make_text_qann, spiking_twin

from .common import WEIGHTS, answers, edit_json, tensors_of, write_tensors

NODE = "vit.layers.1.attention.context_node"
OF_WEIGHT = "vit.layers.0.mlp.fc1.weight_quantizer"
WEIGHT = "vit.layers.0.mlp.fc1.weight"
QUANTIZERS = pytest.mark.parametrize("quantizer", [NODE, OF_WEIGHT], ids=["node", "weight"])


def fill(part, value):
    def change(tensors, name):
        tensors[f"{name}.{part}"].view(-1)[-1] = value

    return change


def replace(part, make):
    def change(tensors, name):
        tensors[f"{name}.{part}"] = make(tensors[f"{name}.{part}"])

    return change


def unset_and_nan(tensors, name):
    tensors[f"{name}.scale"].fill_(torch.nan)
    tensors[f"{name}.initialized"].fill_(False)


FAULTS = {
    "NaN": (fill("scale", torch.nan), "scale is not finite"),
    "infinite": (fill("scale", torch.inf), "scale is not finite"),
    "negative": (fill("scale", -0.1), "scale is below"),
    "zero": (fill("scale", 0.0), "scale is below"),
    "collapsed": (fill("scale", 1e-12), "scale is below"),
    "NaN, and never set": (unset_and_nan, "scale is not finite"),
    "missing": (lambda t, name: t.pop(f"{name}.scale"), r"holds no scales .*scale\)"),
    "initialized missing": (lambda t, name: t.pop(f"{name}.initialized"), r"holds no scales .*initialized\)"),
    "both missing": (
        lambda t, name: [t.pop(f"{name}.{part}") for part in ("scale", "initialized")],
        r"holds no scales .*\(first",
    ),
    "longer": (replace("scale", lambda x: torch.full((7,), 0.1)), r"scale is \[7\] there, and \["),
    "empty": (replace("scale", lambda x: x[:0].clone()), r"scale is \[0\] there, and \["),
    "without dimension": (replace("scale", lambda x: x[0].clone()), r"scale is \[\] there, and \["),
    "with one more": (replace("scale", lambda x: x[None].clone()), r"scale is \[1, \d+\] there, and \["),
    "whole numbers": (replace("scale", lambda x: x.ceil().long()), "scale is stored as .*, and thresholds"),
    "float16": (replace("scale", torch.Tensor.half), "scale is stored as .*, and thresholds"),
    "bfloat16": (replace("scale", torch.Tensor.bfloat16), "scale is stored as .*, and thresholds"),
    "initialized, a number": (replace("initialized", torch.Tensor.float), "initialized is stored as .*must be bool"),
    "initialized, a list": (replace("initialized", lambda x: x[None].clone()), r"initialized is \[1\] there"),
    "one more": (lambda t, name: t.update({f"{name}x.scale": torch.ones(1)}), r"x\.scale, and .* has no quantizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
@QUANTIZERS
def test_a_scale_that_does_not_fit(folder, model, quantizer, fault):
    change, message = FAULTS[fault]
    tensors = tensors_of(folder)
    change(tensors, quantizer)
    write_tensors(folder, tensors)
    name = quantizer.removeprefix("vit.").removesuffix(".weight_quantizer").rpartition(".")[2]
    with pytest.raises((ValueError, RuntimeError), match=message) as caught:
        type(model).from_pretrained(folder)
    assert name in str(caught.value)
    with pytest.raises((ValueError, RuntimeError), match=message):
        type(model).from_pretrained(None, config=model.config, state_dict=tensors)


def test_scales_in_double_precision_are_taken(folder, model):
    tensors = tensors_of(folder)
    tensors[f"{NODE}.scale"] = tensors[f"{NODE}.scale"].double()
    write_tensors(folder, tensors)
    assert torch.equal(answers(type(model).from_pretrained(folder)), answers(model))


@QUANTIZERS
def test_a_scale_that_was_never_set(folder, model, kind, quantizer):
    """A Quant model is to be calibrated; a Spike model cannot be."""
    tensors = tensors_of(folder)
    tensors[f"{quantizer}.initialized"].fill_(False)
    write_tensors(folder, tensors)
    if kind == "Quant":
        assert not type(model).from_pretrained(folder).calibrated
    else:
        with pytest.raises(ValueError, match=r"\.scale was never set"):
            type(model).from_pretrained(folder)


BREAKS = {
    "NaN": (lambda q: q.scale.data.fill_(torch.nan), "scale is not finite"),
    "infinite": (lambda q: q.scale.data.fill_(torch.inf), "scale is not finite"),
    "negative": (lambda q: q.scale.data.neg_(), "scale is below"),
    "zero": (lambda q: q.scale.data.zero_(), "scale is below"),
    "never set": (lambda q: q.initialized.fill_(False), "scale was never set"),
    "rounded": (lambda q: setattr(q.scale, "data", q.scale.data.half()), "scale is of torch.float16"),
    "longer": (lambda q: setattr(q.scale, "data", torch.full((7,), 0.1)), r"size mismatch for .*scale"),
}


@pytest.mark.parametrize("broken", BREAKS)
@QUANTIZERS
def test_a_scale_that_cannot_be_converted(networks, quantizer, broken):
    change, message = BREAKS[broken]
    qann = copy.deepcopy(networks["Quant"])
    change(qann.get_submodule(quantizer))
    with pytest.raises((ValueError, RuntimeError), match=message):
        spiking_twin(qann)


# Weights


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [WEIGHT, "vit.layernorm.bias", "classifier.weight"])
def test_a_weight_that_is_not_finite(folder, model, networks, name, bad):
    """In a weight of 8 bits it would become some whole number, and the answer would look sound."""
    tensors = tensors_of(folder)
    tensors[name].view(-1)[3] = bad
    write_tensors(folder, tensors)
    with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
        type(model).from_pretrained(folder)
    qann = copy.deepcopy(networks["Quant"])
    qann.get_parameter(name).data.view(-1)[3] = bad
    with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
        spiking_twin(qann)


@pytest.mark.parametrize("name", [WEIGHT, "vit.layers.1.mlp.fc2.bias", "vit.embeddings.cls_token"])
def test_a_weight_that_is_missing(folder, model, name):
    tensors = tensors_of(folder)
    del tensors[name]
    write_tensors(folder, tensors)
    with pytest.raises(ValueError, match=f"lacks {name}.* would answer at random"):
        type(model).from_pretrained(folder)
    with pytest.raises(ValueError, match=f"state_dict lacks {name}.* would answer at random"):
        type(model).from_pretrained(None, config=model.config, state_dict=tensors)


def test_a_weight_of_another_shape(folder, model):
    tensors = tensors_of(folder)
    tensors[WEIGHT] = tensors[WEIGHT][:-1].clone()
    write_tensors(folder, tensors)
    with pytest.raises(RuntimeError, match=rf"{WEIGHT} is \[47, 32\] there, and \[48, 32\]"):
        type(model).from_pretrained(folder)


def test_a_bare_network_that_lacks_a_weight(tmp_path):
    """Its names have no prefix, and what a head adds is looked for in vain without harm."""
    bare = make_text_qann("bert", "Model")
    bare.save_pretrained(tmp_path)
    assert not bool(QuantBertForSequenceClassification.from_pretrained(tmp_path).bert.pooler.hidden_node.initialized)
    tensors = tensors_of(tmp_path)
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors.pop(name)
    write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=f"lacks bert.{name}"):
        QuantBertForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"lacks {name}"):
        type(bare).from_pretrained(tmp_path)


# A config that is of another network


OTHER_NETWORKS = {"quantization_levels": 32, "pooling": "mean", "norm_after_pooling": True, "image_size": 16}


@pytest.mark.parametrize("field", OTHER_NETWORKS)
def test_a_config_of_another_network(folder, model, field):
    """Levels and kinds of pooling have no shape in which weights would show another."""
    edit_json(folder / "config.json", **{field: OTHER_NETWORKS[field]})
    for load in (type(model), AutoModelForImageClassification):
        with pytest.raises((ValueError, RuntimeError), match=rf"{field} of the config|lacks|is \[|no scales"):
            load.from_pretrained(folder)


def test_other_levels_in_a_config_that_is_given(folder, model):
    config = copy.deepcopy(model.config)
    config.quantization_levels = 32
    with pytest.raises(ValueError, match=r"quantization_levels of the config is 32, and .* was saved with 16"):
        type(model).from_pretrained(folder, config=config)
    assert torch.equal(answers(type(model).from_pretrained(folder, config=model.config)), answers(model))


def test_scales_of_channels_and_of_one_tensor(tmp_path, kind):
    """Either in place of the other."""
    for granularity, other in (("per_tensor", "per_channel"), ("per_channel", "per_tensor")):
        model = make_qann(granularity=granularity)
        if kind == "Spike":
            model = spiking_twin(model)
        model.save_pretrained(tmp_path)
        edit_json(tmp_path / "config.json", scale_granularity=other)
        with pytest.raises(ValueError, match=f"scale_granularity of the config is '{other}', and .* '{granularity}'"):
            type(model).from_pretrained(tmp_path)
        write_tensors(tmp_path, tensors_of(tmp_path))  # where no record tells it, shapes do
        with pytest.raises(RuntimeError, match=r"node\.scale is \[\d+\] there, and \[\d+\] of a"):
            type(model).from_pretrained(tmp_path)


def test_what_the_record_does_not_hold_may_change(folder, model, kind):
    labels = {"id2label": {str(i): f"class {i}" for i in range(5)}, **({"time_steps": 64} if kind == "Spike" else {})}
    edit_json(folder / "config.json", **labels)
    loaded = type(model).from_pretrained(folder)
    assert loaded.config.id2label[4] == "class 4"
    assert torch.equal(answers(loaded), answers(model))


def test_files_without_a_record_are_taken(folder, model):
    """Those of another tool, and of earlier versions."""
    write_tensors(folder, tensors_of(folder))
    assert torch.equal(answers(type(model).from_pretrained(folder)), answers(model))


def test_a_record_that_cannot_be_read(folder, model):
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["network"] = "{"
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(OSError, match=r"model\.safetensors has a header that cannot be read"):
        type(model).from_pretrained(folder)


def test_weights_of_another_network_of_the_same_shapes(folder, model, kind, tmp_path):
    """As after copying only half of a checkpoint."""
    other = make_qann(levels=32, weight_bits=8)
    other = other if kind == "Quant" else spiking_twin(other)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, folder)
    with pytest.raises(ValueError, match=r"quantization_levels of the config is 16, and .* was saved with 32"):
        type(model).from_pretrained(folder)
