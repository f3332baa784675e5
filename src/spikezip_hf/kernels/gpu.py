# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The neurons of a node on an NVIDIA GPU, by a kernel in Triton (`neurons_triton.py`), where triton is there.

In plain torch each step of a chunk is several passes over memory; here a neuron stays in registers through all steps.

**It was never run on a GPU.** There was none: it was held to the reference in Triton's interpreter, on a CPU, and what
Triton's compiler makes of it for some GPUs was read. So nothing is known of its speed, and of its bits only what
follows from that. Therefore small cases, of inputs at which an inexact division or a fused multiply-add would show,
are computed on the device before the first use; if one does not come out as plain torch has it there, the reference
does the work. With `SPIKEZIP_KERNELS=reference` in the environment nothing of this is looked at.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache

import torch
from transformers.utils import logging

from . import wanted
from .deferred import is_spread

logger = logging.get_logger(__name__)


@cache
def gpu_library(device: torch.device) -> "GpuLibrary | None":
    """The kernel for this device; None where it cannot be had, and then the reference does the work."""
    if not wanted() or device.type != "cuda" or torch.version.hip is not None:
        return None
    try:
        built = GpuLibrary(device)
    except ImportError:
        logger.info("triton is not installed: on a GPU the reference does the work of neurons.")
        return None
    except Exception as error:
        logger.warning(f"triton cannot be used, the reference does the work of neurons: {said_by(error)}")
        return None
    try:
        with torch.device("cpu"):  # where its cases are made, whatever the default is
            exact = built.gives_reference()
    except Exception as error:  # of the compiler, its own compiler, the driver: whatever it is, there is another way
        logger.warning(f"The GPU kernel could not be built, the reference does the work: {said_by(error)}")
        return None
    if not exact:
        logger.warning(
            "The GPU kernel, as triton built it for this device, is not exact: the reference does the work."
        )
        return None
    return built


def said_by(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[-500:]}"


class GpuLibrary:
    """The kernel, on tensors of one device. It has neurons only, as `native.Library` takes and runs them.

    Args:
        device: a CUDA device; or the CPU, if triton was imported with `TRITON_INTERPRET=1`.

    Raises:
        ImportError: triton is not installed.
    """

    def __init__(self, device: torch.device):
        from . import neurons_triton

        self.device = device
        self.triton = neurons_triton

    def takes_neurons(
        self,
        current: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: torch.Tensor,
        index: torch.Tensor,
        tracer: torch.Tensor,
        tokens: torch.Tensor | None,
    ) -> bool:
        """Whether all is of the types that the kernel reads and of shapes that fit one another."""
        return (
            isinstance(current, torch.Tensor)
            and current.dtype in (torch.float32, torch.int32)
            and (scale is not None or (current.dtype == torch.float32 and bias is None))
            and tracer.dtype == torch.int8
            and tracer.is_contiguous()
            and 0 < tracer.numel() < 2**31
            and current.shape[1:] == tracer.shape[1:]
            and index.device.type == "cpu"  # else to look at it would wait for the device
            and index.shape[1] == len(tracer)
            and int(index.max()) < current.shape[0]
            and index.numel() < 2**31
            and all(is_spread(x, current.shape[-1]) for x in (scale, bias, threshold))
            and (tokens is None or tokens.dtype == torch.bool)
            and (tokens is None or (tracer.dim() > 2 and tokens.shape == (len(tracer), current.shape[-2])))
            and all(x is None or x.device == self.device for x in (current, scale, bias, threshold, tracer, tokens))
        )

    def fire(
        self,
        current: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: torch.Tensor,
        bounds: tuple[int, int],
        index: torch.Tensor,
        tracer: torch.Tensor,
        tokens: torch.Tensor | None,
        max_spikes: int,
        closed_steps: int,
        coarse_steps: int = 0,
        fresh: bool = False,
        configuration=None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `models.neurons.Firing`; `tracer`, contiguous, is left as after the last step.

        Nothing here waits for the device, but for the first call of a class of sizes, which tries the configurations.

        Args:
            fresh: as for `native.Library.fire`.
            configuration: of the launch, one of triton's; if None the fastest, found out for each class of sizes.

        Returns:
            A row of levels for each step and sample; that all have a row, (T, B), and which it is, both on the CPU;
            counts; whether at target; whether a current is NaN, a scalar on the device.
        """
        if fresh:
            tracer.zero_()
        steps, samples = index.shape
        count, features = tracer.numel() // samples, current.shape[-1]
        own_row = torch.arange(index.numel(), device="cpu").view(index.shape)
        all_rows = current.shape[0] == index.numel() and torch.equal(index, own_row)
        levels = torch.empty(steps * samples, *tracer.shape[1:], dtype=torch.int8, device=self.device)
        report = torch.zeros((steps + 1) * samples + 1, dtype=torch.int64, device=self.device)
        given = {
            "current": current.contiguous(),
            "scale": scale,
            "bias": bias,
            "threshold": threshold,
            "tokens": None if tokens is None else tokens.contiguous().view(torch.uint8),
            "index": None if all_rows else index.long().contiguous().to(self.device, non_blocking=True),
            "tracer": tracer,
            "levels": levels,
            "report": report,
            "count": count,
            "features": features,
            "positions": 1 if tokens is None else tokens.shape[-1],
            "steps": steps,
            "samples": samples,
            "low": float(bounds[0]),
            "high": float(bounds[1]),
            "most": max_spikes,
            "closed": closed_steps,
            "coarse": coarse_steps,
            **{
                name: int(number is not None and number.numel() > 1)
                for name, number in (("scales", scale), ("biases", bias), ("thresholds", threshold))
            },
            "size_class": 2 * tracer.numel().bit_length() + int(steps > 1),
            "enable_fp_fusion": False,  # no contraction of a * b + c, see neurons_triton.py
        }
        if configuration is not None:
            kernel, given = self.triton.neurons, {**given, **configuration.all_kwargs()}
        else:
            kernel = self.triton.tuned_neurons

        def grid(chosen):
            return (-(-count // chosen["BLOCK"]) * samples,)

        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[grid](**given)
            # Not by the kernel: what it reads it leaves alone, so that autotuning can run it again.
            tracer.copy_(levels[-samples:])
        counts, behind = report[:-1].view(steps + 1, samples).split([steps, 1])
        changed = torch.ones(steps, samples, dtype=torch.bool, device="cpu")
        return levels, changed, own_row, counts, behind[0] == 0, report[-1] > 0

    def gives_reference(self) -> bool:
        """Whether hard cases come out as plain torch has them on this device, in every configuration."""
        for configuration in (*self.triton.CONFIGURATIONS, None):
            for case in hard_cases(self.device):
                expected = plain(**case)
                if not same(self.fire(**case, configuration=configuration), expected):
                    return False
        case = next(hard_cases(self.device))
        case["current"][1, 0, 0] = float("nan")
        return bool(self.fire(**case)[-1])


def same(found: tuple, expected: tuple) -> bool:
    """Whether `fire` has returned what `plain` has."""
    levels, _, _, counts, at_target, undefined = found
    pairs = zip((levels, counts, at_target, undefined), expected)
    return all(torch.equal(a, b) for a, b in pairs)


def plain(
    current, scale, bias, threshold, bounds, index, tracer, tokens, max_spikes, closed_steps, coarse_steps
) -> tuple[torch.Tensor, ...]:
    """`GpuLibrary.fire` in plain torch: levels, counts, whether at target, whether undefined.

    Not `models.neurons.fire_reference`, which would ask for this very library.
    """
    x = current.float()
    x = x if scale is None else x * scale
    x = (x if bias is None else x + bias)[index.to(x.device)]
    targets = torch.floor(x / threshold + 0.5).clamp(*bounds).to(torch.int8)
    if tokens is not None:
        padding = ~tokens.view(len(tokens), *(1,) * (tracer.dim() - 3), -1, 1)
        x, targets = x.masked_fill(padding, 0.0), targets.masked_fill(padding, 0)
    levels, counts = [], []
    for step, target in enumerate(targets):
        k = 0 if step < closed_steps else max_spikes
        jump = (target - tracer).clamp(-k, k)
        jump = jump.masked_fill((target - tracer).abs() < (2 if step < coarse_steps else 1), 0)
        tracer = tracer + jump
        levels.append(tracer)
        counts.append(jump.flatten(1).abs().sum(-1, dtype=torch.int64))
    at_target = (tracer == targets[-1]).flatten(1).all(1)
    return torch.cat(levels), torch.stack(counts), at_target, x.isnan().any()


def hard_cases(device: torch.device) -> Iterator[dict]:
    """What `fire` is given where another division, or another rounding of sum * scale + bias, gives other levels.

    Made on the CPU, so that it is the same on every device.
    """
    generator = torch.Generator().manual_seed(0)
    steps, samples, positions, features = 3, 2, 5, 70
    size = steps * samples, positions, features
    arguments = {
        "scale": None,
        "bias": None,
        "threshold": torch.ones(1),
        "bounds": (-8, 7),
        "index": torch.arange(steps * samples).view(steps, samples),
        "tracer": torch.zeros(samples, positions, features, dtype=torch.int8),
        "tokens": None,
        "max_spikes": 15,
        "closed_steps": 0,
        "coarse_steps": 0,
    }

    def case(**others) -> dict:
        given = {**arguments, **others}
        on_device = {name: x.to(device, copy=True) for name, x in given.items() if isinstance(x, torch.Tensor)}
        return {**given, **on_device, "index": given["index"]}

    # Ties of the quantizer, and the numbers beside them.
    threshold = torch.rand(features, generator=generator) + 0.05
    x = (torch.randint(-9, 9, size, generator=generator) + 0.5) * threshold
    x[:, 1] = x[:, 1].nextafter(torch.tensor(float("inf")))
    x[:, 2] = x[:, 2].nextafter(torch.tensor(-float("inf")))
    x[::2, 3, :3] = torch.tensor([float("inf"), -float("inf"), 0.0])
    yield case(current=x, threshold=threshold)

    # Sums whose product with the scale is rounded, and a bias that takes it back to a tie; samples with timelines of
    # their own, padding, a step in which nothing may fire.
    sums = torch.randint(2**19, 2**20, (features,), generator=generator)
    scale = torch.rand(features, generator=generator) / 50 + 0.01
    bias = (torch.randint(-8, 7, (features,), generator=generator) + 0.5) - sums.float() * scale
    currents = sums + torch.randint(-1, 2, size, generator=generator)
    currents[:, 0] = sums
    index = torch.tensor([[0, 1], [2, 1], [2, 3]])
    tokens = torch.rand(samples, positions, generator=generator) < 0.7
    tokens[:, 0] = True
    affine = {"scale": scale, "bias": bias}
    yield case(
        current=currents.int(), **affine, index=index, tokens=tokens, max_spikes=1, closed_steps=1, coarse_steps=2
    )
    yield case(current=currents.float(), **affine)

    # One scale for all and no bias, and levels that fill a byte.
    sums = torch.randint(-200, 200, size, generator=generator).float()
    tracer = torch.randint(0, 128, (samples, positions, features), generator=generator, dtype=torch.int8)
    scale, threshold = torch.tensor([1 / 3]), torch.tensor([2 / 3])
    yield case(
        current=sums,
        scale=scale,
        threshold=threshold,
        bounds=(0, 127),
        index=index.flip(1),
        tracer=tracer,
        max_spikes=5,
    )
