"""Which checkpoint of a training to go on from: the newest whole one.

Trainer takes the newest folder, whatever is in it: half a checkpoint, after a kill or on a full disk, would end the
training with an error of the file's format, or, where a bit of the weights has flipped, go on with another network.
"""

import json
import re
import zipfile
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import logging

from spikezip_hf.models.checkpoint_files import check_seal, read_index

logger = logging.get_logger(__name__)

NAME = re.compile(r"checkpoint-(\d+)")
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"


class BrokenCheckpoint(OSError):
    """A checkpoint that no training can go on from; names the file."""


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a training's folder, whole or not, newest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def newest_whole(folder: str | Path, sharded: bool = False, weights_alone: bool = False) -> str | None:
    """The newest whole checkpoint in a training's folder, with a warning for each newer one; None if there is none.

    Args:
        sharded, weights_alone: see `check_whole`.
    """
    for path in checkpoints(folder):
        try:
            check_whole(path, sharded, weights_alone)
            return str(path)
        except OSError as error:
            logger.warning(f"{path.name} is passed over, since it is not whole: {error}")
    return None


def check_whole(checkpoint: str | Path, sharded: bool = False, weights_alone: bool = False) -> None:
    """Raise OSError, naming the file and what is wrong with it, unless a training can go on from a checkpoint.

    All of its files are read: weights are held against their digest, what torch saved against its checksums.

    Args:
        sharded: by FSDP or DeepSpeed, which have folders of their own instead of some of the files.
        weights_alone: it was saved with `save_only_model`.
    """
    checkpoint = Path(checkpoint)
    check_state(checkpoint / TRAINER_STATE_NAME)
    for path, digest in weights_of(checkpoint, sharded):
        check_seal(present(path), digest)
    if not sharded and not weights_alone:
        # Without them Trainer would begin with new ones, and say no word.
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
            present(checkpoint / name, "A checkpoint of save_only_model=True needs that again, and begins new ones.")
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        check_torch_file(path)


def present(path: Path, remedy: str = "") -> Path:
    """The file, which has to be there."""
    if not path.is_file():
        raise BrokenCheckpoint(f"{path} is missing. {remedy}".strip())
    return path


def check_state(path: Path) -> None:
    """Raise OSError unless this is the state of a Trainer, the last file of a checkpoint to be written."""
    try:
        step = json.loads(present(path).read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"{path} cannot be read as the state of a training.") from error
    if not isinstance(step, int):
        raise BrokenCheckpoint(f"{path} does not say the step, but {step!r}.")


def weights_of(checkpoint: Path, sharded: bool) -> list[tuple[Path, str | None]]:
    """Files of weights that a checkpoint should have, of one in shards those that it has; and digests in its index.

    Raises:
        DamagedFile: the index cannot be read, or names a file that is not beside it.
    """
    # An adapter with a name of its own is in a folder of that name.
    paths = sorted(path for name in (WEIGHTS, ADAPTER, f"*/{ADAPTER}") for path in checkpoint.glob(name))
    index = checkpoint / INDEX
    if paths or not index.is_file():
        return [(path, None) for path in paths or ([] if sharded else [checkpoint / WEIGHTS])]
    names, digests = read_index(index)
    return [(checkpoint / name, digests.get(name)) for name in names]


def check_torch_file(path: Path) -> None:
    """Raise OSError unless a file of torch.save, which is a zip archive, is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise BrokenCheckpoint(f"{path} is cut off or damaged ({error}).") from error
    if damaged is not None:
        raise BrokenCheckpoint(f"{path} is damaged: {damaged} in it has another checksum.")
