"""A data set as what a network takes in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import DataCollatorWithPadding, default_data_collator
from transformers.utils import logging

from spikezip_hf.data import event_transforms, image_transforms, load_events, load_images, load_text, with_validation
from spikezip_hf.data.sources import find_data, holds_events, places_of
from spikezip_hf.models.image_processing_events import EventImageProcessor

logger = logging.get_logger(__name__)

IMAGES_ONLY = ("image_column", "auto_augment", "random_erasing", "random_crop", "crop_scale", "horizontal_flip")
EVENTS_ONLY = ("events", "event_frames", "test_share")
OF_IMAGES = ("image_column", "streaming")
# Of the paper's tables for CIFAR10-DVS too, though its code augments recordings in another way.
OF_PICTURES = ("auto_augment", "random_erasing", "crop_scale")
SHUFFLE_BUFFER = 10_000  # samples of a stream among which the next is drawn


@dataclass
class DataArguments:
    """Which data, and how it is shown to the network."""

    dataset: str | None = field(default=None, metadata={"help": "Hub id of the data set."})
    dataset_subset: str | None = field(default=None, metadata={"help": "Subset (configuration) of it."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder to read it from instead; see spikezip_hf.data for the formats."}
    )
    local_name: str | None = field(
        default=None,
        metadata={"help": "Folder inside the one that SPIKEZIP_DATA names, read instead of the Hub if it is there."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts, if not found by itself."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images, if not found by itself."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels, if not found by itself."})
    streaming: bool = field(default=False, metadata={"help": "Read as a stream, for sets larger than a disk."})
    validation_share: float = field(
        default=0.1, metadata={"help": "Share of the training data held out where the set has no validation split."}
    )
    split_seed: int = field(
        default=42, metadata={"help": "Of what is held out and drawn: the same for all stages, or data leaks."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many, drawn with split_seed."})
    max_length: int = field(default=128, metadata={"help": "Most tokens of a text; the rest is cut off."})
    auto_augment: str | None = field(
        default=None, metadata={"help": "timm's augmentation of images, e.g. rand-m9-mstd0.5-inc1."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Share of images in which a rectangle is erased."})
    random_crop: bool = field(default=False, metadata={"help": "Shift images by up to an eighth at random."})
    crop_scale: list[float] | None = field(
        default=None, metadata={"help": "Smallest and largest share of an image to cut out and resize."}
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "Share of images to flip."})
    events: bool = field(
        default=False, metadata={"help": "The data are recordings of an event camera; a folder tells it by itself."}
    )
    event_frames: int | None = field(
        default=None,
        metadata={
            "help": "Show each recording as so many frames, one a time-step; 0 for one static image. By default as "
            "the network's processor says."
        },
    )
    test_share: float = field(
        default=0.0, metadata={"help": "Of recordings: share to test with where the set has no test split."}
    )

    def source(self) -> str:
        """Where to load it from: `data_dir`, else `local_name` if it is there, else `dataset`.

        Raises:
            ValueError: none is given.
            FileNotFoundError: the folder is not there, and no Hub id is given.
        """
        if self.data_dir is not None:
            return str(find_data(self.data_dir))  # a folder, and never sought on the Hub
        if self.local_name is not None:
            there = [place for place in places_of(self.local_name) if place.is_dir()]
            if there or self.dataset is None:
                return str(find_data(self.local_name))
        if self.dataset is None:
            raise ValueError("No data: give --dataset (a Hub id), --data_dir (a folder) or --local_name.")
        return self.dataset

    def holds_events(self) -> bool:
        """Whether the data are recordings."""
        return self.events or holds_events(self.source(), self.dataset_subset)

    def hub_id(self) -> str | None:
        """The id of the set on the Hub, if that is where it is loaded from."""
        return self.dataset if self.source() == self.dataset and not Path(self.dataset).is_dir() else None


def load_data(data: DataArguments, is_text: bool, needs_training: bool = True):
    """The set, as a dict of splits "train", "validation" and "test" (those there are), columns as in spikezip_hf.data.

    Args:
        is_text: whether it is one of texts, and not of images.
        needs_training: also hold out a validation split, from a training split that has to be there.

    Raises:
        ValueError, FileNotFoundError: it cannot be found or read; says why in one line.
    """
    if is_text:
        refuse(data, IMAGES_ONLY, "images, and the network is one of text")
    of_events = not is_text and data.holds_events()
    if of_events:
        refuse(data, OF_IMAGES, "images, and the data are recordings of events")
        if left_out := [name for name in OF_PICTURES if getattr(data, name)]:
            logger.warning(
                f"{', '.join(left_out)}: of pictures, and left out for recordings of events, which can be shifted "
                "(random_crop) and mirrored (horizontal_flip)."
            )
    else:
        refuse(data, EVENTS_ONLY, "recordings of events, and the data are none")
    columns: dict[str, Any] = {"label_column": data.label_column, "streaming": data.streaming}
    if is_text:
        splits = load_text(data.source(), subset=data.dataset_subset, text_column=data.text_column, **columns)
    elif of_events:
        splits = load_events(
            data.source(), subset=data.dataset_subset, label_column=data.label_column, test_share=data.test_share
        )
    else:
        splits = load_images(data.source(), subset=data.dataset_subset, image_column=data.image_column, **columns)
    for name, split in splits.items():
        if not data.streaming and not len(split):
            raise ValueError(f"{data.source()}: the split {name} is empty.")
    if not needs_training and ("test" in splits or "validation" in splits):
        return splits
    if "train" not in splits:
        raise ValueError(f"{data.source()} has no training split, only {', '.join(splits)}.")
    splits = with_validation(splits, data.validation_share, data.split_seed)
    if data.streaming:  # folders of classes and many sets on the Hub are in the order of their labels
        splits["train"] = splits["train"].shuffle(seed=data.split_seed, buffer_size=SHUFFLE_BUFFER)
    if data.max_train_samples is not None:
        if data.max_train_samples < 1:
            raise ValueError(f"max_train_samples must be at least 1, got {data.max_train_samples}.")
        if data.streaming:
            splits["train"] = splits["train"].take(data.max_train_samples)
        else:
            chosen = range(min(data.max_train_samples, len(splits["train"])))
            splits["train"] = splits["train"].shuffle(seed=data.split_seed).select(chosen)
    return splits


def refuse(data: DataArguments, names: tuple[str, ...], what: str) -> None:
    """Raise ValueError, naming it, if one of these arguments is given."""
    for name in names:
        if getattr(data, name) not in (None, False, 0.0):
            raise ValueError(f"{name} is for {what}: leave it out.")


def label_fields(splits) -> dict[str, dict]:
    """`id2label` and `label2id` of a config.

    Raises:
        ValueError: there is only one class, of which transformers would make a regression.
    """
    names = splits["train"].features["label"].names
    if len(names) < 2:
        raise ValueError(f"All examples of the data are of one class, {names[0]!r}: a classifier needs two.")
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def check_labels(splits, network_config, where: str) -> None:
    """Raise ValueError if the data has other labels than a network, or the same in another order."""
    names = next(iter(splits.values())).features["label"].names
    if len(names) != network_config.num_labels:
        raise ValueError(f"{where} has {network_config.num_labels} labels, the data has {len(names)}.")
    of_network = [network_config.id2label[index] for index in range(len(names))]
    if of_network != names and sorted(of_network) == sorted(names):
        raise ValueError(f"{where} has the labels of the data in another order: {of_network}, and there {names}.")


def text_inputs(splits, tokenizer, data: DataArguments) -> tuple[dict, Callable]:
    """Token ids and labels of each split, and the collator that pads them."""

    def tokenize(batch):
        return tokenizer(batch["text"], truncation=True, max_length=data.max_length)

    return (
        {name: split.map(tokenize, batched=True, remove_columns="text") for name, split in splits.items()},
        DataCollatorWithPadding(tokenizer),
    )


def image_inputs(splits, processor, data: DataArguments) -> tuple[dict, Callable]:
    """Pixels and labels of each split, augmented afresh at each look in training, and the collator."""
    training, plain = image_transforms(
        processor,
        auto_augment=data.auto_augment,
        random_erasing=data.random_erasing,
        crop_scale=None if data.crop_scale is None else tuple(data.crop_scale),  # type: ignore[arg-type]
        random_crop=data.random_crop,
        horizontal_flip=data.horizontal_flip,
        num_channels=len(processor.image_mean),
    )
    inputs = {}
    for name, split in splits.items():
        transform = training if name == "train" else plain
        if data.streaming:
            inputs[name] = split.map(transform, batched=True, remove_columns=["image", "label"])
        else:
            inputs[name] = split.with_transform(transform)
    return inputs, default_data_collator


def event_inputs(splits, processor, data: DataArguments) -> tuple[dict, Callable]:
    """Currents and labels of each split of recordings, augmented afresh at each look in training; and the collator."""
    training, plain = event_transforms(processor, random_shift=data.random_crop, horizontal_flip=data.horizontal_flip)
    shown = {name: split.with_transform(training if name == "train" else plain) for name, split in splits.items()}
    return shown, default_data_collator


def model_inputs(splits, processor, data: DataArguments, is_text: bool) -> tuple[dict, Callable]:
    """Splits as a network takes them in, and the collator that makes batches of them.

    Raises:
        ValueError: the network takes recordings and the data are images, or the other way round.
    """
    if is_text:
        return text_inputs(splits, processor, data)
    takes_events, has_events = isinstance(processor, EventImageProcessor), data.holds_events()
    if takes_events != has_events:
        names = {True: "recordings of events", False: "images"}
        raise ValueError(f"The network takes {names[takes_events]}, and the data are {names[has_events]}.")
    return (event_inputs if has_events else image_inputs)(splits, processor, data)


def settle_frames(processor, data: DataArguments) -> None:
    """Have a processor of recordings show them as the arguments say, and the arguments say how it shows them.

    Raises:
        ValueError: the number of frames is negative.
    """
    if isinstance(processor, EventImageProcessor):
        data.event_frames = (processor.frames or 0) if data.event_frames is None else data.event_frames
        if data.event_frames < 0:
            raise ValueError(f"event_frames must be at least 0, got {data.event_frames}.")
        processor.frames = data.event_frames or None


def reported_split(splits) -> str:
    """The split to report on: "test", or "validation" where there is none with labels."""
    return "test" if "test" in splits else "validation"


def data_name(data: DataArguments) -> str:
    """A short name of the data, and of how recordings are shown, for results."""
    name = Path(data.data_dir).resolve().name if data.data_dir else data.local_name or Path(data.source()).name
    if data.event_frames is None:
        return name
    return f"{name}-{data.event_frames}-frames" if data.event_frames else f"{name}-static"
