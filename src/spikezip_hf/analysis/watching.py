"""One input after another, watched step by step: what `spikezip app` shows, without the page.

watcher = Watcher(snn, tokenizer, time_steps=512)
watched = watcher.watch("a stirring , funny film")  # simulates; everything after it is looked up
watched.frame(12).probabilities
"""

import os
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from spikezip_hf.analysis.closeup import CloseUp, attention_nodes, attention_of_head, close_up, within_windows
from spikezip_hf.analysis.recording import check_classifier
from spikezip_hf.auto import spiking_class
from spikezip_hf.loading import is_text
from spikezip_hf.models.configuration_quantization import check_positive_integer, pair
from spikezip_hf.models.image_processing_events import EventImageProcessor
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel

EXAMPLES = (
    "a stirring , funny film",
    "apparently reassembled from the cutting-room floor",
    "not bad at all , though I would not watch it twice",
    "The room was clean , but the night was loud .",
)


@dataclass(frozen=True, eq=False)
class Frame:
    """A network after one step.

    Attributes:
        step: from 1.
        logits, probabilities: (classes,), those of this step.
        answer: class with the largest logit.
        spikes: (nodes,) int64, spikes in this step; `so_far`: up to it.
        firing_rate: (nodes,) float64, spikes per neuron in this step.
        attention: (positions,) of what the head reads in the last layer, mean over heads; accumulated.
        settled: at equilibrium by then, so that nothing changes any more.
    """

    step: int
    logits: torch.Tensor
    probabilities: torch.Tensor
    answer: str
    spikes: torch.Tensor
    so_far: torch.Tensor
    firing_rate: torch.Tensor
    attention: torch.Tensor
    settled: bool


@dataclass(frozen=True, eq=False)
class Watched:
    """An input that was simulated, to be looked at after each of its steps.

    Attributes:
        seen: its run, with levels of `raster_nodes` and of `attention_node`.
        time_steps: most steps that it was given.
        class_names, node_names: of the network.
        tokens: of a text, one for each position; or
        picture: (H, W, 3 or 1), 0 to 1, and `grid`, (rows, columns) of its patches.
        config: of the network.
    """

    seen: CloseUp
    time_steps: int
    class_names: tuple[str, ...]
    node_names: tuple[str, ...]
    raster_nodes: tuple[str, ...]
    attention_node: str
    config: Any
    tokens: tuple[str, ...] | None = None
    picture: torch.Tensor | None = None
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Steps of the run: T_eq, or the most it was given."""
        return len(self.seen.logits_per_step)

    @property
    def equilibrium_step(self) -> int | None:
        """T_eq; None: not proven."""
        return self.seen.equilibrium_step if self.seen.equilibrium_step > 0 else None

    @cached_property
    def attention(self) -> torch.Tensor:
        """(T, positions) of what the head reads to each, in the last layer, mean over heads, accumulated."""
        return attention_of_head(self.config, self.seen.values(self.attention_node)).mean(-2)

    @cached_property
    def expected_attention(self) -> torch.Tensor:
        """(positions,), the same in the quantized network."""
        return attention_of_head(self.config, self.seen.expected_values(self.attention_node)).mean(-2)

    @cached_property
    def firing_rate(self) -> torch.Tensor:
        """(T, nodes) float64, spikes per neuron in each step."""
        return self.seen.spikes / self.seen.neurons.double()

    @cached_property
    def cumulative(self) -> torch.Tensor:
        """(T, nodes) int64, spikes up to each step."""
        return self.seen.spikes.cumsum(0, dtype=torch.int64)

    @property
    def expected_probabilities(self) -> torch.Tensor:
        return self.seen.expected_logits.softmax(-1)

    def frame(self, step: int) -> Frame:
        """What there is after a step.

        Raises:
            ValueError: there was no such step.
        """
        if not 1 <= step <= len(self):
            raise ValueError(f"step must be from 1 to {len(self)}, got {step}.")
        logits = self.seen.logits_per_step[step - 1]
        return Frame(
            step=step,
            logits=logits,
            probabilities=logits.softmax(-1),
            answer=self.class_names[int(logits.argmax())],
            spikes=self.seen.spikes[step - 1].long(),
            so_far=self.cumulative[step - 1],
            firing_rate=self.firing_rate[step - 1],
            attention=self.attention[step - 1],
            settled=self.equilibrium_step is not None and step >= self.equilibrium_step,
        )

    def facts(self) -> dict[str, Any]:
        """The run in numbers, by name."""
        seen = self.seen
        answers = seen.logits_per_step.argmax(-1)
        changes = (answers != answers[-1]).nonzero().flatten()
        return {
            "QANN answer": self.class_names[int(seen.expected_logits.argmax())],
            "SNN answer": self.class_names[int(answers[-1])],
            "final answer from T": int(changes[-1]) + 2 if len(changes) else 1,
            "T_eq": self.equilibrium_step,
            "steps": len(self),
            "logits equal": self.equilibrium_step is not None
            and torch.equal(seen.logits_per_step[-1], seen.expected_logits),
            "spikes": int(seen.spikes.sum(dtype=torch.int64)),
            "neurons": int(seen.neurons.sum()),
            "spikes per neuron": int(seen.spikes.sum(dtype=torch.int64)) / int(seen.neurons.sum()),
        }

    def answer_rows(self, step: int, most: int = 10) -> list[dict[str, Any]]:
        """A row for each class, those that the quantized network finds likeliest first: both networks' answers."""
        frame = self.frame(step)
        order = self.seen.expected_logits.argsort(descending=True, stable=True)[:most].tolist()
        if (said := int(frame.logits.argmax())) not in order:  # what is answered is always there
            order[-1] = said
        return [
            {
                "class": self.class_names[number],
                "SNN logit": float(frame.logits[number]),
                "SNN probability": float(frame.probabilities[number]),
                "QANN logit": float(self.seen.expected_logits[number]),
                "QANN probability": float(self.expected_probabilities[number]),
            }
            for number in order
        ]

    def node_rows(self, step: int) -> list[dict[str, Any]]:
        """A row for each node, from input to output: spikes in this step and so far."""
        frame = self.frame(step)
        neurons = self.seen.neurons.tolist()
        columns = (self.node_names, neurons, frame.spikes.tolist(), frame.firing_rate.tolist(), frame.so_far.tolist())
        return [
            {
                "node": name,
                "neurons": count,
                "spikes in this step": fired,
                "firing rate": rate,
                "spikes per neuron so far": total / count,
            }
            for name, count, fired, rate, total in zip(*columns)
        ]


class Watcher:
    """A network that inputs are given to, one at a time; calls from several threads wait for one another.

    Args:
        model: classifier of texts or images: a Spike model, or a Quant model, whose spiking twin is then watched.
        processor: its tokenizer or image processor.
        time_steps: most steps an input is given; it stops at equilibrium.
        max_length: most tokens of a text; the network's own limit holds, too.

    Raises:
        ValueError: the model is no such classifier, attends within windows or is given recordings of events, or a
            number is no positive integer.
    """

    def __init__(self, model: TwinPreTrainedModel, processor: Any, time_steps: int = 512, max_length: int = 128):
        check_positive_integer("time_steps", time_steps)
        check_positive_integer("max_length", max_length)
        if isinstance(model, SpikePreTrainedModel):
            check_classifier(model)
            self.twin, self.model = model.to_quantized(), model
        else:
            self.model = spiking_class(type(model)).from_quantized(model, time_steps=time_steps)
            check_classifier(self.model)
            self.twin = model
        if within_windows(model.config):
            raise ValueError(
                f"{type(model).__name__} attends within windows, and maps of the whole image are shown here: look at "
                "it with `spikezip report`."
            )
        if isinstance(processor, EventImageProcessor):
            raise ValueError(
                f"{type(model).__name__} is given recordings of events, and texts and pictures are watched here: look "
                "at it with `spikezip report`."
            )
        self.processor = processor
        self.time_steps = time_steps
        self.of_text = is_text(model.config.model_type)
        self.max_length = min(max_length, self.model.max_tokens) if self.of_text else None
        self.raster_nodes = nodes_of_raster(self.model.node_names)
        self.attention_node = attention_nodes(self.model)[-1]
        self.lock = threading.Lock()

    def watch(self, what: Any) -> Watched:
        """Simulate a text; or an image, of PIL or as the path of a file.

        Raises:
            ValueError: it cannot be simulated; one line for whoever gave it.
            FloatingPointError: the network computes NaN.
        """
        return self.watch_text(what) if self.of_text else self.watch_image(what)

    def watch_text(self, text: str | None) -> Watched:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"A text is watched here, and this is of the type {type(text).__name__}.")
        if not text or not text.strip():
            raise ValueError("There is no text: type a sentence.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("The text has half a character in it (a lone surrogate): type it anew.")
        inputs = dict(self.processor(text.strip(), return_tensors="pt", verbose=False))
        ids = inputs["input_ids"][0].tolist()
        if len(ids) > self.max_length:  # type: ignore[operator]
            raise ValueError(
                f"The text is too long: {len(ids)} tokens, where at most {self.max_length} are simulated. Shorten it."
            )
        if set(ids) <= set(self.processor.all_special_ids):
            raise ValueError("Nothing of this text is in the network's vocabulary: type another.")
        return self.run(inputs, tokens=tuple(self.processor.convert_ids_to_tokens(ids)))

    def watch_image(self, image: Any) -> Watched:
        if image is None:
            raise ValueError("There is no image: drop one, or choose a file.")
        config = self.model.config
        image = read_image(image, "L" if config.num_channels == 1 else "RGB")
        if min(image.size) < 1 or max(image.size) > 100 * min(image.size):
            raise ValueError(f"The image is {image.width} x {image.height}: it is too thin to be looked at.")
        inputs = dict(self.processor(images=image, return_tensors="pt"))
        (height, width), (patch_height, patch_width) = pair(config.image_size), pair(config.patch_size)
        grid = (height // patch_height, width // patch_width)
        return self.run(inputs, picture=visible(inputs["pixel_values"][0]), grid=grid)

    def run(self, inputs: dict[str, torch.Tensor], **shown: Any) -> Watched:
        nodes = list(dict.fromkeys([*self.raster_nodes, self.attention_node]))
        with self.lock:  # what is recorded is recorded by hooks, one run at a time
            seen = close_up(self.model, inputs, nodes, self.time_steps, twin=self.twin)
        names = self.model.config.id2label
        return Watched(
            seen=seen,
            time_steps=self.time_steps,
            class_names=tuple(str(names[number]) for number in range(self.model.config.num_labels)),
            node_names=tuple(self.model.node_names),
            raster_nodes=self.raster_nodes,
            attention_node=self.attention_node,
            config=self.model.config,
            **shown,
        )


def nodes_of_raster(names: list[str]) -> tuple[str, ...]:
    """The first node, the middle one and the last."""
    return tuple(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def read_image(image: Any, mode: str) -> Any:
    """A PIL image of this mode, of one or of the path of a file; a photograph is turned as its camera says.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image | str | os.PathLike):
        raise ValueError(f"An image of PIL or the path of a file is watched here, and this is {type(image).__name__}.")
    try:
        return ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.open(image)).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of PIL, of broken files
        reason = "it is no image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"This file cannot be read as an image: {reason}.") from error


def visible(pixels: torch.Tensor) -> torch.Tensor:
    """What a network was shown, ([F,] channels, H, W) in its own scale, as a picture (H, W, 3 or 1), 0 to 1."""
    pixels = pixels.float().sum(0) if pixels.dim() == 4 else pixels.float()
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    low, high = pixels.min(), pixels.max()
    return ((pixels - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)
