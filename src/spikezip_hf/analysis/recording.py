"""What a spiking network does in a run: logits, spikes and levels after each step, exactly as they were simulated.

Forward hooks record it. A simulation calls each node once for every chunk of steps, whatever engine it runs on, and by
then the engine has the node's spikes of each step and sample; so hooks need no engine of their own, no copy of the
loop through time, and see the very run that `model(...)` makes: the fast one, with steps as rows and settled samples
left out.

`record` keeps logits and counts, 4 bytes for each sample, step and node. Levels, from which rasters, attention and
feature maps follow, are kept of one sample and chosen nodes alone: see `closeup`.
"""

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.analysis.answers import answers
from spikezip_hf.conversion.certificate import certify, check_twins
from spikezip_hf.models.configuration_quantization import check_positive_integer
from spikezip_hf.models.engines import SpikingEngine
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel, eval_mode
from spikezip_hf.models.rows import Rows
from spikezip_hf.models.simulation import Trajectory


@dataclass(frozen=True, eq=False)
class Recording:
    """What a spiking classifier did on N samples, in T steps: up to where the last of them settled.

    Attributes:
        node_names: of the nodes, the last dimension of what follows.
        time_steps: most steps that a sample was given; after step T nothing changed any more.
        logits_per_step: (N, T, classes) after each step; after step T those of the step that proved equilibrium, which
            are the quantized network's to the bit.
        spikes: (N, T, nodes) int32, spikes in each step, of either sign; a graded spike of size m counts m.
        neurons: (N, nodes) int64, those of padding left out.
        final_levels: (N, nodes) int64, sum over the neurons of |level| after step T: no way there takes fewer spikes.
        equilibrium_step: (N,) int64, T_eq; -1: not proven.
        exact: (N,) bool, at equilibrium with every level and logit of the quantized network.
        expected: (N,) int64, classes of the quantized network.
        labels: (N,) int64, or None.
    """

    node_names: tuple[str, ...]
    time_steps: int
    logits_per_step: torch.Tensor
    spikes: torch.Tensor
    neurons: torch.Tensor
    final_levels: torch.Tensor
    equilibrium_step: torch.Tensor
    exact: torch.Tensor
    expected: torch.Tensor
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.equilibrium_step)

    def select(self, samples: Collection[int]) -> "Recording":
        """That of these samples, in this order."""
        of_samples = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("node_names", "time_steps")
        }
        chosen = {name: None if x is None else x[list(samples)] for name, x in of_samples.items()}
        return replace(self, **chosen)  # type: ignore[arg-type]

    @property
    def predictions(self) -> torch.Tensor:
        """(N, T) int64, class after each step."""
        return self.logits_per_step.argmax(-1)

    @property
    def firing_rate(self) -> torch.Tensor:
        """(N, T, nodes) float64, spikes per neuron per step."""
        return self.spikes / self.neurons[:, None].double()

    def mean_firing_rate(self) -> torch.Tensor:
        """(T, nodes) float64, spikes per neuron per step over all samples, the settled ones, which fire none, too."""
        return self.spikes.sum(0, dtype=torch.int64) / self.neurons.sum(0).double()


class Watch:
    """Hooks on a model that keep what its nodes do in one run.

    Whoever runs the model meets the hooks: those of another thread are let by, and not recorded.

    Args:
        kept: names of nodes of which to keep levels, of a batch of one.

    Attributes:
        passes: for each pass, steps done before it, and {node name: (chunk, B) int32 spikes}.
        levels: {node name: [(chunk, ...) of each pass]}.
    """

    def __init__(self, kept: Collection[str] = ()):
        self.engine: SpikingEngine | None = None
        self.thread: int | None = None
        self.passes: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.levels: dict[str, list[torch.Tensor]] = {name: [] for name in kept}

    @contextmanager
    def of(self, model: SpikePreTrainedModel) -> Iterator["Watch"]:
        """Watch a model while inside, as this thread runs it."""
        self.thread = threading.get_ident()
        handles = [node.register_forward_hook(self.fired) for node in model.nodes]
        handles.append(model.base_model.register_forward_pre_hook(self.begin, with_kwargs=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, module, args, kwargs) -> None:
        if threading.get_ident() != self.thread:
            return
        engine = kwargs.get("engine")
        # The event-driven form also makes one pass of the QANN, which is no part of the run.
        self.engine = engine if isinstance(engine, SpikingEngine) else None
        if self.engine is not None:
            self.passes.append((self.engine.step, {}))

    def fired(self, node, args, emitted) -> None:
        engine = self.engine
        if engine is None or threading.get_ident() != self.thread:
            return
        counts = engine.firing[node.name][0]
        spikes = torch.zeros(engine.chunk, engine.batch_size, dtype=torch.int32, device=counts.device)
        spikes[:, slice(None) if engine.samples is None else engine.samples.to(counts.device)] = counts.int()
        self.passes[-1][1][node.name] = spikes
        if node.name in self.levels:
            if isinstance(emitted, Rows) and emitted.integers is not None and emitted.timeline is not None:
                levels = emitted.integers[emitted.timeline.index[:, 0].to(emitted.device)]
            else:
                levels = engine.tracers[node.name].clone()  # one step of the event-driven form
            self.levels[node.name].append(levels.to(node.level_dtype).cpu())

    @property
    def steps(self) -> int:
        """How many steps were run, of the sample that took the most."""
        return max(done + len(next(iter(nodes.values()))) for done, nodes in self.passes)

    def spikes(self, steps: int) -> torch.Tensor:
        """(B, steps, nodes) int32; none in steps that were not run, or no longer had to be."""
        passes = [(done, torch.stack(list(nodes.values()), -1).cpu()) for done, nodes in self.passes]
        found = passes[0][1].new_zeros(max(steps, self.steps), *passes[0][1].shape[1:])
        for done, spikes in passes:
            found[done : done + len(spikes)] += spikes  # of other samples than before, or in other steps
        return found[:steps].transpose(0, 1).contiguous()


@torch.no_grad()
def record(
    model: SpikePreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    time_steps: int | None = None,
    *,
    twin: TwinPreTrainedModel | None = None,
    execution: str = "cumulative",
) -> Recording:
    """Simulate batches until each sample has settled, and keep logits and spikes of every step.

    Args:
        model: spiking classifier of images or texts.
        batches: dicts of its inputs, with "labels" (B,) or without.
        time_steps: most steps a sample is given; the config's by default.
        twin: the quantized network to hold it against; its own weights, quantized, by default.
        execution: "cumulative", or "event", the paper's operators step by step.

    Raises:
        ValueError: no batches, or a model that is no classifier of samples.
    """
    check_classifier(model)
    time_steps = model.config.time_steps if time_steps is None else time_steps
    check_positive_integer("time_steps", time_steps)
    twin = model.to_quantized() if twin is None else twin
    check_twins(twin, model)
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in tqdm(batches, desc="simulating", unit="batch"):
        inputs = model.inputs_of(batch)
        watch = Watch()
        with watch.of(model):
            run = model.trajectory(
                **inputs, time_steps=time_steps, output_time_steps=True, stop="equilibrium", execution=execution
            )
        last = int(run.equilibrium_step.max()) if bool((run.equilibrium_step > 0).all()) else time_steps
        with eval_mode(twin):
            expected = answers(twin, inputs)["prediction"]
        found = {
            "logits_per_step": logits_until(run, last).float(),
            "spikes": watch.spikes(last),
            "neurons": run.neuron_counts,
            "final_levels": torch.stack([sizes(levels) for levels in run.levels.values()], -1),
            "equilibrium_step": run.equilibrium_step,
            "exact": certify(twin, model, inputs, run, time_steps).exact_samples,
            "expected": torch.tensor(expected),
        }
        if "labels" in batch:
            found["labels"] = batch["labels"]
        for name, value in found.items():
            parts.setdefault(name, []).append(value.cpu())
    if not parts:
        raise ValueError("batches is empty.")
    steps = max(part.shape[1] for part in parts["spikes"])
    parts["spikes"] = [torch.nn.functional.pad(part, (0, 0, 0, steps - part.shape[1])) for part in parts["spikes"]]
    parts["logits_per_step"] = [
        torch.cat([part, part[:, -1:].expand(-1, steps - part.shape[1], -1)], 1) for part in parts["logits_per_step"]
    ]
    whole = {name: torch.cat(values) for name, values in parts.items()}
    return Recording(node_names=tuple(model.node_names), time_steps=time_steps, **whole)  # type: ignore[arg-type]


def logits_until(run: Trajectory, steps: int) -> torch.Tensor:
    """(B, steps, classes) after each step; nothing moves after the last of them.

    So it gets the logits of the run's end, computed in the quantized network's own shape, where those of a chunk may
    be rounded otherwise.
    """
    return torch.cat([run.per_step[:, : steps - 1], run.readout[:, None]], 1)  # type: ignore[index]


def sizes(levels: torch.Tensor) -> torch.Tensor:
    """(B,) int64, sum of |level| over the neurons of a node, (B, ...)."""
    return levels.flatten(1).long().abs().sum(-1)


def check_classifier(model) -> None:
    """Raise ValueError unless a spiking model gives logits (B, classes)."""
    if not isinstance(model, SpikePreTrainedModel) or model.readout != "logits" or "ForToken" in type(model).__name__:
        raise ValueError(f"model: {type(model).__name__} is no spiking classifier of images or texts.")
