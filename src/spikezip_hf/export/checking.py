"""Whether an exported network does what the model does, node by node.

Runtimes round a product in floating point each in their own way. Where a current lies next to a threshold the last bit
decides a level, which then moves all that follows: levels of two runtimes cannot be held against each other from end
to end. They are held against each other *node by node*: the model is run on the levels that the other runtime's nodes
have handed on, and each node's level has to follow from them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from spikezip_hf.export.engines import LevelEngine, StreamingEngine
from spikezip_hf.export.quantized import QuantizedModule
from spikezip_hf.export.signature import read_out
from spikezip_hf.export.streaming import StreamingStep
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel, eval_mode

# Of a level: how far apart two runtimes may see a current. A float32 sum of thousands of terms, some hundred levels
# large, is rounded by less; any mistake, a forgotten bias or another epsilon, moves most currents by more.
TIE = 1e-3
# Of the largest logit: how far apart they may be of equal levels, one product behind them.
LOGITS = 1e-4
SAMPLES = 3
CHECKED_STEPS = 8


class ExportError(ValueError):
    """What was exported does not do what the model does, or cannot be run."""


@dataclass
class Check:
    """What was compared, and what was found.

    Attributes:
        levels: how many levels were compared.
        ties: how many of them are another level than the model's, next to a threshold.
        logit_difference: largest difference of logits of equal levels.
    """

    levels: int = 0
    ties: int = 0
    logit_difference: float = 0.0


class Following:
    """An engine's mixin that hands on given levels, and notes those that do not follow from the ones before."""

    def follow(self, given: dict[str, torch.Tensor]) -> None:
        self.given = given
        self.compared = Check()
        self.wrong: dict[str, int] = {}  # {node name: levels that do not follow}
        self.clear: torch.Tensor | None = None  # (B,) bool: no current of the sample lies next to a threshold

    def level(self, node, position):
        low, high = (super(Following, self).level(node, position + nudge) for nudge in (-TIE, TIE))  # type: ignore
        own = super().level(node, position)  # type: ignore[misc]
        given = self.given[node.name].to(own)
        self.compared.levels += own.numel()
        self.compared.ties += int((given != own).sum())
        self.wrong[node.name] = int(((given != own) & (given != low) & (given != high)).sum())
        clear = (low == high).flatten(1).all(1)
        self.clear = clear if self.clear is None else self.clear & clear
        return given


class FollowingQuantized(Following, LevelEngine):
    pass


class FollowingStep(Following, StreamingEngine):
    pass


def conclude(engine: Following, check: Check, logits: torch.Tensor, theirs: torch.Tensor) -> None:
    """Add what `engine` has compared to `check`.

    Raises:
        ExportError: a level or the logits do not follow; names the worst node.
    """
    worst = max(engine.wrong, key=lambda name: engine.wrong[name])
    if engine.wrong[worst]:
        raise ExportError(
            f"The exported network's levels are not the model's at {worst}: {engine.wrong[worst]} of "
            f"{engine.given[worst].numel()} are others, with a current not within {TIE:g} of a level of a threshold."
        )
    difference = float((logits - theirs).abs().max())
    if not difference <= LOGITS * max(1.0, float(logits.abs().max())):
        raise ExportError(f"The exported network's logits differ from the model's by {difference:g}, of equal levels.")
    check.levels += engine.compared.levels
    check.ties += engine.compared.ties
    check.logit_difference = max(check.logit_difference, difference)


@torch.no_grad()
def check_quantized(model: TwinPreTrainedModel, module: QuantizedModule, run: Callable, batch: int = SAMPLES) -> Check:
    """Hold an exported quantized network against the model.

    Args:
        run: inputs to logits and {node name: levels}, by the other runtime.

    Raises:
        ExportError: it does something else.
    """
    check = Check()
    inputs = module.signature.sample(batch, seed=1)
    theirs, levels = run(inputs)
    engine = FollowingQuantized()
    engine.follow(levels)
    with eval_mode(model):
        logits = read_out(model, engine, inputs)
    conclude(engine, check, logits, theirs)
    return check


@torch.no_grad()
def check_step(model: TwinPreTrainedModel, module: StreamingStep, run: Callable, batch: int = SAMPLES) -> Check:
    """Hold an exported step against the model, for some steps from rest.

    Args:
        run: inputs and state to what the step returns, by the other runtime.

    Raises:
        ExportError: it does something else.
    """
    check = Check()
    inputs = module.signature.sample(batch, seed=1)
    state = module.initial_state(batch, module.signature.length_of(inputs))
    for _ in range(CHECKED_STEPS):
        theirs, settled, after = run(inputs, state)
        engine = FollowingStep(state, **module.neurons)
        engine.follow(after)
        logits = read_out(model, engine, inputs)
        conclude(engine, check, logits, theirs)
        own = torch.stack(list(engine.at_target.values())).all(0)
        if bool((own != settled)[engine.clear].any()):
            raise ExportError("The exported step does not tell as settled the samples that are.")
        for name in after.keys() - engine.wrong.keys():  # what is not of a node
            if not torch.equal(after[name], engine.next_state[name]):
                raise ExportError(f"The exported step returns another {name} than the model.")
        state = after
    return check
