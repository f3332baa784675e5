"""The kernel for GPUs against the reference, to the bit: in Triton's interpreter, and on a GPU where there is one."""

import json
import os
import random
import re
import subprocess
import sys
from unittest import mock

import pytest
import torch

from spikezip_hf.kernels import gpu
from spikezip_hf.models import neurons
from spikezip_hf.models.neurons import fire_reference
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, Timeline
from tests.kernels.test_native import FLOATS, INT32, LAYOUTS, laid_out, sprinkled
from tests.models.test_fast_engine import make_inputs, make_snn

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None,
    reason="no CUDA device: the kernel was never run on one",
)
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


# What is run in the interpreter, in one process for all: Triton has to know of it before it is imported, and other
# tests are to be left alone.
PARTS = {
    "importing": "assert not imported_early",
    "random cases": "hold_to_reference(library, range(130))",
    "named cases": "hold_named_cases(library)",
    "what does not fit": "refuse_what_does_not_fit(library)",
    "networks": "hold_network(library, 6)",
    "the check of itself": "assert library.gives_reference()",
    "the check with another division": "inexact_division_is_noticed(library)",  # the last: it stays so
}
SCRIPT = """
import json, sys, traceback
from tests.kernels.test_gpu import *
imported_early = "spikezip_hf.kernels.neurons_triton" in sys.modules
library = gpu.GpuLibrary(torch.device("cpu"))
library.triton.RUNS = 1
failures = {}
for name, code in PARTS.items():
    try:
        exec(code)
    except BaseException:
        failures[name] = traceback.format_exc()
json.dump(failures, sys.stdout)
"""


@pytest.fixture(scope="module")
def failures():
    """Of the parts, {name: traceback}."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPIKEZIP_KERNELS": "reference", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_in_the_interpreter(part, failures):
    assert part not in failures, failures[part]


def hold_to_reference(library: gpu.GpuLibrary, seeds: range) -> None:
    """A random case for each seed."""
    for seed in seeds:
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        levels, signed = draw.choice([4, 16, 32, 128]), draw.random() < 0.5
        features = draw.choice([1, 2, 5, 16, 33, 130])
        shape = draw.choice([(features,), (1, features), (7, features), (2, 5, features)])
        steps, samples = draw.randint(1, 6), draw.randint(1, 3)
        node = LSQQuantizer(levels, signed, features, per_channel=draw.random() < 0.5)
        scales = torch.rand(node.scale.shape, generator=generator) * draw.choice([1e-6, 2.0, 1e6, 1e30])
        node.set_scale(scales.clamp_min(2.0**-27))

        changed = torch.rand(steps, samples, generator=generator) < draw.choice([0.0, 0.3, 1.0])
        changed[0] = True
        timeline = Timeline(changed)
        size = (timeline.num_rows, *shape)
        kind = draw.choice(["values", "ties", "int32", "float32"])
        if kind in ("values", "ties"):
            x = torch.randn(size, generator=generator) * levels
            if kind == "ties":
                x = (x.round() + 0.5) * node.scale.detach()
                beside = torch.randint(-1, 2, size, generator=generator)
                x = torch.where(beside == 0, x, x.nextafter(beside * torch.tensor(float("inf"))))
            x = sprinkled(x, FLOATS, generator)
            current = Rows(laid_out(x, draw.choice(LAYOUTS)) if len(shape) > 1 else x, timeline=timeline)
        else:
            sums = torch.randint(-(2**12), 2**12, size, generator=generator, dtype=torch.int32)
            sums = sprinkled(sums, INT32, generator) if kind == "int32" else sums.float()
            scale = torch.rand(draw.choice([1, features]), generator=generator) * draw.choice([1e-38, 0.02, 1e30])
            bias = draw.choice([None, torch.randn(features, generator=generator)])
            if bias is not None and draw.random() < 0.5:  # that takes the product back to a tie
                at = (torch.randint(-levels, levels, (features,), generator=generator) + 0.5) * node.scale.detach()
                bias = at - sums.flatten(0, -2)[0] * scale
            current = Rows(integers=sums, scale=scale, bias=bias, dtype=torch.float32, timeline=timeline)

        tracer = torch.randint(node.min_level, node.max_level + 1, (samples, *shape), generator=generator).to(
            torch.int8
        )
        tokens = None
        if len(shape) > 1 and draw.random() < 0.5:
            tokens = torch.rand(samples, shape[-2], generator=generator) < 0.6
        gate = draw.choice([1, 2, 5, levels - 1]), draw.randint(0, steps), draw.randint(0, steps)
        block = draw.choice([16, 64, 256, 1024] if tracer[0].numel() < 100 else [256, 512, 1024])
        assert_fires_as_reference(library, node, current, tracer, tokens, gate, block)


def on(device, *tensors):
    return [None if x is None else x.to(device) for x in tensors]


def assert_fires_as_reference(library, node, current, tracer, tokens, gate, block=256):
    """Levels, counts, whether at rest, and whether NaN was there; of what is NaN, the report alone."""
    from spikezip_hf.kernels.neurons_triton import triton

    device, timeline = library.device, current.timeline
    node, current = node.to(device), current.to(device)
    tracer, tokens = on(device, tracer, tokens)
    given = current.integers, current.scale, current.bias
    given = given if current.integers is not None else (current.values, None, None)
    threshold, bounds = node.threshold(torch.float32), (node.min_level, node.max_level)
    assert library.takes_neurons(*given, threshold, timeline.index, tracer, tokens)
    found_tracer, memory = tracer.clone(), given[0].clone()
    levels, changed, row_of, counts, at_target, undefined = library.fire(
        *given, threshold, bounds, timeline.index, found_tracer, tokens, *gate,
        configuration=triton.Config({"BLOCK": block}),
    )  # fmt: skip
    expected = fire_reference(node, current, tracer.clone(), tokens, *gate)
    assert bool(undefined) == bool(expected.undefined)
    assert torch.equal(given[0].nan_to_num(7), memory.nan_to_num(7))
    steps, samples = timeline.index.shape
    assert levels.dtype == torch.int8
    assert levels.shape == (steps * samples, *tracer.shape[1:])
    assert changed.all()
    assert row_of.flatten().tolist() == list(range(steps * samples))
    assert counts.dtype == expected.counts.dtype
    assert at_target.dtype == torch.bool
    if not undefined:
        everything = expected.levels[expected.timeline.index.flatten().to(device)]  # on a CPU it leaves rows out
        assert torch.equal(levels, everything)
        assert torch.equal(found_tracer, expected.tracer)
        assert torch.equal(counts, expected.counts)
        assert torch.equal(at_target, expected.at_target)
        if not tracer.any():
            fresh = torch.full_like(tracer, 77)
            again, *_ = library.fire(*given, threshold, bounds, timeline.index, fresh, tokens, *gate, fresh=True)
            assert torch.equal(again, everything)
            assert torch.equal(fresh, expected.tracer)
    return levels, counts, at_target, bool(undefined)


def hold_named_cases(library: gpu.GpuLibrary) -> None:
    """What each of the properties is about, by itself."""
    node = LSQQuantizer(16, True, 1)
    node.set_scale(torch.tensor([0.5]))
    x = torch.tensor([[0.25, -0.25, 0.75, -0.75, 1.25, -1.25, 0.2499, -0.2501]])
    current = Rows(x, timeline=Timeline.constant(1, 1))
    rest = torch.zeros(1, 8, dtype=torch.int8)
    levels, *_ = assert_fires_as_reference(library, node, current, rest, None, (15, 0))
    assert levels.flatten().tolist() == [1, 0, 2, -1, 3, -2, 0, -1]  # ties go up

    for count, signed in ((128, True), (126, False)):  # the largest jump in a byte
        node = LSQQuantizer(count, signed, 1)
        node.set_scale(torch.ones(1))
        x = torch.tensor([float("inf"), -float("inf"), 1e9, -1e9]).reshape(4, 1).repeat(1, 300)
        current = Rows(x, timeline=Timeline(torch.ones(4, 1, dtype=torch.bool)))
        rest = torch.zeros(1, 300, dtype=torch.int8)
        _, counts, *_ = assert_fires_as_reference(library, node, current, rest, None, (count - 1, 0))
        assert counts[1].item() == 300 * (count - 1)  # more than fits in 16 bits

    node = LSQQuantizer(16, True, 4)
    node.set_scale(torch.ones(1))
    rest = torch.zeros(2, 4, dtype=torch.int8)
    for closed in (0, 2, 5, 9):  # come to rest early or not at all
        current = Rows(torch.tensor([[3.0, -2.0, 0.0, 1.0], [7.0] * 4]), timeline=Timeline.constant(9, 2))
        _, _, at_target, _ = assert_fires_as_reference(library, node, current, rest, None, (1, closed))
        assert at_target.tolist() == [9 - closed >= 3, 9 - closed >= 7]

    for step in (0, 3):  # NaN is reported, but for that of padding
        for tokens, seen in ((None, True), ([True, True, True], True), ([True, False, True], False)):
            x = torch.zeros(4, 3, 5)
            x[step, 1, 2] = float("nan")
            mask = None if tokens is None else torch.tensor([tokens])
            current = Rows(x, timeline=Timeline(torch.ones(4, 1, dtype=torch.bool)))
            rest = torch.zeros(1, 3, 5, dtype=torch.int8)
            *_, undefined = assert_fires_as_reference(library, node, current, rest, mask, (1, 4))
            assert undefined is seen
    sums = torch.tensor([[3.0, 1.0]])
    current = Rows(
        integers=sums,
        scale=torch.tensor([3e38]),
        bias=torch.tensor([-float("inf"), 1.0]),
        dtype=torch.float32,
        timeline=Timeline.constant(1, 1),
    )
    *_, undefined = assert_fires_as_reference(
        library, node, current, torch.zeros(1, 2, dtype=torch.int8), None, (1, 0)
    )
    assert undefined  # infinity less infinity
    node = LSQQuantizer(16, True, 1)
    node.set_scale(torch.ones(1))
    for tokens, seen in ([True, False], True), ([False, False], False):  # padding gets no bias either
        current = Rows(
            integers=torch.ones(1, 2, 3),
            scale=torch.ones(1),
            bias=torch.tensor([1.0, float("nan"), 5.0]),
            dtype=torch.float32,
            timeline=Timeline.constant(2, 1),
        )
        rest, mask = torch.zeros(1, 2, 3, dtype=torch.int8), torch.tensor([tokens])
        *_, undefined = assert_fires_as_reference(library, node, current, rest, mask, (1, 0))
        assert undefined is seen


def hold_network(library: gpu.GpuLibrary, time_steps: int) -> None:
    """A whole network whose neurons are the kernel's."""
    for architecture in ("vit", "bert"):
        snn = make_snn(architecture, granularity="mixed", weight_bits=8).to(library.device)
        batch = {name: x.to(library.device) for name, x in make_inputs(snn).items()}
        arguments = {"time_steps": time_steps, "output_time_steps": True}
        ran = mock.Mock(wraps=library.fire)
        with (
            mock.patch.object(neurons, "compiled", return_value=library),
            mock.patch.object(library, "fire", ran),
        ):
            out = snn(**batch, **arguments)
        assert ran.called
        with mock.patch.object(neurons, "compiled", return_value=None):
            reference = snn(**batch, **arguments)
        for name in ("logits", "logits_per_step", "spike_counts", "equilibrium_step"):
            assert torch.equal(getattr(out, name), getattr(reference, name)), name


def refuse_what_does_not_fit(library: gpu.GpuLibrary) -> None:
    """The reference has to do it then."""
    x, one, index = torch.zeros(2, 3, 4), torch.ones(1), torch.tensor([[0], [1]])
    tracer, tokens = torch.zeros(1, 3, 4, dtype=torch.int8), torch.ones(1, 3, dtype=torch.bool)
    fits = {"current": x, "scale": None, "bias": None, "threshold": one, "index": index}
    fits |= {"tracer": tracer, "tokens": tokens}
    assert library.takes_neurons(**fits)
    for other in (
        {"tracer": tracer.short()},  # more than 128 levels
        {"tracer": tracer.mT.contiguous().mT},
        {"tracer": tracer[:, :2]},
        {"tracer": tracer[:, :0]},
        {"current": x.double()},
        {"current": x.half()},
        {"current": x.int()},  # sums without a scale
        {"bias": one},
        {"scale": one.double()},
        {"threshold": torch.ones(3)},
        {"index": index + 1},
        {"index": index.repeat(1, 2)},
        {"tokens": tokens.int()},
        {"tokens": tokens.mT},
        {"current": x[:, 0], "tracer": tracer[:, 0].contiguous()},  # tokens without positions
        {"current": x.to("meta")},
        {"current": object()},
    ):
        assert not library.takes_neurons(**{**fits, **other}), other


def inexact_division_is_noticed(library: gpu.GpuLibrary) -> None:
    """By the check of itself, in the interpreter, whose division is replaced for good."""
    from triton.runtime.interpreter import InterpreterBuilder

    InterpreterBuilder.create_precise_divf = lambda self, x, y: self.binary_op(x, y, lambda x, y: x * (1 / y))
    assert not library.gives_reference()


@needs_gpu
class TestOnTheDevice:
    @pytest.fixture(scope="class")
    def library(self):
        """Its check of itself has been passed."""
        found = gpu.gpu_library(torch.device("cuda", torch.cuda.current_device()))
        assert found is not None
        return found

    def test_fires_as_the_reference_does(self, library):
        hold_to_reference(library, range(100))
        hold_named_cases(library)

    def test_of_many_neurons(self, library):
        """Of the size of a real node, with the configuration that autotuning chooses."""
        generator = torch.Generator().manual_seed(0)
        node = LSQQuantizer(32, True, 768).to(library.device)
        x = (torch.randn(8 * 16, 197, 768, generator=generator) * 2).to(library.device)
        tracer = torch.zeros(16, 197, 768, dtype=torch.int8, device=library.device)
        timeline = Timeline(torch.ones(8, 16, dtype=torch.bool))
        expected = fire_reference(node, Rows(x, timeline=timeline), tracer.clone())
        threshold, bounds = node.threshold(torch.float32), (node.min_level, node.max_level)
        levels, _, _, counts, at_target, undefined = library.fire(
            x, None, None, threshold, bounds, timeline.index, tracer, None, 1, 0
        )
        assert torch.equal(levels, expected.levels)
        assert torch.equal(tracer, expected.tracer)
        assert torch.equal(counts, expected.counts)
        assert torch.equal(at_target, expected.at_target)
        assert not undefined

    def test_of_networks(self, library):
        hold_network(library, 40)


@pytest.mark.skipif(interpreted, reason="Triton is interpreted: it compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("current", ["fp32", "i32"])
@pytest.mark.parametrize("size", ["some", "one"])
def test_what_triton_compiles_rounds_as_the_reference(capability, current, size, tmp_path, monkeypatch):
    """It needs no GPU to be read. A division that is correctly rounded, and no fused multiply-add."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx = compiled_for(capability, current, size, enable_fp_fusion=False)
    assert re.findall(r"\bdiv\.\S+", ptx)
    assert set(re.findall(r"\bdiv\.\S+", ptx)) <= {"div.rn.f32", "div.s32", "div.u32"}
    assert not re.findall(r"\bfma\b", ptx)
    flushing = set(re.findall(r"\S+\.ftz\S*", ptx))
    # floor of x / s + 1/2 is of nothing that could be flushed: it is 0 or at least 2^-25.
    assert flushing <= {"cvt.rmi.ftz.f32.f32"}
    if current == "i32":
        assert "cvt.rn.f32.s32" in ptx
        assert "fma.rn.f32" in compiled_for(capability, current, size, enable_fp_fusion=True)  # were it not forbidden


def compiled_for(capability: int, current: str, size: str, **options) -> str:
    """The kernel's PTX for a GPU that is not there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from spikezip_hf.kernels.neurons_triton import neurons as kernel

    numbers = ("positions", "steps", "samples", "most", "closed", "scales", "biases", "thresholds", "size_class")
    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= {"current": f"*{current}", "threshold": "*fp32", "tracer": "*i8", "levels": "*i8", "report": "*i64"}
    signature |= {"low": "fp32", "high": "fp32", "scale": "*fp32", "bias": "*fp32", "tokens": "*u8", "index": "*i64"}
    constants = {"BLOCK": 256}
    if current == "fp32":
        constants |= dict.fromkeys(("scale", "bias", "tokens", "index"))
    if size == "one":
        constants |= {"count": 1, "features": 1}  # as Triton specializes them
    signature |= dict.fromkeys(constants, "constexpr")
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = [name for name in kernel.arg_names if signature[name] != "constexpr" and name not in numbers]
    source = ASTSource(
        kernel,
        signature,
        {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in aligned if not signature[name].startswith("fp")},
    )
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, **options}).asm["ptx"]


class TestTheCheckOfItself:
    def test_its_cases_notice_what_could_be_wrong(self):
        """Without Triton: with another division, or with products and sums rounded once, plain torch differs too."""
        noticed = {"division": 0, "contraction": 0, "ties": 0}
        for case in gpu.hard_cases(torch.device("cpu")):
            right = gpu.plain(**case)[0]
            x, s, scale, bias = case["current"].float(), case["threshold"], case["scale"], case["bias"]
            if scale is not None:
                fused = (x.double() * scale.double() + (0 if bias is None else bias.double())).float()
                noticed["contraction"] += not torch.equal(right, self.levels(case, fused, s))
                x = x * scale
                x = x if bias is None else x + bias
            noticed["division"] += not torch.equal(right, self.levels(case, x * (1 / s), torch.ones(1)))
            noticed["ties"] += not torch.equal(right, self.levels(case, (x / s).round(), torch.ones(1)))
        assert all(noticed.values()), noticed

    def levels(self, case, values, threshold):
        values = {"current": values, "scale": None, "bias": None, "threshold": threshold}
        return gpu.plain(**{**case, **values})[0]


class TestFallingBack:
    @pytest.fixture(autouse=True)
    def _unasked(self, monkeypatch):
        monkeypatch.delenv("SPIKEZIP_KERNELS", raising=False)
        gpu.gpu_library.cache_clear()
        yield
        gpu.gpu_library.cache_clear()

    @pytest.fixture
    def messages(self, monkeypatch):
        said = []
        monkeypatch.setattr(gpu.logger, "warning", said.append)
        return said

    def test_where_there_is_no_gpu(self, messages):
        assert gpu.gpu_library(torch.device("cpu")) is None
        assert gpu.gpu_library(torch.device("meta")) is None
        assert not messages

    def test_reference_can_be_chosen(self, monkeypatch):
        monkeypatch.setenv("SPIKEZIP_KERNELS", "reference")
        with mock.patch.object(gpu, "GpuLibrary", mock.Mock(side_effect=AssertionError("looked at"))):
            assert gpu.gpu_library(torch.device("cuda", 0)) is None
        gpu.gpu_library.cache_clear()
        monkeypatch.setenv("SPIKEZIP_KERNELS", "fast")
        with pytest.raises(ValueError, match="SPIKEZIP_KERNELS must be 'auto' or 'reference', got 'fast'"):
            gpu.gpu_library(torch.device("cuda", 0))

    def test_without_triton(self, monkeypatch, messages):
        import spikezip_hf.kernels

        name = "spikezip_hf.kernels.neurons_triton"
        monkeypatch.delattr(spikezip_hf.kernels, "neurons_triton", raising=False)
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)
        assert gpu.gpu_library(torch.device("cuda", 0)) is None
        assert not messages  # nothing is wrong

    def test_a_check_that_fails(self, messages):
        pytest.importorskip("triton")
        with mock.patch.object(gpu.GpuLibrary, "gives_reference", return_value=False):
            for _ in range(2):
                assert gpu.gpu_library(torch.device("cuda", 0)) is None
        (message,) = messages  # said once
        assert "not exact" in message

    def test_a_kernel_that_cannot_be_built(self, messages):
        pytest.importorskip("triton")
        with (
            mock.patch.object(gpu.GpuLibrary, "fire", side_effect=RuntimeError("no compiler")),
            mock.patch.object(gpu, "hard_cases", return_value=iter([{}])),
            mock.patch.object(gpu, "plain"),
        ):
            for _ in range(2):
                assert gpu.gpu_library(torch.device("cuda", 0)) is None
        (message,) = messages
        assert "RuntimeError: no compiler" in message
