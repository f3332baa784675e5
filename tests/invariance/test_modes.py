"""Torch's modes: inference_mode, gradients, training in between, deterministic algorithms, defaults, threads."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.utils import deterministic

from tests.invariance.architectures import assert_same_samples, fingerprint, quantized, reference, run


def undisturbed(twins) -> str:
    return fingerprint(reference(twins.name, twins.qann.dtype))


def answers(snn, batch) -> str:
    return fingerprint(snn.trajectory(**batch, output_time_steps=True))


def gradients(qann, batch) -> dict[str, torch.Tensor]:
    qann.zero_grad()
    outputs = qann(**batch)
    readout = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    readout.square().sum().backward()
    return {name: p.grad.clone() for name, p in qann.named_parameters() if p.grad is not None}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


class TestInferenceMode:
    def test_answers(self, plain):
        with torch.inference_mode():
            assert answers(plain.snn, plain.batch) == undisturbed(plain)
            inside = plain.qann(**plain.batch)
        assert torch.equal(inside[0], quantized(plain.qann, plain.batch))

    def test_of_a_model_first_run_in_it_and_then_trained(self, plain):
        """Nothing that was made in inference mode, which autograd refuses, is kept."""
        expected = gradients(copy.deepcopy(plain.qann).train(), plain.batch)
        qann = copy.deepcopy(plain.qann)
        with torch.inference_mode():
            qann(**plain.batch)
        assert_equal(gradients(qann.train(), plain.batch), expected)
        with torch.no_grad():
            for parameter in qann.parameters():
                parameter.sub_(1e-3 * parameter)
        with torch.inference_mode():
            after = qann.eval()(**plain.batch)[0]
        assert torch.equal(after, quantized(copy.deepcopy(qann), plain.batch))
        assert not torch.equal(after, quantized(plain.qann, plain.batch))

    def test_of_models_converted_calibrated_and_loaded_in_it(self, plain, tmp_path):
        """They are used outside of it afterwards, the spiking one with gradients enabled, as in a notebook."""
        with torch.inference_mode():
            qann = copy.deepcopy(plain.qann).calibrate([plain.batch])
            snn = type(plain.snn).from_quantized(qann, **plain.architecture.spiking, time_steps=48)
            answer = answers(snn, plain.batch)
            snn.save_pretrained(tmp_path)
            loaded = type(snn).from_pretrained(tmp_path)
        assert answers(snn, plain.batch) == answer
        assert answers(loaded, plain.batch) == answer
        assert torch.equal(snn(**plain.batch)[0], quantized(qann, plain.batch))
        assert torch.equal(quantized(snn.to_quantized(), plain.batch), quantized(qann, plain.batch))


def test_eval_mode_has_one_answer_whether_gradients_are_asked_for_or_not(plain):
    answer = quantized(plain.qann, plain.batch)
    assert torch.equal(plain.qann(**plain.batch)[0], answer)
    assert answers(plain.snn, plain.batch) == undisturbed(plain)


def test_training_changes_no_spiking_twin_and_leaves_no_trace_in_it(plain):
    qann, snn = copy.deepcopy(plain.qann), copy.deepcopy(plain.snn)
    for _ in range(2):
        gradients(qann.train(), plain.batch)
        assert answers(snn, plain.batch) == undisturbed(plain)
        assert all(parameter.grad is None for parameter in snn.parameters())
    assert not snn.train().training
    assert torch.equal(quantized(qann.eval(), plain.batch), quantized(plain.qann, plain.batch))


@pytest.fixture
def deterministic_algorithms():
    """Torch then also fills memory that it hands out with NaN, or the largest integer: who reads it before it is
    written is seen."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]


def test_deterministic_algorithms(plain, deterministic_algorithms):
    assert torch.empty(2).isnan().all()
    assert answers(plain.snn, plain.batch) == undisturbed(plain)
    assert answers(plain.snn, plain.batch) == undisturbed(plain)
    qann = copy.deepcopy(plain.qann).train()
    expected = gradients(qann, plain.batch)
    assert_equal(gradients(qann, plain.batch), expected)
    assert all(grad.isfinite().all() for grad in expected.values())
    event = run(plain.snn, plain.batch, execution="event")
    assert event.readout.isfinite().all()
    twin = type(plain.snn).from_quantized(qann.calibrate([plain.batch]).eval(), **plain.architecture.spiking)
    found = run(twin, plain.batch, time_steps=60)
    assert (found.equilibrium_step > 0).all()
    assert torch.equal(found.readout, quantized(qann, plain.batch))


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),  # as "cuda" for a model on the CPU, and can be had anywhere
}


@pytest.mark.parametrize("default", DEFAULTS)
def test_defaults_for_new_tensors(plain, default):
    """Where and of what type tensors are made that nobody says it of is no business of a model that is there."""
    long = fingerprint(run(plain.snn, plain.batch, stop="never", time_steps=20))
    with DEFAULTS[default]():
        assert answers(plain.snn, plain.batch) == undisturbed(plain)
        assert fingerprint(run(plain.snn, plain.batch, stop="never", time_steps=20)) == long
        assert (run(plain.snn, plain.batch, execution="event").spike_counts.sum(1) > 0).all()
        assert torch.equal(plain.qann(**plain.batch)[0], quantized(plain.qann, plain.batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_made_under_another_default_dtype(plain, dtype, tmp_path):
    """Copies keep the types of what they are made from; scales are float32 or wider whatever is the default."""
    plain.qann.save_pretrained(tmp_path)
    with default_dtype(dtype):
        snn = type(plain.snn).from_quantized(plain.qann, **plain.architecture.spiking, time_steps=48)
        new = type(plain.qann)(copy.deepcopy(plain.qann.config))
        loaded = type(plain.qann).from_pretrained(tmp_path, dtype=torch.float32)
    assert answers(snn, plain.batch) == undisturbed(plain)
    assert torch.equal(quantized(loaded, plain.batch), quantized(plain.qann, plain.batch))
    assert {quantizer.scale.dtype for quantizer in new.quantizers} == {torch.promote_types(dtype, torch.float32)}


def test_number_of_threads(own):
    """Of torch and of the kernels: products of integers have one answer, and levels are the same anyway."""
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found = run(own.snn, own.batch, output_time_steps=True)
            assert_same_samples(found, reference(own.name, own.qann.dtype), own.exact)
            assert torch.equal(found.readout, quantized(own.qann, own.batch))
    finally:
        torch.set_num_threads(threads)


def test_run_after_run(plain):
    """Nothing is left of a run, whatever came in between: another batch, another length, an error."""
    half = {name: tensor[:3] for name, tensor in plain.batch.items()}
    broken = {
        name: tensor * float("nan") if tensor.is_floating_point() else tensor - 9 for name, tensor in half.items()
    }
    run(plain.snn, half, time_steps=6)
    with pytest.raises(ValueError, match=r"finite|must"):
        run(plain.snn, broken)
    run(plain.snn, half, execution="event", time_steps=6)
    assert fingerprint(run(plain.snn, plain.batch, output_time_steps=True)) == undisturbed(plain)
