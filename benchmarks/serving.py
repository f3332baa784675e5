"""A pipeline served from several threads of one process: are answers those of a serial run, and does memory grow?

    export ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 LRU_CACHE_CAPACITY=16
    SPIKEZIP_DATA=... python benchmarks/serving.py outputs/sst2_bert/snn_32 --data-dir sst2 > FILE.json

The two variables bound what oneDNN, and torch around it for each thread, keep of the code that they make for each
shape of a product: that of 1024 without, up to half a MiB each. Texts have one for every length and number of rows.

Each client asks for one input after another, at random, among inputs whose answers are known from a serial run; some
cannot be answered, and have to fail with the error of the serial run. Two ways, one after the other:

- shared: each client calls the pipeline itself. Answers are those of the serial run bit for bit.
- queue: clients put their inputs in a queue, and one thread answers those that wait as a batch. In float32 sums of
  another shape round differently, so scores are held to 1e-4; what cannot be answered is asked for alone, then.

Prints JSON: requests a second, latency, memory, threads and open files over time. Memory's slope is that of a
regression over all but the first fifth. The exit code is 1 after a wrong answer or growth, 2 for wrong arguments.
"""

import argparse
import gc
import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import Pipeline, pipeline

from spikezip_hf.loading import class_of
from spikezip_hf.recipes.stage import provenance

WORDS = (
    "a the film movie plot is was good bad not very funny dull slow bright it this that of and but 电影 हिन्दी 🎬 zyx"
)
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS")
BETWEEN_LOOKS = 1.0  # seconds
WARM_UP = 0.2  # of a run, before memory is looked at
BATCHES_DIFFER = 1e-4  # of scores: batches of other sizes and lengths than one are other sums in float32
MODES = ("shared", "queue")


# What is asked, and its answer
def texts(number: int, data_dir: str | None) -> list[Any]:
    """Texts of a data set, or made of words; odd ones, and ones that no pipeline can answer."""
    odd = ["", "   ", "👨‍👩‍👧‍👦 🎬", "\x00\x01", "هذا فيلم جيد", "这部电影 is good", "good " * 3000, "\ud800", None, 7]
    if data_dir is not None:
        from spikezip_hf.data import load_text
        from spikezip_hf.recipes.evaluate import reported_split
        from spikezip_hf.training.snn_evaluation import evenly_spread

        splits = load_text(data_dir)
        return [*evenly_spread(splits[reported_split(splits)], number)["text"], *odd]
    mixed, words = random.Random(0), WORDS.split()
    return [*(" ".join(mixed.choices(words, k=mixed.randint(1, 40))) for _ in range(number)), *odd]


def images(number: int, data_dir: str | None) -> list[Any]:
    """Images of a data set, or of noise; odd ones, and ones that no pipeline can answer."""
    noise = np.random.default_rng(0)

    def made(height: int, width: int, mode: str) -> Image.Image:
        return Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)

    odd = [*(made(30, 20, mode) for mode in ("L", "RGBA", "P", "CMYK", "1")), made(1, 1, "RGB"), made(3, 200, "RGB")]
    odd += ["no-such-file.png", None]
    if data_dir is not None:
        from spikezip_hf.data import load_images
        from spikezip_hf.recipes.evaluate import reported_split
        from spikezip_hf.training.snn_evaluation import evenly_spread

        splits = load_images(data_dir)
        return [*evenly_spread(splits[reported_split(splits)], number)["image"], *odd]
    return [*(made(*noise.integers(8, 64, 2), "RGB") for _ in range(number)), *odd]


def ask(serve: Pipeline, what: Any, **options: Any) -> Any:
    """The answer of a pipeline: {label: score}, or its error as a string."""
    try:
        answer = serve(what, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return {one["label"]: one["score"] for one in answer}


def agrees(answer: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Whether an answer is the expected one; of scores, within `tolerance`."""
    if isinstance(answer, str) or isinstance(expected, str):
        return answer == expected
    return answer.keys() == expected.keys() and all(
        abs(answer[label] - expected[label]) <= tolerance for label in expected
    )


# Two ways to serve it
@contextmanager
def shared(serve: Pipeline, options: dict[str, Any], batch_size: int) -> Iterator[Callable[[Any], Any]]:
    """Clients call the pipeline."""
    yield lambda what: ask(serve, what, **options)


@contextmanager
def queued(serve: Pipeline, options: dict[str, Any], batch_size: int) -> Iterator[Callable[[Any], Any]]:
    """One thread calls it with all that waits, at most `batch_size`."""
    waiting: queue.Queue = queue.Queue()

    def answer_all() -> None:
        while (first := waiting.get()) is not None:
            asked = [first]
            while len(asked) < batch_size and not waiting.empty():
                if (another := waiting.get()) is None:
                    waiting.put(None)
                    break
                asked.append(another)
            try:
                answers = serve([what for what, _ in asked], batch_size=len(asked), **options)
                found = [{one["label"]: one["score"] for one in answer} for answer in answers]
            except Exception:  # one of them cannot be answered; which, is seen when each is alone
                found = [ask(serve, what, **options) for what, _ in asked]
            for (_, reply), answer in zip(asked, found, strict=True):
                reply.put(answer)

    def request(what: Any) -> Any:
        reply: queue.Queue = queue.Queue()
        waiting.put((what, reply))
        return reply.get()

    worker = threading.Thread(target=answer_all, name="batches")
    worker.start()
    try:
        yield request
    finally:
        waiting.put(None)
        worker.join()


# What is measured
class Latencies:
    """Counts in bins one percent wide, so that what is noted does not grow with the requests."""

    def __init__(self) -> None:
        self.edges = 1e-5 * 1.01 ** np.arange(2000)  # 10 microseconds to an hour
        self.counts = np.zeros(len(self.edges) + 1, np.int64)

    def add(self, seconds: float) -> None:
        self.counts[np.searchsorted(self.edges, seconds)] += 1

    def percentile(self, share: float) -> float:
        """Seconds, within a percent."""
        place = np.searchsorted(self.counts.cumsum(), share / 100 * self.counts.sum())
        return float(self.edges[min(place, len(self.edges) - 1)])


def look() -> dict[str, float]:
    """This process now: resident memory in MiB, threads, open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def growth(seconds: list[float], values: list[float]) -> dict[str, float]:
    """Of a regression over the time behind the warm-up: units a minute, their standard error, and units in all."""
    start = seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    x, y = np.array([(t, v) for t, v in zip(seconds, values) if t >= start]).T
    slope, intercept = np.polyfit(x, y, 1)
    spread = np.sqrt(((y - intercept - slope * x) ** 2).sum() / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum())
    return {"a minute": slope * 60, "standard error": spread * 60, "in all": slope * (x[-1] - x[0])}


def run(
    serve: Pipeline,
    asked: list[Any],
    expected: list[Any],
    mode: str = "shared",
    minutes: float = 10.0,
    clients: int = 4,
    batch_size: int = 8,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Serve for a while; what was measured. Ctrl-C ends it earlier."""
    stop, lock, latencies, wrong = threading.Event(), threading.Lock(), Latencies(), []
    tolerance = 0.0 if mode == "shared" else BATCHES_DIFFER
    counts = {"requests": 0, "wrong": 0, "errors, as expected": 0}

    def client(number: int, request: Callable[[Any], Any]) -> None:
        chosen = random.Random(number)
        while not stop.is_set():
            index = chosen.randrange(len(asked))
            start = time.perf_counter()
            answer = request(asked[index])
            seconds = time.perf_counter() - start
            right = agrees(answer, expected[index], tolerance)
            with lock:
                latencies.add(seconds)
                counts["requests"] += 1
                counts["errors, as expected"] += right and isinstance(answer, str)
                if not right:
                    counts["wrong"] += 1
                    if len(wrong) < 5:
                        wrong.append({"input": index, "answer": answer, "expected": expected[index]})

    looks: list[dict[str, float]] = []
    cut_off, total = False, minutes * 60
    before = tensors_alive()
    load = os.getloadavg()[0]
    with {"shared": shared, "queue": queued}[mode](serve, options or {}, batch_size) as request:
        threads = [threading.Thread(target=client, args=(number, request)) for number in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        try:
            with tqdm(total=round(total), desc=f"serving, {mode}", unit="s") as progress:
                while (passed := time.perf_counter() - start) < total:
                    looks.append({"seconds": passed, **look()})
                    progress.n = round(passed)
                    progress.set_postfix(requests=counts["requests"], wrong=counts["wrong"], MiB=looks[-1]["MiB"])
                    stop.wait(min(BETWEEN_LOOKS, total / 20))
                progress.n = round(total)
        except KeyboardInterrupt:
            cut_off = True
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        passed = time.perf_counter() - start
    seconds, memory = ([one[name] for one in looks] for name in ("seconds", "MiB"))
    return {
        "mode": mode,
        "clients": clients,
        **({"largest batch": batch_size} if mode == "queue" else {}),
        "seconds": round(passed, 1),
        "cut off": cut_off,
        **counts,
        "first wrong answers": wrong,
        "requests a second": round(counts["requests"] / passed, 2),
        "latency, ms": {f"p{share}": round(1000 * latencies.percentile(share), 2) for share in (50, 95, 99)},
        "memory, MiB": {
            "first": round(memory[0], 1),
            "last": round(memory[-1], 1),
            "largest": round(max(memory), 1),
            "growth behind the warm-up": {name: round(x, 3) for name, x in growth(seconds, memory).items()},
            # At most 60 of them.
            "over time": [[round(one["seconds"]), round(one["MiB"], 1)] for one in looks[:: -(-len(looks) // 60)]],
        },
        "tensors more at the end": tensors_alive() - before,
        "threads": [int(looks[0]["threads"]), int(looks[-1]["threads"])],
        "open files": [int(looks[0]["files"]), int(looks[-1]["files"])],
        "load of the machine at the start": round(load, 2),
    }


def problems(found: dict[str, Any], allowed: float) -> list[str]:
    """What is wrong with a run, if anything."""
    grown = found["memory, MiB"]["growth behind the warm-up"]
    faults = []
    if not found["requests"]:
        faults.append("no request was answered")
    if found["wrong"]:
        faults.append(f"{found['wrong']} answers are not those of the serial run")
    # A slope that its own error explains is none.
    if grown["in all"] > allowed and grown["a minute"] > 3 * grown["standard error"]:
        faults.append(f"memory grew by {grown['in all']:.1f} MiB, and {allowed} are allowed")
    if found["tensors more at the end"] > 0:
        faults.append(f"{found['tensors more at the end']} tensors stayed")
    for what in ("threads", "open files"):
        if found[what][1] > found[what][0] + 2:
            faults.append(f"{what} became more: {found[what]}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a classifier of texts or images")
    parser.add_argument("--data-dir", help="of texts or images; made ones if it is left out")
    parser.add_argument("--inputs", type=int, default=64, help="how many of them")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each mode")
    parser.add_argument("--clients", type=int, default=4, help="threads that ask")
    parser.add_argument("--batch-size", type=int, default=8, help="largest batch of the queue")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--allowed-growth", type=float, default=8.0, help="MiB behind the warm-up, by regression")
    parser.add_argument("--note", help="to stand in the JSON, for example what else the machine did")
    args = parser.parse_args()
    if args.minutes <= 0 or min(args.inputs, args.clients, args.batch_size) < 1:
        parser.error("--minutes, --inputs, --clients and --batch-size have to be positive.")
    try:
        kind = class_of(args.model)[0].__name__
    except (OSError, ValueError) as error:
        parser.error(str(error))
    of_text = kind.endswith("ForSequenceClassification")
    if not of_text and not kind.endswith("ForImageClassification"):
        parser.error(f"{args.model} holds a {kind}: only classifiers of texts and images are served here.")
    serve = pipeline("text-classification" if of_text else "image-classification", model=args.model)
    options: dict[str, Any] = {"top_k": serve.model.config.num_labels}
    if of_text:
        options.update(truncation=True, max_length=min(64, serve.model.max_tokens))
    asked = (texts if of_text else images)(args.inputs, args.data_dir)
    expected = [ask(serve, one, **options) for one in tqdm(asked, desc="serial run", unit="input")]
    found = {
        **provenance(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "network": kind,
        "inputs": len(asked),
        "inputs that cannot be answered": sum(isinstance(one, str) for one in expected),
        "data": args.data_dir,
        **({"note": args.note} if args.note else {}),
        "runs": [],
    }
    faults = []
    for mode in args.modes:
        measured = run(serve, asked, expected, mode, args.minutes, args.clients, args.batch_size, options)
        found["runs"].append(measured)
        faults += [f"{mode}: {fault}" for fault in problems(measured, args.allowed_growth)]
        if measured["cut off"]:
            break
    print(json.dumps({**found, "faults": faults}, indent=1, ensure_ascii=False))
    for fault in faults:
        print(f"FAULT, {fault}.", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
