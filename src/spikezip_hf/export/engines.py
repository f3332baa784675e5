"""What a network's tensors mean in an exported graph: levels with their scale, and for a step, its state."""

import torch

from spikezip_hf.models.engines import QuantEngine
from spikezip_hf.models.quantization import LSQQuantizer
from spikezip_hf.models.rows import Rows, unwrap

STEP = "step"  # name of the counter of steps in a state


class LevelEngine(QuantEngine):
    """A `QuantEngine` in whose graph levels travel, as whole numbers in a floating type.

    Attributes:
        levels: {node name: (B, ...)} what each node handed on.
    """

    def __init__(self) -> None:
        self.levels: dict[str, torch.Tensor] = {}

    def fire(self, node, current):
        return node(self.silence_padding(current), self.fired)

    def fired(self, node: LSQQuantizer, current: Rows | torch.Tensor) -> Rows:
        values = unwrap(current).contiguous()
        # The scale as it is, and not the node's `threshold`: no scale that is exported needs a lower bound.
        levels = self.levels[node.name] = self.level(node, values / node.scale + 0.5)
        peak = max(-node.min_level, node.max_level)
        return Rows(integers=levels, scale=node.scale, peak=peak, dtype=values.dtype)

    def level(self, node: LSQQuantizer, position: torch.Tensor) -> torch.Tensor:
        """The level that a node hands on: here its quantizer's.

        Args:
            position: x/s + 1/2, of which the quantizer takes the floor.
        """
        return position.floor().clamp(node.min_level, node.max_level)


class StreamingEngine(LevelEngine):
    """One step of the spiking network, from one explicit state to the next. Tensors are accumulated values, (B, ...).

    A neuron tracks its quantizer, S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -k, k), and no other operator needs memory:
    the state is the tracers S, and what has arrived of an input that comes in frames.

    Args:
        state: {name: tensor} before the step. What is not in it is at rest.
        frames: whether the input is what arrives in this step, and not the whole of a static one.
        max_spikes_per_step: k of the neurons.
        first_firing_step, first_fine_step: {node name: step, from 1} of a firing schedule, as of a `SpikingEngine`.

    Attributes:
        next_state: the same after the step.
        at_target: {node name: (B,) bool}, whether each tracer of a sample is its quantizer's level.
    """

    def __init__(
        self,
        state: dict[str, torch.Tensor],
        frames: bool = False,
        max_spikes_per_step: int = 1,
        first_firing_step: dict[str, int] | None = None,
        first_fine_step: dict[str, int] | None = None,
    ):
        super().__init__()
        self.state = state
        self.frames = frames
        self.max_spikes_per_step = max_spikes_per_step
        self.first_firing_step = first_firing_step or {}
        self.first_fine_step = first_fine_step or {}
        self.next_state: dict[str, torch.Tensor] = {}
        self.at_target: dict[str, torch.Tensor] = {}
        if any(first > 1 for first in (*self.first_firing_step.values(), *self.first_fine_step.values())):
            self.next_state[STEP] = self.before(STEP, torch.zeros((), dtype=torch.int64)) + 1

    def before(self, name: str, at_rest: torch.Tensor) -> torch.Tensor:
        """The state of this name before the step."""
        return self.state.get(name, at_rest)

    def encode(self, module, inputs, per_step=False):
        if not self.frames:
            return module(inputs)
        # In float64, as torch's cumsum adds up in a simulation, which has all frames at once.
        arrived = self.before(module.name, torch.zeros_like(inputs, dtype=torch.float64)) + inputs
        self.next_state[module.name] = arrived
        return module(arrived.to(inputs.dtype))

    def level(self, node, position):
        target = super().level(node, position)
        tracer = self.before(node.name, torch.zeros_like(target, dtype=node.level_dtype)).to(target.dtype)
        behind = target - tracer
        if (first := self.first_fine_step.get(node.name, 1)) > 1:
            behind = behind.masked_fill((behind.abs() < 2) & (self.next_state[STEP] < first), 0.0)
        if (first := self.first_firing_step.get(node.name, 1)) > 1:
            behind = behind.masked_fill(self.next_state[STEP] < first, 0.0)
        levels = tracer + behind.clamp(-self.max_spikes_per_step, self.max_spikes_per_step)
        self.next_state[node.name] = levels.to(node.level_dtype)
        self.at_target[node.name] = (levels == target).flatten(1).all(1)
        return levels
