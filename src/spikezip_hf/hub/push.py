"""Pushing a checkpoint: all of it in one commit, so that it is there whole, or what was there before is."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

from spikezip_hf.hub.cards import CARD, NOTICE, kept_metadata, read_card, write_card
from spikezip_hf.models.checkpoint_files import check_seal, outdated_weights
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel

logger = logging.get_logger(__name__)

# What never travels: pickles can run code where they are opened, the rest belongs to this machine.
LEFT_OUT = (".bin", ".pt", ".pth", ".pkl", ".partial", ".lock")

# What is known of other weights than those that are pushed would be wrong beside them.
RESULTS = re.compile(r"results\.json|accuracy_over_time(_\d+)?\.png")


def files_to_push(folder: Path) -> list[str]:
    """Files of a checkpoint's folder that are pushed: no hidden ones, no pickles, no training checkpoints inside.

    Raises:
        FileNotFoundError: it holds no checkpoint.
        OSError: its weights are cut off or altered.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: config.json is missing. Save a model to it first.")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    names = [
        path.as_posix()
        for path in paths
        if not any(part.startswith((".", "_", "checkpoint-")) for part in path.parts) and path.suffix not in LEFT_OUT
    ]
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise FileNotFoundError(f"{folder} holds no weights in safetensors format: save a model with save_pretrained.")
    for name in weights:
        check_seal(folder / name)
    return sorted(names)


def card_there(api: HfApi, repo_id: str, revision: str | None) -> ModelCard | None:
    """The card on the Hub, if there is one.

    Raises:
        ValueError: it cannot be read; says what to do.
    """
    try:
        path = api.hf_hub_download(repo_id, CARD, revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    card = read_card(path, f"{CARD} of {repo_id} on the Hub")
    return card if card.text.strip() else None


def merged_card(ours: ModelCard, theirs: ModelCard | None, tags: Sequence[str]) -> str:
    """The card to push: what somebody wrote on the Hub, tagged; or ours, with what a generated one there knew too."""
    card, kept_tags = ours, []
    if theirs is not None and NOTICE not in theirs.content:
        card = theirs
    elif theirs is not None:
        kept = kept_metadata(theirs)
        kept_tags = kept.pop("tags", [])
        for key, value in kept.items():
            if not card.data.get(key):
                setattr(card.data, key, value)
    data: Any = card.data
    data.tags = list(dict.fromkeys([*(data.tags or []), *kept_tags, *(ours.data.get("tags") or []), *tags]))
    return str(card)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    commit_description: str | None = None,
    tags: Sequence[str] = (),
    exclude: Sequence[str] = (),
    overlay: str | os.PathLike | None = None,
) -> CommitInfo:
    """Push a checkpoint's folder in one commit. Weights and results of an earlier push are replaced, or removed.

    A card that somebody has written on the Hub stays, with the tags of this one added.

    Args:
        folder: of the checkpoint. Pickles, hidden files and training checkpoints in it stay here.
        repo_id: where to, "organisation/name".
        private, token, revision, create_pr, commit_message, commit_description: as everywhere in huggingface_hub.
        tags: more tags for the card.
        exclude: names of files to leave here.
        overlay: folder of files to push beside those, and in place of those of the same names.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the card in the folder, or the one on the Hub, cannot be read.
        OSError: weights are cut off or altered; or the Hub refuses (huggingface_hub's HfHubHTTPError) or the
            connection was cut off (ConnectionError), and nothing has changed there.
    """
    folder = Path(folder)
    files = {name: folder / name for name in files_to_push(folder) if name not in exclude}
    files |= {path.name: path for path in (Path(overlay).iterdir() if overlay is not None else ())}
    names = sorted(files)
    ours = read_card(files[CARD], str(folder / CARD)) if CARD in files else None  # before anything is created
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations: list[Any] = [CommitOperationAdd(name, files[name]) for name in names if name != CARD]
        if ours is not None:
            card = merged_card(ours, card_there(api, repo_id, revision), tags)
            operations.append(CommitOperationAdd(CARD, card.encode()))
        present = api.list_repo_files(repo_id, revision=revision)
        outdated = outdated_weights(present, names)
        outdated += [name for name in present if name not in names and RESULTS.fullmatch(name)]
        operations += [CommitOperationDelete(name) for name in outdated]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except (OSError, ValueError):  # which say what happened
        raise
    except Exception as error:  # a connection that was cut off has no one class
        raise ConnectionError(f"Pushing to {repo_id} failed, and nothing has changed there: {error}") from error


def push_model(
    model: TwinPreTrainedModel,
    repo_id: str,
    *,
    results: Any = None,
    tags: str | Sequence[str] | None = None,
    max_shard_size: int | str = "50GB",
    saving: Mapping[str, Any] | None = None,
    **options: Any,
) -> CommitInfo:
    """The function behind `push_to_hub` of Quant and Spike models; see there.

    Args:
        saving: arguments for `save_pretrained`.
    """
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    tags += [tag for tag in model.model_tags or [] if tag not in tags]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, results=results, **{"max_shard_size": max_shard_size, **(saving or {})})
        write_card(model, folder, results=results, name=repo_id.rpartition("/")[2], repo_id=repo_id)
        return push_folder(folder, repo_id, tags=tags, **{k: v for k, v in options.items() if v is not None})
