# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The files of a checkpoint on disk: moved in whole, and weights sealed with a digest of themselves.

The safetensors format has lengths but no checksum, so that a flipped bit would load as another network. The digest
stands in the header's own metadata, where the format lets anybody put strings: it travels with the file, whoever
copies it, and a tool that writes the file anew leaves it out.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

METADATA, DIGEST, NETWORK = "__metadata__", "sha256", "network"
MAX_HEADER = 100_000_000  # bytes, as in safetensors itself
# model.safetensors, model-00001-of-00002.safetensors and model.safetensors.index.json, each perhaps of a variant.
WEIGHTS = re.compile(r"model(?P<a>\.[^./]+?)?(-\d{5}-of-\d{5})?\.safetensors(\.index(?P<b>\.[^./]+)?\.json)?")


class DamagedFile(OSError):
    """A file of weights that is not what was written."""

    def __init__(self, path: str | os.PathLike, problem: str):
        super().__init__(
            f"{path} {problem}. Download it again with force_download=True, or copy it again from where it was made; "
            "if you changed it on purpose, write it with safetensors' save_file."
        )


def read_header(path: str | os.PathLike) -> tuple[dict, int]:
    """The header of a safetensors file, and where its data begins.

    Raises:
        DamagedFile: it is cut off, or is no safetensors file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER or 8 + length > size:
            raise DamagedFile(path, "is cut off or no safetensors file")
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != METADATA), default=0)
            header.get(METADATA, {}).get(DIGEST)  # a mapping
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise DamagedFile(path, "has a header that cannot be read") from error
    if 8 + length + end != size:
        raise DamagedFile(path, f"is cut off: {size} bytes, and its header tells of {8 + length + end}")
    return header, 8 + length


def digest_of(path: str | os.PathLike, header: dict, start: int) -> str:
    """sha256 of the tensors in a file: of their names, types and shapes, and of their data."""
    tensors = {key: entry for key, entry in header.items() if key != METADATA}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def seal(path: str | os.PathLike, network: Mapping[str, Any]) -> str:
    """Write the digest of a safetensors file into its header, and what network it is of; returns the digest.

    Args:
        network: fields of the config without which these tensors are another network.
    """
    header, start = read_header(path)
    digest = digest_of(path, header, start)
    header[METADATA] = {**header.get(METADATA, {}), DIGEST: digest, NETWORK: json.dumps(network)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    aside = f"{path}.sealed"
    with open(path, "rb") as source, open(aside, "wb") as target:
        source.seek(start)
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target, 1 << 20)
    os.replace(aside, path)
    return digest


def bind_shards(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the digests of shards into the index beside them: a shard of another checkpoint is none of theirs."""
    for path in folder.glob("*.safetensors.index*.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        index["metadata"][DIGEST] = {name: digests[name] for name in sorted(set(index["weight_map"].values()))}
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_seal(path: str | os.PathLike, expected: str | None = None) -> bool:
    """Whether the file has a digest; it then is what was written.

    Args:
        expected: of a shard, the digest that the index tells of.

    Raises:
        DamagedFile: it is not, or it is no whole safetensors file.
    """
    header, start = read_header(path)
    own = header.get(METADATA, {}).get(DIGEST)
    if own is not None and digest_of(path, header, start) != own:
        raise DamagedFile(path, "is not what was written: its digest is another")
    if None not in (own, expected) and own != expected:
        raise DamagedFile(path, "is a shard of another checkpoint: its index tells of another digest")
    return own is not None


def read_index(path: str | os.PathLike) -> tuple[list[str], dict[str, str]]:
    """Names of the shards that an index tells of, and their digests where it has them.

    Raises:
        DamagedFile: it cannot be read, or names a file that is not beside it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        names = sorted(set(index["weight_map"].values()))
        digests = dict(index.get("metadata", {}).get(DIGEST, {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(path, "is no index of shards that can be read") from error
    for name in names:
        if not isinstance(name, str) or variant_of(name) is None:
            raise DamagedFile(path, f"names {name!r}, which is no file of weights beside it")
    return names, digests


@contextmanager
def moved_in_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder aside, whose files are moved to `folder` at the end; after an error nothing has changed there.

    Weights that an earlier save left there under other names are removed, or they would be loaded instead.

    Raises:
        OSError: it cannot be written; names it.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file: name a folder to save to.")
    new_folders = [path for path in (target, *target.parents) if not path.exists()]
    target.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="_partial-", dir=target))  # Trainer does not push what begins with _
    try:
        yield aside
        with locked(target):
            move_in(aside, target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error  # a full disk tells no name
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for path in new_folders:
            with suppress(OSError):  # it is not empty: all went well
                path.rmdir()


@contextmanager
def locked(folder: str | os.PathLike, shared: bool = False) -> Iterator[None]:
    """Inside, no other process of this machine moves files into `folder`; nor, unless `shared`, reads a model there.

    Two that save at once would leave the config of one beside the weights of the other. The lock is on the folder
    itself and leaves no file; where there is no such lock (Windows, some network disks), nothing is waited for.
    """
    descriptor = None
    try:
        with suppress(OSError):  # a folder may be such that its files can be read, and itself not
            if fcntl is not None and os.path.isdir(folder):
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def move_in(aside: Path, target: Path) -> None:
    """Move the files of `aside` to `target`, over those of the same names; all of them, or none."""
    names = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
    outdated = [Path(name) for name in outdated_weights(os.listdir(target), map(str, names))]
    before = Path(tempfile.mkdtemp(prefix="_before-", dir=aside))
    replaced = [name for name in (*names, *outdated) if (target / name).exists()]
    for name in replaced:
        (before / name).parent.mkdir(parents=True, exist_ok=True)
        keep_copy(target / name, before / name)
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, target / name)
        for name in outdated:
            (target / name).unlink()
    except BaseException:  # Ctrl-C, too
        for name in names:
            if name not in replaced:
                (target / name).unlink(missing_ok=True)
        for name in replaced:
            os.replace(before / name, target / name)
        raise


def keep_copy(path: Path, copy: Path) -> None:
    """Keep a file under another name, as a second link to it where the disk knows such."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)


def variant_of(name: str) -> str | None:
    """The variant that a file of weights belongs to, "" if to none; None if it is no such file."""
    found = WEIGHTS.fullmatch(name)
    return (found["a"] or found["b"] or "") if found else None


def outdated_weights(present: Iterable[str], written: Iterable[str]) -> list[str]:
    """Files of weights among those present that are no part of what was written, and of the same variant."""
    written = set(written)
    variants = {variant_of(name) for name in written} - {None}
    return sorted(name for name in set(present) - written if variant_of(name) in variants)
