# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The configuration fields that all architectures share, and their checks."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from .quantization import level_bounds
from .version import __version__, check_version

WEIGHT_BITS = (None, 8)
GRANULARITIES = ("per_tensor", "per_channel", "mixed")
FIRING_SCHEDULES = ("synchronous", "layerwise", "nodewise", "coarse_to_fine")
NODE_PLACEMENTS = ("full", "reference")
MAX_REDUCED_CHANNELS = 1024  # a pretrained ViT has 3
HEAD_ACTIVATIONS = ("relu", "tanh")
STOPS = ("equilibrium", "never", "confidence")
# Fields of a spiking model's output beside its logits: Trainer, pipelines and evaluate want these and nothing else.
RECORDS = [
    "logits_per_step",
    "equilibrium_step",
    "decision_step",
    "spike_counts",
    "neuron_counts",
    "hidden_states",
    "attentions",
]


def check_positive_integer(name: str, value: object) -> None:
    """Raises ValueError, naming the field, unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_reduced_channels(value: object) -> None:
    """Raises ValueError unless `value` is from 1 to 1024: one wrong number in a file shall not take all memory."""
    check_positive_integer("reduced_channels", value)
    if value > MAX_REDUCED_CHANNELS:  # type: ignore[operator]
        raise ValueError(f"reduced_channels must be at most {MAX_REDUCED_CHANNELS}, got {value}.")


def pair(size) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def check_image_sizes(config) -> None:
    """Raises ValueError, naming the field, unless images of this config have a pixel, and one patch or more."""
    check_positive_integer("num_channels", config.num_channels)
    for name in ("image_size", "patch_size"):
        for side in pair(getattr(config, name)):
            check_positive_integer(name, side)
    if any(side < patch for side, patch in zip(pair(config.image_size), pair(config.patch_size), strict=True)):
        raise ValueError(f"image_size, {config.image_size}, is less than patch_size, {config.patch_size}.")


def check_weights_name(config) -> None:
    """Raises ValueError if a config names a file of weights of its own, which has no seal and may be a pickle."""
    if (name := getattr(config, "transformers_weights", None)) is not None:
        raise ValueError(f"transformers_weights is {name!r}: weights are read from model.safetensors. Leave it out.")


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Raises ValueError, naming the field, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_stop(stop: object, confidence_threshold: object) -> None:
    """Raises ValueError, naming the field, unless a simulation can be stopped like this."""
    check_choice("stop", stop, STOPS)
    if stop == "confidence" and confidence_threshold is None:
        raise ValueError(
            'stop="confidence" needs confidence_threshold: the lead of the largest logit at which to stop. '
            "`spikezip_hf.analysis.confidence` calibrates one on held-out data."
        )
    if confidence_threshold is None:
        return
    number = isinstance(confidence_threshold, Real) and not isinstance(confidence_threshold, bool)
    if not number or not 0.0 < float(confidence_threshold) < float("inf"):  # type: ignore[arg-type]
        raise ValueError(f"confidence_threshold must be a number above 0, got {confidence_threshold!r}.")
    if stop != "confidence":
        raise ValueError(f'confidence_threshold is for stop="confidence", and stop is {stop!r}.')


SPIKING_FIELDS = (
    "time_steps",
    "max_spikes_per_step",
    "firing_schedule",
    "firing_window",
    "firing_steps",
    "fine_steps",
    "stop",
    "confidence_threshold",
    "chunk_steps",
)
# What a ViT of timm or DeiT may have otherwise than transformers' own.
VIT_FIELDS = (
    "pooling",
    "use_class_token",
    "use_distillation_token",
    "norm_after_pooling",
    "positions_of_patches_only",
)
# Fields that say what a trained network computes: to load it with others would make another network of it.
NETWORK_FIELDS = (
    "quantization_levels",
    "scale_granularity",
    "weight_bits",
    "node_placement",
    "head_act",
    *VIT_FIELDS,
    "reduced_channels",  # not in VIT_FIELDS: the ordinary network for event cameras has it too
    "image_size",  # no weight of a Swin has a size that would show another
)


@dataclass(kw_only=True, repr=False)
class QuantizationFields:
    """Fields of every Quant and Spike config.

    Args:
        quantization_levels: levels L of each activation, even, 4 to 256. Signed activations take -L/2 .. L/2-1,
            those behind a ReLU or a softmax 0 .. L-1.
        scale_granularity: "per_tensor", one threshold for all neurons of a node; "per_channel", one for each channel;
            "mixed", one for each channel of the nodes as wide as the hidden state (embeddings, LayerNorms, outputs),
            where a few channels are huge, and one in all inside attention and MLP. Attention probabilities, whose last
            dimension is positions, always have one in all.
        weight_bits: None for weights in floating point; 8 for weights of 8 bits in every linear map, convolution and
            head, with one scale for each output channel. Embeddings and LayerNorms, no products, keep theirs.
        drop_path_rate: in training, share of samples for which a residual branch is left out in the last layer; it
            grows from 0 in the first. Without effect on what a trained network computes.
        source_model: Hub id of the ordinary network that this one was made from, for its model card; None if unknown.
        spikezip_version: version of this library that wrote the file.
    """

    _auto_class = "AutoConfig"  # the code travels with what is saved
    heads: ClassVar[tuple[str, ...]]  # tasks that the architecture has classes for

    quantization_levels: int = 32
    scale_granularity: str = "per_tensor"
    weight_bits: int | None = None
    drop_path_rate: float = 0.0
    source_model: str | None = None
    spikezip_version: str = __version__

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.auto_map = self.make_auto_map()
        self.spikezip_version = __version__  # whatever wrote the file, this is what would write the next
        self.check_fields()

    def make_thin(self) -> None:
        """Become the config of the same network with one channel a head: for a look at its parts."""
        config: Any = self
        config.hidden_size, config.intermediate_size = config.num_attention_heads, 1
        if hasattr(config, "image_size"):
            config.image_size = config.patch_size

    @property
    def depth(self) -> int:
        """Layers one after another."""
        return self.num_hidden_layers  # type: ignore[attr-defined]

    @classmethod
    def make_auto_map(cls) -> dict[str, str]:
        """Where the Auto classes find the classes of this architecture, all of them, in the files beside a checkpoint.

        What transformers writes by itself is the entry of the class that was saved, which leaves `AutoModel` unable to
        load a classifier.
        """
        owner = next(parent for parent in cls.__mro__ if "model_type" in vars(parent))
        module, name = owner.__module__.rpartition(".")[2], owner.__name__
        modeling, prefix = module.replace("configuration", "modeling"), name.removesuffix("Config")
        return {
            "AutoConfig": f"{module}.{name}",
            "AutoModel": f"{modeling}.{prefix}Model",
            **{f"AutoModelFor{head}": f"{modeling}.{prefix}For{head}" for head in cls.heads},
        }

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """`PreTrainedConfig.get_config_dict`, with an error that says which file holds something else.

        Raises:
            ValueError: config.json holds JSON that is no set of fields.
        """
        try:
            config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
            return dict(config.items()), unused
        except (AttributeError, TypeError, RecursionError) as error:
            raise ValueError(
                f"config.json of {pretrained_model_name_or_path} holds no set of fields ({error}): put the one back "
                "that was saved with the weights."
            ) from error

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """`PreTrainedConfig.from_dict`, which is what loading a file ends in.

        Raises:
            ValueError: the file is from a later version of this library; a field that is given beside it would make
                another network of the checkpoint, or is out of range.
        """
        check_version(config_dict.get("spikezip_version", __version__))
        for name in NETWORK_FIELDS:
            if name in kwargs and kwargs[name] != config_dict.get(name, getattr(cls, name, None)):
                raise ValueError(
                    f"{name} of the checkpoint is {config_dict.get(name, getattr(cls, name, None))!r} and cannot "
                    f"become {kwargs[name]!r} while it is loaded: it would be another network. Make that one from an "
                    f"ordinary network with this {name}, or with from_ann(ann, {name}={kwargs[name]!r})."
                )
        loaded = super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        (loaded[0] if isinstance(loaded, tuple) else loaded).check_fields()  # fields given beside the file are new
        return loaded

    def check_fields(self) -> None:
        """Raises ValueError, naming the field, if one is out of range."""
        check_weights_name(self)
        level_bounds(self.quantization_levels, signed=True)
        check_choice("scale_granularity", self.scale_granularity, GRANULARITIES)
        check_choice("weight_bits", self.weight_bits, WEIGHT_BITS)
        if not 0.0 <= self.drop_path_rate < 1.0:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {self.drop_path_rate}.")
        if getattr(self, "hidden_act", "relu") != "relu":
            raise ValueError(
                f"hidden_act must be 'relu', got {self.hidden_act!r}: an unsigned neuron is a ReLU. Fine-tune the "  # type: ignore[attr-defined]
                "network with hidden_act='relu' first, or convert it with from_ann(..., replace_activations=True)."
            )


@dataclass(kw_only=True, repr=False)
class SpikeFields(QuantizationFields):
    """Fields of every Spike config.

    Args:
        time_steps: T, most steps of a simulation.
        max_spikes_per_step: k, spikes that a neuron may fire in one step. 1 is the paper's neuron.
        firing_schedule: when nodes may fire. "synchronous": all from the first step (the paper). "layerwise": those
            of layer l after step l * firing_window. "nodewise": each from its own step, `firing_steps`.
            "coarse_to_fine": so, and up to its step of `fine_steps` only where a level is two away from its target or
            more. The fixed point is the same. `calibrate_schedule` makes the latter two.
        firing_window: steps between layers of the layerwise schedule; None for quantization_levels / 2.
        firing_steps, fine_steps: {node name: step, from 1}, of the nodewise and coarse_to_fine schedules.
        stop: when a simulation ends. "equilibrium": when every sample is proven to be there, or at T. "never": at T.
            "confidence": a sample is done as soon as its largest logit leads the next by `confidence_threshold`; its
            answer may be another than the quantized network's then.
        confidence_threshold: that lead, in units of logits; calibrate it on held-out data.
        chunk_steps: most steps computed at once; None to choose by memory, 64 at most where a run may end early. What
            is proven does not depend on it; nor does anything with weights of 8 bits and one scale a node.
    """

    time_steps: int = 64
    max_spikes_per_step: int = 1
    firing_schedule: str = "synchronous"
    firing_window: int | None = None
    firing_steps: dict[str, int] | None = None
    fine_steps: dict[str, int] | None = None
    stop: str = "equilibrium"
    confidence_threshold: float | None = None
    chunk_steps: int | None = None

    def check_fields(self) -> None:
        super().check_fields()
        check_positive_integer("time_steps", self.time_steps)
        check_stop(self.stop, self.confidence_threshold)
        if self.chunk_steps is not None:
            check_positive_integer("chunk_steps", self.chunk_steps)
        check_positive_integer("max_spikes_per_step", self.max_spikes_per_step)
        check_choice("firing_schedule", self.firing_schedule, FIRING_SCHEDULES)
        if self.firing_window is not None:
            check_positive_integer("firing_window", self.firing_window)
        for name, schedules in (
            ("firing_steps", ("nodewise", "coarse_to_fine")),
            ("fine_steps", ("coarse_to_fine",)),
        ):
            steps = getattr(self, name)
            if self.firing_schedule in schedules and not steps:
                raise ValueError(
                    f"firing_schedule={self.firing_schedule!r} needs {name}: convert without it, and call "
                    f"calibrate_schedule(batches, {self.firing_schedule!r}) of the spiking model, which writes them."
                )
            for node, step in (steps or {}).items():
                check_positive_integer(f"{name}[{node!r}]", step)

    def first_firing_step(self, node) -> int:
        """First step, from 1, at which a node may fire.

        Raises:
            ValueError: the schedule does not name it.
        """
        if self.firing_schedule == "synchronous":
            return 1
        if self.firing_schedule == "layerwise":
            window = self.quantization_levels // 2 if self.firing_window is None else self.firing_window
            return 1 + node.stage * window
        return self.step_of(node, "firing_steps")

    def first_fine_step(self, node) -> int:
        """First step, from 1, at which a node fires at a difference of one level, as the paper's does from the first.

        Raises:
            ValueError: the schedule does not name it.
        """
        return self.step_of(node, "fine_steps") if self.firing_schedule == "coarse_to_fine" else 1

    def step_of(self, node, field: str) -> int:
        steps = getattr(self, field) or {}
        if node.name not in steps:
            raise ValueError(
                f"{field} of the config has no step for {node.name}: it was made for another network. Call "
                "calibrate_schedule of this one."
            )
        return steps[node.name]

    def schedule(self, nodes) -> dict[str, dict[str, int]]:
        """What a spiking engine is told of the schedule, for these nodes."""
        return {
            "first_firing_step": {node.name: self.first_firing_step(node) for node in nodes},
            "first_fine_step": {node.name: self.first_fine_step(node) for node in nodes},
        }


@dataclass(kw_only=True, repr=False)
class TextFields:
    """Fields of the Quant and Spike configs of BERT and RoBERTa.

    Args:
        node_placement: "full", nodes ahead of and behind every matrix product. "reference", as in the text branch of
            the paper's code: outputs of embeddings and LayerNorms stay analog, and the context is clipped at 0. It is
            for checkpoints of that code; `product_inputs()` lists the products that then see analog input.
        head_act: activation of the hidden layer in the head of a sequence classifier: "relu", an unsigned node (the
            paper), or "tanh", BERT's and RoBERTa's own, an operator like softmax, with a signed node behind it.
    """

    scale_granularity: str = "mixed"  # a few channels of pretrained text encoders are huge
    node_placement: str = "full"
    head_act: str = "relu"

    heads: ClassVar[tuple[str, ...]] = ("SequenceClassification", "TokenClassification")

    def check_fields(self) -> None:
        super().check_fields()  # type: ignore[misc]
        check_choice("node_placement", self.node_placement, NODE_PLACEMENTS)
        check_choice("head_act", self.head_act, HEAD_ACTIVATIONS)
        for name, usual in (
            ("is_decoder", False),
            ("add_cross_attention", False),
            ("position_embedding_type", "absolute"),
        ):
            if getattr(self, name, usual) not in (usual, None):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}: only encoders with absolute positions can be quantized here."
                )
        hidden_size, heads = self.hidden_size, self.num_attention_heads  # type: ignore[attr-defined]
        if hidden_size % heads:
            raise ValueError(f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({heads}).")


# Fields that may change when a network is converted: they do not say what it computes.
FREE_FIELDS = (
    "id2label",
    "label2id",
    "problem_type",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "drop_path_rate",
)
# Fields that say where a config came from.
PROVENANCE_FIELDS = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "spikezip_version",
    "_name_or_path",
)


def derive_config(config_class, source, **fields):
    """A config of `config_class` for the network that `source` describes, with `fields` set.

    Raises:
        ValueError: no such field, a value out of range, or a field that the network has already; names it.
    """
    for name, value in fields.items():
        if not hasattr(config_class(), name):
            raise ValueError(f"{name}: no such field in {config_class.__name__}.")
        if name not in FREE_FIELDS and hasattr(source, name) and getattr(source, name) != value:
            raise ValueError(
                f"{name} of the network to convert is {getattr(source, name)!r} and cannot become {value!r} here: it "
                "would be another network."
            )
    if "id2label" in fields and len(fields["id2label"]) != source.num_labels:
        raise ValueError(
            f"id2label names {len(fields['id2label'])} labels, the network to convert has {source.num_labels}."
        )
    foreign = [name for name in SPIKING_FIELDS if not hasattr(config_class, name)]  # to a Quant config
    inherited = {key: value for key, value in source.to_dict().items() if key not in (*PROVENANCE_FIELDS, *foreign)}
    return config_class.from_dict({**inherited, **fields})
