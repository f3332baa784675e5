"""Pushing a checkpoint: all of it in one commit, so that it is there whole, or what was there before is."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    metadata_load,
    metadata_save,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from transformers.utils import logging

from spikezip_hf.hub.cards import CARD, NOTICE, kept_metadata, read_card
from spikezip_hf.hub.results import FILE, own_results
from spikezip_hf.models.checkpoint_files import check_seal, outdated_weights
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel

logger = logging.get_logger(__name__)

# What a checkpoint is made of. All else in its folder stays there: pickles, logs and records of a training, with what
# they tell of a machine.
PUSHED = (
    "*.safetensors",
    "*.safetensors.index*.json",
    "*.py",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",  # of sentencepiece
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "README.md",
    "*.png",
    "results.json",
    "LICENSE*",
    "NOTICE*",
    "CITATION*",
)
# What is known of other weights than those that are pushed would be wrong beside them.
RESULTS = re.compile(r"results\.json|accuracy_over_time(_\d+)?\.png")


def files_to_push(folder: Path) -> list[str]:
    """Files of a checkpoint's folder that are pushed.

    Raises:
        FileNotFoundError: it holds no checkpoint.
        OSError: its weights are cut off or altered.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: config.json is missing. Save a model to it first.")
    names = [path.name for path in folder.iterdir() if path.is_file()]
    names = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PUSHED))
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise FileNotFoundError(f"{folder} holds no weights in safetensors format: save a model with save_pretrained.")
    for name in weights:
        check_seal(folder / name)
    return names


def file_there(api: HfApi, repo_id: str, name: str, revision: str | None) -> Path | None:
    """A file on the Hub, downloaded; None if there is none."""
    try:
        return Path(api.hf_hub_download(repo_id, name, revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError):
        return None


def merged_card(path: Path, theirs: Path | None, tags: Sequence[str], where: str) -> str | None:
    """The card to push: what somebody wrote on the Hub, tagged; or ours, with what a generated one there knew too.

    None if the one there cannot be read: it then stays as it is.
    """
    ours: Any = read_card(path, str(path))
    if theirs is not None:
        try:
            card = read_card(theirs, f"{CARD} of {where} on the Hub")
        except ValueError as error:
            logger.warning(f"{error} It stays as it is.")
            return None
        if NOTICE not in card.content and card.text.strip():
            return tagged(theirs, [*(ours.data.tags or []), *tags])
    if NOTICE not in ours.content:
        return tagged(path, tags)
    kept = {} if theirs is None else kept_metadata(card)
    ours.data.tags = list(dict.fromkeys([*(ours.data.tags or []), *kept.pop("tags", []), *tags]))
    for key, value in kept.items():
        if not ours.data.get(key):
            setattr(ours.data, key, value)
    return str(ours)


def tagged(path: Path, tags: Sequence[str]) -> str:
    """A card that somebody wrote, with tags added and not a word changed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / CARD
        shutil.copy(path, copy)
        data = metadata_load(copy) or {}
        metadata_save(copy, {**data, "tags": list(dict.fromkeys([*(data.get("tags") or []), *tags]))})
        return copy.read_text(encoding="utf-8")


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
        folder: of the checkpoint. What is no part of one (see `PUSHED`) stays here: pickles, logs, training records.
        repo_id: where to, "organisation/name".
        private, token, revision, create_pr, commit_message, commit_description: as everywhere in huggingface_hub.
        tags: more tags for the card.
        exclude: names of files to leave here.
        overlay: folder of files to push beside those, and in place of those of the same names.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: the card in the folder cannot be read.
        OSError: weights are cut off or altered; or the Hub refuses (huggingface_hub's HfHubHTTPError, also if another
            push came between) or the connection was cut off (ConnectionError), and no commit was made.
    """
    folder = Path(folder)
    # Before anything is created there:
    files = {name: folder / name for name in files_to_push(folder) if name not in exclude}
    files |= {path.name: path for path in (Path(overlay).iterdir() if overlay is not None else ())}
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there: Any = api.repo_info(repo_id, revision=revision)
        present = [sibling.rfilename for sibling in there.siblings or []]
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items() if name != CARD]
        if CARD in files:
            theirs = file_there(api, repo_id, CARD, there.sha) if CARD in present else None
            card = merged_card(files[CARD], theirs, tags, repo_id)
            operations += [] if card is None else [CommitOperationAdd(CARD, card.encode())]
        outdated = outdated_weights(present, files)
        if FILE in present and FILE not in files:
            theirs = file_there(api, repo_id, FILE, there.sha)
            if theirs is not None and own_results(theirs.parent):
                outdated += [name for name in present if RESULTS.fullmatch(name) and name not in files]
        operations += [CommitOperationDelete(name) for name in outdated]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=there.sha,  # or what another push has added since would stay beside this one
        )
    except (HfHubHTTPError, ValueError):  # which say what happened
        raise
    except Exception as error:  # a connection that was cut off has no one class
        raise ConnectionError(f"Pushing to {repo_id} failed; no commit was made there ({error}).") from error


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
        saving = {"max_shard_size": max_shard_size, **(saving or {})}
        card = {"name": repo_id.rpartition("/")[2], "repo_id": repo_id, **(saving.pop("card", None) or {})}
        model.save_pretrained(folder, results=results, card=card, **saving)
        return push_folder(folder, repo_id, tags=tags, **{k: v for k, v in options.items() if v is not None})
