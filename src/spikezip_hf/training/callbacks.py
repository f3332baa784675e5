"""What happens to scales and levels in the course of quantization-aware training."""

from collections.abc import Sequence

from transformers import TrainerCallback
from transformers.utils import logging

from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel
from spikezip_hf.models.quantization import MIN_SCALE, Quantizer

logger = logging.get_logger(__name__)


class KeepScalesPositive(TrainerCallback):
    """Puts a scale that a step has pushed through zero back at the smallest one, before it is used."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.scale.data.clamp_(min=MIN_SCALE)


class FreezeScales(TrainerCallback):
    """Scales stay where they are after a share of the steps.

    Their gradients are computed still: processes that train together expect one from each of them.
    """

    def __init__(self, after: float):
        self.after = after

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step >= self.after * state.max_steps:
            for module in model.modules():
                if isinstance(module, Quantizer):
                    module.scale.grad = None


def set_levels(qann: QuantPreTrainedModel, levels: int, rescale: bool) -> None:
    """Give every node of a Quant model this many levels; see `LSQQuantizer.set_levels`."""
    for node in qann.nodes:
        node.set_levels(levels, rescale)
    qann.config.quantization_levels = levels


class LevelSchedule(TrainerCallback):
    """Trains with fewer levels from part to part; a new part begins with scales that LSQ's rule makes of the last.

    Args:
        qann: the Quant model.
        schedule: levels of each part; parts are equally long.
    """

    def __init__(self, qann: QuantPreTrainedModel, schedule: Sequence[int]):
        self.qann = qann
        self.schedule = schedule

    def levels(self, step: int, max_steps: int) -> int:
        """Levels to train with in step `step`, from 0."""
        part = len(self.schedule) * step // max(max_steps, 1)
        return self.schedule[min(part, len(self.schedule) - 1)]

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:  # a checkpoint: its scales are those of the step that was done last
            set_levels(self.qann, self.levels(state.global_step - 1, state.max_steps), rescale=False)

    def on_step_begin(self, args, state, control, **kwargs):
        levels = self.levels(state.global_step, state.max_steps)
        if levels != self.qann.config.quantization_levels:
            logger.info(f"From step {state.global_step} with {levels} levels.")
            set_levels(self.qann, levels, rescale=True)
