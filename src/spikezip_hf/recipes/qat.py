"""Second stage: the quantized twin of a trained network, trained with that as teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from spikezip_hf.conversion.ann import quantized_class
from spikezip_hf.loading import is_text, load_network, model_type
from spikezip_hf.models.quantization import level_bounds
from spikezip_hf.recipes import stage
from spikezip_hf.recipes.inputs import DataArguments, check_labels, data_name, load_data
from spikezip_hf.recipes.parsing import parse
from spikezip_hf.training import QATTrainer, QATTrainingArguments


@dataclass
class QuantizationArguments:
    """What to quantize, and how."""

    ann: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the trained network with ReLU, its teacher too."}
    )
    quantization_levels: int = field(default=32, metadata={"help": "Levels of the activations, even, 4 to 256."})
    weight_bits: int | None = field(default=None, metadata={"help": "8 for weights of 8 bits."})
    scale_granularity: str | None = field(
        default=None, metadata={"help": "per_tensor, per_channel or mixed; by default the architecture's own."}
    )
    head_act: str | None = field(
        default=None, metadata={"help": "Activation in the head of a text classifier: relu (default) or tanh."}
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Drop path of the last layer."})
    no_teacher: bool = field(default=False, metadata={"help": "Train with the hard labels alone."})

    def __post_init__(self):
        if self.ann is None:
            raise ValueError("No network to quantize: give --ann (folder or Hub id).")
        level_bounds(self.quantization_levels, signed=True)

    def fields(self) -> dict[str, Any]:
        """Config fields that were given."""
        names = ("quantization_levels", "weight_bits", "scale_granularity", "head_act", "drop_path_rate")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def train_quantized(
    quantization: QuantizationArguments, data: DataArguments, args: QATTrainingArguments
) -> dict[str, Any]:
    """Train and save to `args.output_dir`: the Quant model, its tokenizer or image processor, and a record of how.

    Returns:
        The record; empty if the stage was finished before.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or the network; one line.
    """
    folder = Path(args.output_dir)
    settings = stage.settings_of(quantization, data, args)
    if stage.is_finished(folder, settings):
        return {}
    of_text = is_text(model_type(str(quantization.ann)))
    splits = load_data(data, is_text=of_text)
    ann, processor = load_network(str(quantization.ann))
    check_labels(splits, ann.config, str(quantization.ann))
    set_seed(args.seed)
    qann = quantized_class(ann).from_ann(ann, **quantization.fields())
    teacher = None if quantization.no_teacher else args.teacher_model or ann
    trainer = stage.trainer_for(QATTrainer, qann, args, splits, processor, data, of_text, teacher_model=teacher)
    record = stage.train(trainer, folder, settings, {"data": data_name(data)})
    trainer.create_model_card(dataset=data_name(data), dataset_tags=data.hub_id() or data_name(data))
    return record


KINDS = (QuantizationArguments, DataArguments, QATTrainingArguments)
DESCRIPTION = "Quantize a trained network with ReLU and train the quantized network, with the first as teacher."


def main(argv: Sequence[str]) -> None:
    """Parse a recipe and flags, and train."""
    train_quantized(*parse("qat", KINDS, DESCRIPTION, argv))
