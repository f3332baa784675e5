"""Model cards, written from a model and what is known of it."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from huggingface_hub import ModelCard
from transformers.utils import logging

from spikezip_hf.files import write_text
from spikezip_hf.hub.card_data import OUR_TAGS, SpikeCardData, is_spiking, pipeline_of
from spikezip_hf.hub.card_text import architecture, evaluation, facts, limits, outline, size
from spikezip_hf.hub.results import FILE, check_results_path, results_of, write_results
from spikezip_hf.models.checkpoints import plain_class
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.version import __version__

logger = logging.get_logger(__name__)

CARD = "README.md"
NOTICE = "<!-- Written by spikezip_hf, which writes it anew with the model. Remove this line to keep your words. -->"
# What is taken over from the card that is written anew, since no model knows it.
KEPT = ("license", "license_name", "license_link", "language", "datasets", "base_model")
PURPOSES = {
    "text-classification": "for text classification",
    "token-classification": "for token classification",
    "image-classification": "for image classification",
}


def template_path() -> Path:
    """The template: in `model_cards/` of a checkout, inside the package where it was installed."""
    installed = Path(__file__).parent / "templates"
    return (installed if installed.is_dir() else Path(__file__).parents[3] / "model_cards") / "model_card.md.jinja"


@cache
def template() -> jinja2.Template:
    """Compiled once, as that takes longer than to fill it in."""
    return jinja2.Template(template_path().read_text(encoding="utf-8"))


def pictures(results: Sequence[Mapping[str, Any]], folder: Path | None) -> list[str | None]:
    """Draw accuracy against time-steps for each data set into `folder`; None where that cannot be done."""
    names: list[str | None] = []
    for index, one in enumerate(results):
        name = "accuracy_over_time.png" if index == 0 else f"accuracy_over_time_{index + 1}.png"
        drawn = None
        if folder is not None and one["simulated"].get("accuracy per step"):
            try:
                from spikezip_hf.analysis.plots import plot_accuracy_over_time

                title = f"{one['data']}: accuracy against time-steps"
                plot_accuracy_over_time(folder / name, one["simulated"], title)
                drawn = name
            except ImportError:
                pass  # without matplotlib, the table has to do
        names.append(drawn)
    return names


def model_card(model: TwinPreTrainedModel, name: str, results: Any = None, **options: Any) -> ModelCard:
    """The card of a Quant or Spike model.

    Args:
        model: the model.
        name: what to call it.
        results: see `hub.results.read_results`; None if it was not evaluated.
        options: as for `compose`.

    Raises:
        ValueError: the results are no results, or of another network.
    """
    return compose(model, name, results_of(model, results) if results is not None else [], **options)


def compose(
    model: TwinPreTrainedModel,
    name: str,
    known: Sequence[Mapping[str, Any]],
    *,
    repo_id: str | None = None,
    training: str | None = None,
    picture_folder: Path | None = None,
    kept: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a model, with results that are known to be its own.

    Args:
        repo_id: what to load it by, for the examples; `name` if None.
        training: a text about its training.
        picture_folder: folder to draw the picture into; None for no picture.
        kept: metadata that stands where the model says nothing.
        metadata: fields of `ModelCardData`: `license`, `language`, `datasets`, `tags`, ...
    """
    config, report, task = model.config, outline(model), pipeline_of(model)
    spiking, cls = is_spiking(model), plain_class(type(model))
    drawn = pictures(known, picture_folder if spiking else None)
    auto_class = cls._auto_class
    data = SpikeCardData(model, name, known, kept, **metadata)
    text = template().render(
        card_data=data.to_yaml(),
        pipeline_tag=data.get("pipeline_tag"),
        notice=NOTICE,
        name=name,
        repo_id=repo_id or name,
        spiking=spiking,
        class_name=cls.__name__,
        auto_class=auto_class,
        architecture=architecture(model),
        size=size(model),
        purpose=PURPOSES.get(task, "without a head"),
        source=f"[{config.source_model}](https://huggingface.co/{config.source_model})"
        if config.source_model
        else "an ordinary network that is not on record",
        is_text=hasattr(config, "vocab_size"),
        of_events=getattr(config, "reduced_channels", None) is not None,
        example='"a text"' if hasattr(config, "vocab_size") else '"image.png"',
        facts=list(facts(model, report).items()),
        time_steps=getattr(config, "time_steps", None),
        readout="last_hidden_state" if auto_class == "AutoModel" else "logits",
        evaluations=[
            evaluation(one, config.time_steps if spiking else None, picture)
            for one, picture in zip(known, drawn, strict=True)
        ],
        training=training,
        limits=limits(model, report),
        version=__version__,
    )
    return ModelCard(text)


def is_generated(path: Path) -> bool:
    """Whether the card at `path` was written here, and by nobody since."""
    return path.is_file() and NOTICE.encode() in path.read_bytes()


def kept_metadata(card: ModelCard) -> dict[str, Any]:
    """Metadata of a generated card that no model knows: licence, language, data, and tags that somebody added."""
    data = card.data.to_dict()
    tags = [tag for tag in data.get("tags") or [] if tag not in OUR_TAGS]
    return {key: data[key] for key in KEPT if data.get(key)} | ({"tags": tags} if tags else {})


def training_of(card: ModelCard) -> str | None:
    """What a generated card says of the training."""
    found = re.search(r"^## Training\n\n(.*?)\n\n## Limits$", card.text, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def read_card(path: str | os.PathLike, where: str) -> ModelCard:
    """The card in a file.

    Raises:
        ValueError: it cannot be read; says which it is, by `where`, and what to do.
    """
    try:
        return ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The model card {where} cannot be read ({reason}): mend it, or remove it.") from error


def write_card(
    model: TwinPreTrainedModel,
    folder: str | os.PathLike,
    *,
    destination: str | os.PathLike | None = None,
    results: Any = None,
    name: str | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    same_network: bool = True,
    **fields: Any,
) -> bool:
    """Write README.md, its picture and results.json for a model that is saved to a folder.

    Args:
        folder: folder to write to.
        destination: folder whose files they will replace; `folder` by default. A README.md that somebody wrote there
            is kept, of a generated one licence, language and the like.
        results: of the model; by default those in `destination`, or where the model was loaded from, if they are
            of this very network.
        name, fields: as for `model_card`; the name of the folder by default.
        state_dict: as for `hub.network_digest`.
        same_network: whether the card that is there is of this network, so that what it says of its training holds.

    Returns:
        Whether there is a new card.

    Raises:
        ValueError: the results are no results or of another network; a generated card there cannot be read.
        FileExistsError: there is a results.json of somebody else's, and there are results to be written.
    """
    folder, destination = Path(folder), Path(folder if destination is None else destination)
    known = results_of(model, results, destination, model.home_folder, state_dict=state_dict)
    if known:
        check_results_path(destination / FILE)
        write_results(folder / FILE, known)
    there = destination / CARD
    if there.is_file() and not is_generated(there):
        return False
    kept: dict[str, Any] = {}
    if there.is_file():
        card: Any = read_card(there, str(there))
        kept = kept_metadata(card)
        if same_network:
            fields["training"] = fields.get("training") or training_of(card)
            kept |= {} if known else {"eval_results": card.data.eval_results, "metrics": card.data.get("metrics")}
    title = name or destination.resolve().name
    with tempfile.TemporaryDirectory(prefix="_partial-", dir=folder) as aside:
        card = compose(model, title, known, picture_folder=Path(aside), kept=kept, **fields)
        write_text(folder / CARD, str(card))
        for picture in Path(aside).iterdir():
            os.replace(picture, folder / picture.name)
    return True


def save_card(
    model: TwinPreTrainedModel,
    folder: str | os.PathLike,
    destination: str | os.PathLike,
    results: Any,
    state_dict: Mapping[str, torch.Tensor] | None,
    **fields: Any,
) -> None:
    """`write_card` for `save_pretrained`, which no card that cannot be read keeps from saving weights."""
    there = Path(destination) / CARD
    if is_generated(there):
        try:
            read_card(there, str(there))
        except ValueError as error:
            logger.warning(f"{error} It stays as it is.")
            return
    write_card(
        model, folder, destination=destination, results=results, state_dict=state_dict, same_network=False, **fields
    )
