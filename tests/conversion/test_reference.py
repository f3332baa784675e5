"""Checkpoints of the paper's layout become Quant models that compute what the file's own network computes."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file

from spikezip_hf import (
    QuantRobertaForSequenceClassification,
    QuantViTForImageClassification,
    SpikeViTForImageClassification,
)
from spikezip_hf.conversion import read_reference
from tests.conversion.levels import assert_equal_levels, node_levels
from tests.conversion.reference_networks import ReferenceRoberta, ReferenceViT, quantizers, randomized


def images(batch=6, height=8, width=8, dtype=torch.float32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3)).to(dtype)


def make_vit(dtype=torch.float32, **fields):
    size = fields.get("image", 8)
    height, width = (size, size) if isinstance(size, int) else size
    return randomized(ReferenceViT(**fields).to(dtype), images(16, height, width, dtype))


def texts(batch=5, length=9):
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 60, (batch, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([9, 7, 4, 9, 2])[:batch, None]).long()
    return ids.masked_fill(mask == 0, 1), mask


def make_roberta(dtype=torch.float32, **fields):
    return randomized(ReferenceRoberta(**fields).to(dtype), *texts())


def save(network, path, **beside):
    torch.save({"model": network.state_dict(), **beside}, path)
    return path


@torch.no_grad()
def test_vit_computes_the_same(tmp_path):
    network = make_vit(torch.float64)
    qann, report = read_reference(save(network, tmp_path / "vit.pth"), 16, num_attention_heads=4)
    assert type(qann) is QuantViTForImageClassification
    assert qann.calibrated
    assert not qann.training
    expected, logits = network(images(dtype=torch.float64)), qann(images(dtype=torch.float64)).logits
    # Ours multiplies levels and scales the sum, the file's network multiplies values: the last bits differ.
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1
    assert len(report.mapped) == len([name for name in qann.state_dict() if not name.endswith("initialized")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vit_has_the_same_levels(tmp_path, dtype):
    network = make_vit(dtype)
    qann, report = read_reference(save(network, tmp_path / "vit.pth"), 16, num_attention_heads=4)
    assert_same_levels(network, qann, report, (images(dtype=dtype),), {"pixel_values": images(dtype=dtype)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roberta_has_the_same_levels(tmp_path, dtype):
    network = make_roberta(dtype)
    qann, report = read_reference(save(network, tmp_path / "text.pth"), 16, num_attention_heads=4)
    ids, mask = texts()
    assert_same_levels(network, qann, report, (ids, mask), {"input_ids": ids, "attention_mask": mask})


def test_network_for_event_cameras(tmp_path):
    recordings = torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    network = randomized(ReferenceViT(camera_channels=6).double(), recordings)
    qann, report = read_reference(save(network, tmp_path / "dvs.pth"), 16, num_attention_heads=4)
    assert (qann.config.num_channels, qann.config.reduced_channels) == (6, 3)
    assert "how images were made of events is not in the file" in str(report)
    assert "normalised" not in str(report)
    assert_same_levels(network, qann, report, (recordings[:4],), {"pixel_values": recordings[:4]})
    # Other order of rounding, as for the network without it.
    torch.testing.assert_close(qann(recordings).logits, network(recordings), rtol=1e-10, atol=1e-10)


def test_network_for_event_cameras_that_does_not_fit(tmp_path):
    content = ReferenceViT(camera_channels=6).state_dict()
    content["align.0.weight"] = torch.ones(2, 6, 3, 3)
    torch.save(content, tmp_path / "dvs.pth")
    with pytest.raises(ValueError, match=r"align\.0\.weight makes 2 channels"):
        read_reference(tmp_path / "dvs.pth", 16, num_attention_heads=4)


@torch.no_grad()
def assert_same_levels(network, qann, report, arguments, inputs):
    network(*arguments)
    theirs = {name: quantizer.levels for name, quantizer in quantizers(network)}
    assert_equal_levels(node_levels(qann, inputs), theirs, report, inputs.get("attention_mask"))


@torch.no_grad()
def test_roberta_computes_the_same(tmp_path):
    network = make_roberta(torch.float64)
    qann, _ = read_reference(save(network, tmp_path / "text.pth"), 16, num_attention_heads=4)
    assert type(qann) is QuantRobertaForSequenceClassification
    assert qann.config.node_placement == "reference"
    ids, mask = texts()
    expected = network(ids, mask)
    # As for the ViT: other order of rounding, float64.
    torch.testing.assert_close(qann(input_ids=ids, attention_mask=mask).logits, expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{"image": (8, 12)}, {"global_pool": True}, {"bias": False, "layers": 3}, {"level": 32, "heads": 2}]
)
def test_sizes_are_read_from_the_tensors(tmp_path, fields):
    network = make_vit(torch.float64, **fields)
    height, width = (8, 12) if "image" in fields else (8, 8)
    qann, report = read_reference(
        save(network, tmp_path / "vit.pth"),
        fields.get("level", 16),
        num_attention_heads=fields.get("heads", 4),
        image_size=fields.get("image"),
    )
    pixels = images(2, height, width, torch.float64)
    torch.testing.assert_close(qann(pixels).logits, network(pixels), rtol=1e-10, atol=1e-10)  # rounding, as above
    assert "qkv_bias" in report.settings
    assert str(fields.get("layers", 2)) in report.settings["num_hidden_layers"]


@torch.no_grad()
def test_the_model_lives_on(tmp_path):
    network = make_vit()
    qann, _ = read_reference(save(network, tmp_path / "vit.pth"), 16, num_attention_heads=4)
    qann.save_pretrained(tmp_path / "qann")
    again = QuantViTForImageClassification.from_pretrained(tmp_path / "qann")
    assert torch.equal(again(images()).logits, qann(images()).logits)
    snn = SpikeViTForImageClassification.from_quantized(again, time_steps=256)
    outputs = snn(images())
    assert (outputs.equilibrium_step >= 0).all()
    assert torch.equal(outputs.logits, qann(images()).logits)


def test_a_training_says_levels_and_normalisation(tmp_path):
    settings = argparse.Namespace(
        level=16, act_layer="relu", remove_softmax=False, weight_quantization_bit=32, mean=[0.5] * 3, std=[0.5] * 3
    )
    path = save(make_vit(), tmp_path / "checkpoint-9.pth", optimizer={"state": {}}, epoch=9, args=settings)
    qann, report = read_reference(path, num_attention_heads=4)
    assert qann.config.quantization_levels == 16
    assert set(report.ignored) == {"optimizer", "epoch", "args"}
    assert any("mean [0.5, 0.5, 0.5]" in note for note in report.notes)
    with pytest.raises(ValueError, match="quantization_levels: 32 by your argument, 16 by the training"):
        read_reference(path, 32, num_attention_heads=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"act_layer": "gelu"}, "act_layer .* 'gelu'"), ({"remove_softmax": True}, "remove_softmax: .* no softmax")],
)
def test_what_cannot_be_represented_is_refused(tmp_path, settings, message):
    path = save(make_vit(), tmp_path / "vit.pth", args=argparse.Namespace(level=16, **settings))
    with pytest.raises(ValueError, match=message):
        read_reference(path, num_attention_heads=4)


@pytest.mark.parametrize("prefix", ["module.", "module.bert.", "bert."])
def test_wrappers_names_come_off(tmp_path, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in make_roberta().state_dict().items()}
    torch.save({"model": state, "best_score": 0.9}, tmp_path / "best.pth.tar")
    torch.save({"state_dict": state}, tmp_path / "other.pth", _use_new_zipfile_serialization=False)
    for name in ("best.pth.tar", "other.pth"):
        _, report = read_reference(tmp_path / name, 16, num_attention_heads=4)
        assert report.mapped["classifier.hidden_node.scale"] == "classifier.act.0.s"
        assert "roberta.embeddings.position_ids" in report.ignored


@torch.no_grad()
def test_pruned_and_quantized_weights_are_what_they_stand_for(tmp_path):
    network = make_vit(torch.float64)
    state = network.state_dict()
    pruned, quantized = "blocks.1.mlp.fc1", "blocks.0.attn.qkv"
    mask = (torch.rand_like(state[f"{pruned}.weight"]) > 0.5).double()
    scale = state[f"{quantized}.weight"].abs().max() / 100  # so that some weights are clamped
    file = dict(state)
    file[f"{pruned}.weight_orig"], file[f"{pruned}.weight_mask"] = file.pop(f"{pruned}.weight"), mask
    file[f"{quantized}.quan_w_fn.s"] = scale
    torch.save(file, tmp_path / "vit.pth")

    network.blocks[1].mlp.fc1.weight.mul_(mask)
    weight = network.blocks[0].attn.qkv.weight
    weight.copy_((weight / scale + 0.5).floor().clamp(-64, 63) * scale)
    with pytest.raises(ValueError, match="weight_bits has to be given"):
        read_reference(tmp_path / "vit.pth", 16, num_attention_heads=4)
    qann, report = read_reference(tmp_path / "vit.pth", 16, num_attention_heads=4, weight_bits=7)
    pixels = images(dtype=torch.float64)
    torch.testing.assert_close(qann(pixels).logits, network(pixels), rtol=1e-10, atol=1e-10)  # rounding, as above
    assert set(report.folded) == {f"{pruned}.weight_mask", f"{quantized}.quan_w_fn.s"}


class RunsCode:
    """What a malicious file would hold."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, zipped):
    witness = tmp_path / "ran"
    path = tmp_path / "bad.pth"
    torch.save(
        {"model": make_vit().state_dict(), "args": RunsCode(witness)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ValueError, match=r"needs posix\.system: .* torch\.save\("):
        read_reference(path, 16, num_attention_heads=4)
    assert not witness.exists()


def test_a_file_of_other_objects_is_refused_by_name(tmp_path):
    path = save(make_vit(), tmp_path / "vit.pth", home=tmp_path)
    with pytest.raises(ValueError, match=r"needs pathlib\S*PosixPath"):
        read_reference(path, 16, num_attention_heads=4)


def change(**changes):
    """A file's state with these names (dots as __) set, or left out where None."""

    def changed(state):
        for name, value in changes.items():
            name = name.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value
        return state

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(blocks__1__mlp__fc1__bias=None), "blocks.1.mlp.fc1.bias: missing"),
        (change(blocks__1__attn__quan_k__s=None), "blocks.1.attn.quan_k.s: missing"),
        (change(blocks__1__attn__q_norm__weight=torch.ones(8)), "q_norm.weight: in the file and not known"),
        (change(blocks__0__mlp__fc1__weight=torch.ones(48, 33)), r"fc1.weight is \(48, 33\), not \(48, 32\)"),
        (change(blocks__0__attn__qkv__bias=torch.ones(95)), r"qkv.bias \(first third\) is \(95,\), not \(32,\)"),
        (change(blocks__0__attn__quan_q__s=torch.tensor(-0.1)), r"quan_q.s = -0.1: no usable scale"),
        (change(norm__1__s=torch.tensor(0.0)), r"norm.1.s = 0: no usable scale"),
        (change(norm__1__s=torch.tensor(float("nan"))), r"norm.1.s: not finite"),
        (change(head__bias=torch.full((5,), float("inf"))), "head.bias: not finite"),
        (change(norm__1__pos_max=torch.ones(2), norm__1__neg_min=torch.tensor(-8.0)), r"norm.1.pos_max is \[1"),
        (change(norm__1__pos_max=torch.tensor(float("nan")), norm__1__neg_min=torch.zeros(())), r"1.pos_max is nan"),
        (change(pos_embed=torch.ones(1, 6, 32)), "no square: give image_size"),
        (lambda state: {f"x.{name}": tensor for name, tensor in state.items()}, "no layout that is known"),
        (lambda state: {n: t for n, t in state.items() if n[-2:] != ".s"}, "quantize it with from_ann"),
        (lambda state: {"blocks.0.attn.qkv.linear.weight": state["head.weight"]}, "converted SNN"),
        (lambda state: {n: t**0 if n[-2:] == ".s" else t for n, t in state.items()}, "nothing was trained"),
        (change(pos_embed=torch.ones(1, 1, 32)), "pos_embed has 1 places"),
        (lambda state: [1, 2], "holds a list"),
        (lambda state: {"epoch": 1}, "holds no tensors"),
    ],
)  # fmt: skip
def test_errors_name_the_tensor(tmp_path, changed, message):
    torch.save(changed(dict(make_vit().state_dict())), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / "vit.pth", 16, num_attention_heads=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "quantization_levels has to be given: .* Its name suggests 16"),
        ({"quantization_levels": 15}, "even integer"),
        ({"quantization_levels": 16}, "num_attention_heads has to be given"),
        ({"quantization_levels": 16, "num_attention_heads": 5}, "does not divide the width 32"),
        ({"quantization_levels": 16, "num_attention_heads": 4, "image_size": 12}, "makes 9 patches"),
        (
            {"quantization_levels": 16, "num_attention_heads": 4, "layer_norm_eps": 0.0},
            "layer_norm_eps must be above 0",
        ),
    ],
)
def test_errors_name_the_argument(tmp_path, arguments, message):
    path = save(make_vit(), tmp_path / "vit-q16-81.59.pth")
    with pytest.raises(ValueError, match=message):
        read_reference(path, **arguments)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_reference(tmp_path / "none.pth", 16)
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as a file of torch"):
        read_reference(tmp_path / "text.pth", 16)
    whole = save(make_vit(), tmp_path / "vit.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as a file of torch"):
        read_reference(tmp_path / "cut.pth", 16)
    (tmp_path / "cut.safetensors").write_bytes(whole[:20])
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        read_reference(tmp_path / "cut.safetensors", 16)


def test_wrong_levels_look_odd(tmp_path):
    network = make_vit(level=64)
    path = save(network, tmp_path / "vit.pth")
    _, right = read_reference(path, 64, num_attention_heads=4)
    _, wrong = read_reference(path, 4, num_attention_heads=4)
    assert not [note for note in right.notes if "largest level" in note]
    assert [note for note in wrong.notes if "largest level" in note]


def test_the_report_says_all(tmp_path):
    _, report = read_reference(save(make_vit(), tmp_path / "vit.pth"), 16, num_attention_heads=4)
    text = str(report)
    assert "40 weights and 22 scales" in text
    assert "quantization_levels: 16, by your argument" in text
    assert report.as_dict()["mapped"]["vit.layers.0.attention.k_proj.bias"] == "blocks.0.attn.qkv.bias (second third)"


def test_safetensors_are_read_too(tmp_path):
    state = {name: tensor.contiguous() for name, tensor in make_roberta().state_dict().items()}
    save_file(state, tmp_path / "text.safetensors")
    qann, _ = read_reference(tmp_path / "text.safetensors", 16, num_attention_heads=4)
    assert torch.equal(qann.classifier.dense.weight, state["classifier.dense.weight"])


@pytest.mark.parametrize(
    ("arguments", "extra", "message"),
    [
        ({"quantization_levels": 256}, {}, "does not quantize at all at 256"),
        ({"quantization_levels": 16, "image_size": 8}, {}, "image_size is for images"),
        ({"quantization_levels": 16}, {"lm_head.bias": torch.ones(60)}, "the head of a language model"),
        ({"quantization_levels": 16}, {"roberta.encoder.layer.3.output.dense.1.s": torch.ones(())}, r"\[0, 1, 3\]"),
    ],
)
def test_errors_of_text(tmp_path, arguments, extra, message):
    torch.save({**make_roberta().state_dict(), **extra}, tmp_path / "text.pth")
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / "text.pth", num_attention_heads=4, **arguments)
