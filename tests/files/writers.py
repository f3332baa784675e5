"""Programs of their own, which the tests of saving start: `python -m tests.files.writers NAME ARGUMENTS`."""

import json
import resource
import sys
import time
from pathlib import Path

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.files import write_json
from tests.conftest import make_qann

from .common import answers, contents
from .conftest import SHARDED

# Bytes that a file may have: fewer than the code that travels, than the weights, than what the seal adds to these.
LIMITS = (0, 3000, 40_000, 70_000)


def make(seed: int):
    """Its labels and levels tell in the config which network it is."""
    qann = make_qann(seed=seed, levels=16 if seed else 8)
    qann.config.id2label = {label: f"{label} of {seed}" for label in range(5)}
    return qann


def full_disk(folder: str) -> None:
    """Save a network to `folder`, then try another at each limit; print what was said, and what was left."""
    home = Path(folder) / "model"
    make(0).save_pretrained(home)
    before, model, said = contents(Path(folder)), make(1), []
    for limit in LIMITS:
        for target in (home, Path(folder) / "new" / "deep"):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                model.save_pretrained(target, **(SHARDED if limit == 3000 else {}))
                problem = "it was saved"
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            left = contents(Path(folder)) == before and not (Path(folder) / "new").exists()
            said.append({"limit": limit, "problem": problem, "as it was": left})
    model.save_pretrained(home)
    print(json.dumps(said))  # noqa: T201


def save(folder: str, seed: str, seconds: str) -> None:
    """Save one network again and again, in one file and in shards, and a record; begin when `go` is there."""
    model, home, times = make(int(seed)), Path(folder), 0
    (home.parent / f"ready-{seed}").touch()
    while not (home.parent / "go").exists():
        time.sleep(0.01)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        model.save_pretrained(home, **(SHARDED if times % 2 else {}))
        write_json(home.parent / "record.json", {"seed": int(seed), "numbers": [int(seed)] * 20_000})
        times += 1
    print(times)  # noqa: T201


def read(folder: str, seconds: str) -> None:
    """Load what is there again and again, and hold it against the two; print how often each was found."""
    expected = [answers(make(seed)) for seed in (0, 1)]
    found, home = [0, 0], Path(folder)
    (home.parent / "ready-reader").touch()
    while not (home.parent / "go").exists():
        time.sleep(0.01)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        model = QuantViTForImageClassification.from_pretrained(home)
        found[which(model, expected)] += 1
        json.loads((home.parent / "record.json").read_text())
    print(json.dumps(found))  # noqa: T201


def which(model, expected) -> int:
    """The seed of the network that this is, whole: weights and config. ValueError if it is neither."""
    seed = int(model.config.id2label[0].rpartition(" ")[2])
    if not answers(model).equal(expected[seed]) or model.config.quantization_levels != (16 if seed else 8):
        raise ValueError("a mixture of two networks")
    return seed


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
