"""A network is the same one copied, pickled, saved and loaded, cast there and back, and moved."""

import copy
import io
import pickle

import pytest
import torch

from tests.invariance.architectures import fingerprint, quantized, reference, run, twins


def answers(twins) -> str:
    return fingerprint(run(twins.snn, twins.batch, output_time_steps=True))


def undisturbed(twins) -> str:
    return fingerprint(reference(twins.name, twins.qann.dtype))


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch,
    "state dict": lambda model: filled(
        type(model)(copy.deepcopy(model.config), **model.construction), model.state_dict()
    ),
    "meta": lambda model: filled(copy.deepcopy(model).to("meta").to_empty(device="cpu"), model.state_dict()),
}


def filled(model, state):
    model.load_state_dict(state)
    return model.eval()


def storages(model) -> set:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors} | {id(module) for module in model.modules()}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_does_the_same_and_shares_nothing(plain, kind):
    for model in (plain.qann, plain.snn):
        twin = COPIES[kind](model)
        assert type(twin) is type(model)
        assert twin.config.to_dict() == model.config.to_dict()
        assert twin.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], tensor), name
            assert twin.state_dict()[name].dtype == tensor.dtype
        assert not storages(twin) & storages(model)
        assert twin.node_names == model.node_names
        # What is done to it is done to it alone.
        if model is plain.snn:
            assert fingerprint(run(twin, plain.batch, output_time_steps=True)) == undisturbed(plain)
        else:
            assert torch.equal(quantized(twin, plain.batch), quantized(model, plain.batch))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(1.5)
        twin.config.id2label[0] = "another"
        assert answers(plain) == undisturbed(plain)
        assert model.config.id2label[0] != "another"


def test_twins_share_nothing(plain):
    again = plain.snn.to_quantized()
    for one, other in ((plain.qann, plain.snn), (plain.snn, again), (plain.qann, again)):
        assert not storages(one) & storages(other)
        assert one.config is not other.config
        assert one.config.id2label is not other.config.id2label
    assert torch.equal(quantized(again, plain.batch), quantized(plain.qann, plain.batch))


@pytest.mark.parametrize("arguments", [{}, {"dtype": torch.float64}, {"dtype": "auto"}], ids=str)
def test_saved_and_loaded_in_float64(plain, tmp_path, arguments):
    """Scales that were calibrated in float64 stay so."""
    wide = twins(plain.name, torch.float64)
    wide.snn.save_pretrained(tmp_path)
    loaded = type(wide.snn).from_pretrained(tmp_path, **arguments)
    assert {quantizer.scale.dtype for quantizer in loaded.quantizers} == {torch.float64}
    assert answers(wide._replace(snn=loaded)) == undisturbed(wide)


def test_saved_and_loaded(plain, tmp_path):
    for model in (plain.qann, plain.snn):
        model.save_pretrained(tmp_path / "once")
        loaded = type(model).from_pretrained(tmp_path / "once")
        loaded.save_pretrained(tmp_path / "twice")
        twice = type(model).from_pretrained(tmp_path / "twice")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name
        if model is plain.snn:
            assert fingerprint(run(twice, plain.batch, output_time_steps=True)) == undisturbed(plain)
        else:
            assert torch.equal(quantized(twice, plain.batch), quantized(model, plain.batch))


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "dict", "json"])
def test_configs(plain, how, tmp_path):
    snn = copy.deepcopy(plain.snn)
    snn.calibrate_schedule([plain.batch], "coarse_to_fine")  # fields that hold something
    for config in (plain.qann.config, snn.config):
        if how == "json":
            config.save_pretrained(tmp_path)
            twin = type(config).from_pretrained(tmp_path)
        else:
            twin = {
                "pickle": lambda config: pickle.loads(pickle.dumps(config)),
                "deepcopy": copy.deepcopy,
                "dict": lambda config: type(config).from_dict(config.to_dict()),
            }[how](config)
        assert type(twin) is type(config)
        assert twin.to_dict() == config.to_dict()
        assert repr(twin) == repr(config)
        before = copy.deepcopy(config.to_dict())
        twin.id2label[0] = "another"
        for steps in (getattr(twin, "firing_steps", None), getattr(twin, "fine_steps", None)):
            if steps is not None:
                steps.clear()
        assert config.to_dict() == before  # nothing is shared


def test_to_float64_and_back(plain):
    """Every float32 is a float64: the way back is exact."""
    snn, qann = copy.deepcopy(plain.snn).double(), copy.deepcopy(plain.qann).double()
    assert {p.dtype for p in snn.parameters()} == {torch.float64}
    batch = {k: v.double() if v.is_floating_point() else v for k, v in plain.batch.items()}
    found = run(snn, batch)
    assert (found.equilibrium_step > 0).all()
    assert found.readout.dtype == torch.float64
    assert torch.equal(found.readout, quantized(qann, batch))
    again = plain._replace(snn=snn.float(), qann=qann.float())
    assert answers(again) == undisturbed(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_too(plain, dtype):
    """Rounded weights make another network, of which both twins are: at equilibrium they agree to the bit. Scales
    stay as they are."""
    snn, qann = copy.deepcopy(plain.snn).to(dtype), copy.deepcopy(plain.qann).to(dtype)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain.batch.items()}
    for before, after in zip(plain.snn.quantizers, snn.quantizers):
        assert torch.equal(before.scale, after.scale)
        assert after.scale.dtype == torch.float32
    found = run(snn, batch)
    assert (found.equilibrium_step > 0).all()
    assert found.readout.dtype == dtype
    assert torch.equal(found.readout, quantized(qann, batch))
    for before, after in zip(plain.snn.parameters(), snn.float().parameters()):
        assert torch.equal(after, before.to(dtype).float()) or torch.equal(after, before)  # of scales


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_another_device(own):
    """Levels are the same; the readout's last bits are each device's own, and those of both twins there."""
    snn, qann = copy.deepcopy(own.snn).cuda(), copy.deepcopy(own.qann).cuda()
    batch = {name: tensor.cuda() for name, tensor in own.batch.items()}
    found = run(snn, batch)
    assert torch.equal(found.readout, quantized(qann, batch))
    if own.qann.dtype == torch.float64:
        expected = reference(own.name, torch.float64)
        for name, levels in found.levels.items():
            assert torch.equal(levels.cpu(), expected.levels[name]), name
        assert torch.equal(found.equilibrium_step.cpu(), expected.equilibrium_step)
    assert answers(own._replace(snn=snn.cpu())) == undisturbed(own)
