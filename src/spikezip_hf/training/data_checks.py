"""Data sets of a training, looked at before any work: empty ones, missing columns, labels that are none.

A label out of range is an index error deep in a loss, and on a GPU an assertion that ends the process.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

LABELS = ("labels", "label", "label_ids")  # transformers' collators make "labels" of each
NO_LABEL = -100


def check_data(
    dataset: Any, name: str, model: torch.nn.Module, only_known_columns: bool, own_collator: bool = False
) -> bool:
    """Look at a data set; whether its labels were all seen.

    Not seen are those of a stream, those that are made as samples are asked for (by a torch data set, or datasets'
    with_transform), and those that a data collator makes: their batches are looked at.

    Args:
        name: of the data set, for errors: "train_dataset".
        only_known_columns: columns that the model does not take are dropped (`remove_unused_columns`).
        own_collator: the data collator is none of transformers', and may make labels of any column.

    Raises:
        ValueError: it is empty, lacks a column, or has a label that is none for this model.
    """
    if hasattr(dataset, "__len__") and not len(dataset):
        raise ValueError(f"{name} is empty.")
    columns = columns_of(dataset)
    if columns is None or getattr(dataset, "format", {}).get("type") == "custom":  # of datasets' with_transform
        return False
    main = getattr(model, "main_input_name", None)
    if only_known_columns and main is not None and not {main, "inputs_embeds"} & {*columns}:
        raise ValueError(
            f"{name} has no column {main!r}, which {type(model).__name__} takes, only {columns}: map the data to it "
            "(by a tokenizer or image processor), or set remove_unused_columns=False if the data collator makes it."
        )
    if own_collator:
        return False
    label = next((column for column in LABELS if column in columns), None)
    if label is None:
        raise ValueError(f"{name} has no column 'labels', only {columns}: rename_column(..., 'labels') gives it one.")
    if isinstance(dataset, list | tuple):
        values: Sequence[Any] = [sample.get(label) for sample in dataset]
        distinct = {(one, is_several(value)) for value in values for one in flat(value)}
    elif hasattr(dataset, "__len__"):
        import pyarrow.compute  # which is there where there is such a data set

        column = dataset.select_columns([label]).with_format("arrow")[:][label]
        values, several = column, False
        while hasattr(column.type, "value_type"):  # labels of tokens
            column, several = pyarrow.compute.list_flatten(column), True
        distinct = {(one, several) for one in column.unique().to_pylist()}
    else:
        return False
    check_labels(values, distinct, f"{name}, column {label!r}", model.config)
    return True


def columns_of(dataset: Any) -> list[str] | None:
    """Names of the columns of a data set of the library datasets, or of a list of dicts; None of anything else."""
    if isinstance(dataset, list | tuple):
        return list(dataset[0]) if isinstance(dataset[0], dict) else None
    columns = getattr(dataset, "column_names", None)
    return list(columns) if columns else None


def check_labels(values: Sequence[Any], distinct: set[tuple[Any, bool]], where: str, config: Any) -> None:
    """Raise ValueError unless these are labels for a model with this config; warn if all are the same.

    Args:
        values: of each sample, a label or several.
        distinct: the labels that occur, and whether as one of several.
    """
    classes = config.num_labels if config.problem_type in (None, "single_label_classification") else 1
    if any(problem_of(one, classes, several) for one, several in distinct):
        for row, value in enumerate(values):
            for one in flat(value):
                if problem := problem_of(one, classes, is_several(value)):
                    raise ValueError(f"{where}, sample {row}: the label {one!r} {problem}.")
    found = {one for one, _ in distinct} - {NO_LABEL}
    if not found:
        raise ValueError(f"{where}: no sample has a label, all are {NO_LABEL}.")
    if classes > 1 and len(found) == 1 and len(values) > 1:
        (only,) = found
        logger.warning(
            f"{where}: all {len(values)} samples have the label {only}, of {classes} classes. A network learns "
            "nothing from them but to give that answer, and accuracy on them says nothing."
        )


def is_several(value: Any) -> bool:
    """Whether a sample's label is a sequence of them."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0 or hasattr(value, "values")


def flat(value: Any) -> Iterator[Any]:
    """The labels of one sample, as numbers of Python where they are numbers."""
    for convert in ("tolist", "as_py"):  # of torch or numpy, or of arrow
        if hasattr(value, convert):
            value = getattr(value, convert)()
            break
    if isinstance(value, list | tuple):
        yield from chain.from_iterable(map(flat, value))
    else:
        yield value


def problem_of(label: Any, classes: int, several: bool) -> str | None:
    """Why this is no label, in words; None if it is one.

    Args:
        classes: to choose one from; 1 where labels are numbers to come near to, or are several at once.
        several: it is one of several of its sample.
    """
    if label is None or (isinstance(label, float) and not math.isfinite(label)):
        return "is none: leave such samples out"
    if not isinstance(label, int | float):
        return f"is a {type(label).__name__}, no number: class_encode_column(...) of datasets makes numbers of names"
    if classes < 2 or (several and isinstance(label, float)):
        return None
    if isinstance(label, float):
        return "is no whole number, and the model has classes: cast the column to int64"
    if label != NO_LABEL and not 0 <= label < classes:
        return f"is not one of 0 to {classes - 1}: mend the data, or give the model more labels (num_labels)"
    return None


def check_batch(labels: torch.Tensor, config: Any) -> None:
    """The same of a batch of labels that could not be seen before.

    Raises:
        ValueError: names the label, and its row in the batch.
    """
    if labels.is_floating_point() or config.num_labels < 2:
        return
    wrong = (labels != NO_LABEL) & ((labels < 0) | (labels >= config.num_labels))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        problem = problem_of(int(labels[wrong][0]), config.num_labels, several=False)
        raise ValueError(f"labels of the batch, row {row}: the label {int(labels[wrong][0])} {problem}.")
