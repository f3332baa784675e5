"""Pushing a checkpoint: all of it in one commit, so that it is there whole, or what was there before is."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

from spikezip_hf.hub.cards import CARD, NOTICE, write_card
from spikezip_hf.models.checkpoint_files import check_seal, outdated_weights
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel

logger = logging.get_logger(__name__)

# What never travels: pickles can run code where they are opened, the rest belongs to this machine.
LEFT_OUT = (".bin", ".pt", ".pth", ".pkl", ".partial", ".lock")


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


def own_words(api: HfApi, repo_id: str, revision: str | None, tags: Sequence[str]) -> str | None:
    """The card on the Hub with our tags added, if somebody has written one there; None if it may be replaced."""
    try:
        card: Any = ModelCard(Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8"))
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    if NOTICE in card.content or not card.text.strip():
        return None
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags]))
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
) -> CommitInfo:
    """Push a checkpoint's folder in one commit. Weights of an earlier push that it replaces are removed there.

    A card that somebody has written on the Hub stays, with the tags of this one added.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        OSError: its weights are cut off or altered.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses; nothing has changed there.
        ConnectionError: the connection was cut off; likewise.
    """
    folder = Path(folder)
    names = files_to_push(folder)  # before anything is created
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names if name != CARD]
    if CARD in names:
        ours: Any = ModelCard.load(folder / CARD, ignore_metadata_errors=True)
        theirs = own_words(api, repo_id, revision, [*(ours.data.tags or []), *tags])
        if theirs is None:
            ours.data.tags = list(dict.fromkeys([*(ours.data.tags or []), *tags]))
        operations.append(CommitOperationAdd(CARD, (theirs or str(ours)).encode()))
    present = api.list_repo_files(repo_id, revision=revision)
    operations += [CommitOperationDelete(name) for name in outdated_weights(present, names)]
    try:
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except OSError:  # huggingface_hub's own, which say what happened
        raise
    except Exception as error:  # a connection that was cut off has no one class
        raise ConnectionError(f"Pushing to {repo_id} failed, and nothing has changed there: {error}") from error


def push_model(
    model: TwinPreTrainedModel,
    repo_id: str,
    *,
    results: Any = None,
    max_shard_size: int | str = "50GB",
    tags: str | Sequence[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """The function behind `push_to_hub` of Quant and Spike models; see there."""
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    tags += [tag for tag in model.model_tags or [] if tag not in tags]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, results=results, max_shard_size=max_shard_size)
        write_card(model, folder, results=results, name=repo_id.rpartition("/")[2], repo_id=repo_id)
        return push_folder(folder, repo_id, tags=tags, **options)
