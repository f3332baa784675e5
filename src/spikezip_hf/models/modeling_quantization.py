# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What Quant and Spike models of every architecture share: safe loading, calibration, conversion, simulation."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .checkpoint_contents import SCALE_TYPES, check_network, check_types, lone_scales, types_in
from .checkpoints import CheckpointModel, adapted
from .configuration_quantization import check_choice, check_positive_integer, check_stop, derive_config
from .engines import CumulativeEngine, EventEngine, QuantEngine, SpikingEngine
from .kernels import in_fixed_point, products_with_neurons
from .operators import Conv2d, LinearMap, PatchLinear
from .placement import ProductReport, ProvenanceEngine
from .quantization import LSQQuantizer, Quantizer
from .remembering import parameters_remembered
from .simulation import Trajectory, closed_form, confirm_levels, default_chunk, simulate

logger = logging.get_logger(__name__)

EXECUTIONS = ("cumulative", "event", "equilibrium")


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; each module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class TwinPreTrainedModel(CheckpointModel):
    """Base of all Quant and Spike models: a quantized network and its spiking twin have the same parts."""

    _auto_class = "AutoModel"  # the code travels with what is saved; a class with a head names that one's
    _keep_in_fp32_modules_strict = ["scale"]  # thresholds stay exact when weights are loaded in half precision
    integer_scores = True  # attention scores are levels times levels: whole numbers with one scale
    accepts_loss_kwargs = False  # the loss is a mean over the batch; Trainer divides by accumulation steps

    def post_init(self):
        super().post_init()
        # What a base model overlooks in a file is not for the model around it to overlook.
        self._keys_to_ignore_on_load_unexpected = set(
            getattr(type(self), "_keys_to_ignore_on_load_unexpected", None) or ()
        )

    @property
    def construction(self) -> dict:
        """Arguments of the constructor, beside the config, that make a model with the same parts."""
        return {}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PatchLinear):  # as the convolution that it is
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)
        if isinstance(module, Quantizer):
            init.constant_(module.scale, module.default_scale)
            init.zeros_(module.initialized)

    @property
    def nodes(self) -> list[LSQQuantizer]:
        """Activation nodes, in the order in which a forward pass reaches them."""
        return [module for module in self.modules() if isinstance(module, LSQQuantizer)]

    @property
    def quantizers(self) -> list[Quantizer]:
        """Everything with a learned scale: the nodes, and the quantizers of weights where `weight_bits` is set."""
        return [module for module in self.modules() if isinstance(module, Quantizer)]

    @classmethod
    def twin_of(cls, other: "TwinPreTrainedModel", **config_fields):
        """A model of this class with the weights and scales of its twin, on the same device, in eval mode."""
        config = derive_config(cls.config_class, other.config, **config_fields)
        with torch.device("meta"):
            twin = cls(config, **other.construction)
        twin.to_empty(device=other.device)
        # Assigning and not copying keeps each tensor's own type; the clone keeps the twins apart.
        twin.load_state_dict({key: value.clone() for key, value in other.state_dict().items()}, assign=True)
        twin.inherit_processor(other)
        return twin.eval()

    def inputs_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a batch: all but the labels, tensors on its device."""
        return {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name != "labels"
        }

    def prepare(self, **inputs):
        """The model's inputs checked and completed, as `network` takes them."""
        raise NotImplementedError

    def network(self, inputs, engine, output_hidden_states=None, output_attentions=None) -> ModelOutput:
        """One pass over prepared inputs on `engine`; its rows are what the engine says."""
        raise NotImplementedError

    def layer_sizes(self, inputs: torch.Tensor) -> Iterable[tuple[int, int, int, int, int]]:
        """(positions, positions that each attends to, width, width inside the MLP, heads) of the network's layers."""
        config, positions = self.config, self.positions_of(inputs)
        yield positions, positions, config.hidden_size, config.intermediate_size, config.num_attention_heads

    def positions_of(self, inputs: torch.Tensor) -> int:
        """N, positions of the sequences that the network makes of `inputs`, where layers have one size."""
        raise NotImplementedError

    def output_flags(self, output_hidden_states: bool | None, output_attentions: bool | None) -> tuple[bool, bool]:
        """The two flags, those of the config where they are None."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return output_hidden_states, output_attentions

    @torch.no_grad()
    def product_inputs(self) -> ProductReport:
        """What every matrix product of this network takes in: spikes, static weights or analog values.

        Observed in a forward pass over `dummy_inputs`, so it says what is, not what was meant to be.
        """
        engine = ProvenanceEngine()
        with eval_mode(self):
            self.network(self.prepare(**self.dummy_inputs), engine)
        return ProductReport(engine.products, engine.operators)

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes: the columns of `spike_counts`, and the keys of a certificate's `mismatches`."""
        return [node.name for node in self.nodes]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """`PreTrainedModel.from_pretrained`, refusing a checkpoint whose thresholds are missing or unusable.

        Raises:
            OSError: there is no checkpoint, or its weights are cut off or altered.
            ValueError: the checkpoint has no scales (it is not of a Quant or Spike model); a scale is not finite, not
                positive or of a type that rounds it; a weight is not finite; it lacks a part of the network that is
                no new head, or has one more; for Spike models also if a scale was never calibrated or any weight is
                missing.
            RuntimeError: a tensor has another shape than the config says, without `ignore_mismatched_sizes`.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def load(cls, pretrained_model_name_or_path, *args, **kwargs):
        want_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        source = "state_dict" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        given = kwargs.get("state_dict") or {}
        check_types(source, {name: SCALE_TYPES.get(x.dtype, str(x.dtype)) for name, x in given.items()})
        # transformers would name no tensor in its error.
        model, info = super().load(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if info["mismatched_keys"] and not may_differ:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise RuntimeError(
                f"{source}: {name} is {list(found)} there, and {list(expected)} of a {cls.__name__} with this config. "
                "If it is a head that shall be a new one of another size, say ignore_mismatched_sizes=True."
            )
        mismatched = [name for name, *_ in info["mismatched_keys"]]
        missing = sorted({*info["missing_keys"], *mismatched})
        if adapted(model) and any(".modules_to_save." in key for key in missing):
            raise ValueError(
                "This version of transformers does not load the scales that an adapter holds: load it with peft's "
                "PeftModel.from_pretrained(base, adapter), or upgrade transformers (5.23 does)."
            )
        for path, module in model.named_modules():
            if isinstance(module, Quantizer) and f"{path}.scale" in mismatched:
                module.initialized.fill_(False)  # the file says that it is set, but of another size
        model.check_loaded(source, missing, sorted(info["unexpected_keys"]))
        model.check_whole(source, sorted(info["missing_keys"]))
        return (model, info) if want_info else model

    def check_file(self, path: str) -> None:
        check_types(path, types_in(path))
        check_network(path, self.config)

    def check_loaded(self, source: str, missing_keys: list[str], unexpected_keys: list[str]) -> None:
        """Raise ValueError if what was loaded from `source` is not a usable model of this class.

        A part that is missing whole, weights and all, is a new head, to be trained: its scales may be missing too.
        """
        missing_scales = lone_scales(missing_keys)
        if missing_scales:
            raise ValueError(
                f"{source} holds no scales of the right size for this network (first: {missing_scales[0]}), so it is "
                f"not a checkpoint of {type(self).__name__}. Convert an ordinary model with "
                f"{type(self).__name__.replace('Spike', 'Quant')}.from_ann(ann) and calibrate it."
            )
        if self.config.weight_bits is None and any(".weight_quantizer." in key for key in unexpected_keys):
            raise ValueError(f"{source} has quantized weights: load it without changing weight_bits.")
        if lone := lone_scales(unexpected_keys):
            raise ValueError(
                f"{source} holds {lone[0]}, and {type(self).__name__} with this config has no quantizer there: it "
                "is a checkpoint of another network. Load it with the config.json that was saved with it."
            )
        self.check_nodes(allow_uncalibrated=True)

    def check_whole(self, source: str, missing_keys: list[str]) -> None:
        """Raise ValueError if a weight below the head is missing: scales that are there are of what is lost."""
        below = "" if self.base_model is self else f"{self.base_model_prefix}."
        heads = getattr(type(self.base_model), "_keys_to_ignore_on_load_unexpected", None) or ()
        for key in missing_keys:
            if key.startswith(below) and not any(re.search(head, key.removeprefix(below)) for head in heads):
                raise ValueError(
                    f"{source} lacks {key}, without which {type(self).__name__} would answer at random: save it again "
                    "from where it was made."
                )

    def check_nodes(self, allow_uncalibrated: bool = False) -> None:
        """Raise ValueError, naming the first quantizer whose scale cannot be used, or weight that is not finite."""
        for quantizer in self.quantizers:
            if problem := quantizer.problem(allow_unset=allow_uncalibrated):
                raise ValueError(
                    f"{quantizer.name}.scale {problem}. Calibrate the quantized model with calibrate(batches), or "
                    "train it with a lower learning rate for scales if training broke it."
                )
        for name, parameter in self.named_parameters():
            if parameter.numel() and not all(bool(end.isfinite()) for end in parameter.detach().aminmax()):
                raise ValueError(
                    f"{name} holds values that are not finite (NaN or infinity), so every answer would be wrong. Take "
                    "a checkpoint from before the training that broke it."
                )


class QuantPreTrainedModel(TwinPreTrainedModel):
    """Base of Quant models: making one from an ordinary model, and setting its scales."""

    _seen_calibrated = False

    def checked_engine(self, engine: QuantEngine | None) -> QuantEngine:
        """`engine`, or one of values if None, with a word if scales were never set."""
        if engine is not None:
            return engine
        self.warn_if_uncalibrated()
        return QuantEngine()

    @property
    def calibrated(self) -> bool:
        """Whether every scale was set, by `calibrate`, training or a checkpoint."""
        return all(bool(quantizer.initialized) for quantizer in self.quantizers)

    def fit_weights(self, overwrite: bool = True) -> None:
        """Set the scales of quantized weights from the weights.

        Args:
            overwrite: also those that are set already.

        Raises:
            ValueError: a weight is not finite; names it.
        """
        for module in self.modules():
            quantizer = module.weight_quantizer if isinstance(module, Conv2d | LinearMap) else None
            if quantizer is not None and (overwrite or not bool(quantizer.initialized)):
                quantizer.fit(module.weight)

    def warn_if_uncalibrated(self) -> None:
        """Say once that the answers of a model mean nothing before its scales are set."""
        if self._seen_calibrated or torch.compiler.is_compiling():
            return
        self._seen_calibrated = self.calibrated
        if not self._seen_calibrated:
            logger.warning_once(
                f"The scales of this {type(self).__name__} were never set, so its answers mean little: call "
                "calibrate(batches) first, or train it with QATTrainer, which does."
            )

    @classmethod
    def from_ann(cls, ann: torch.nn.Module, *, replace_activations: bool = False, **config_fields):
        """Quantized twin of an ordinary model, with its weights and with scales still to be set.

        Args:
            ann: the trained model: transformers', or for ViT and Swin timm's, its own module or the TimmWrapper of
                transformers around it. Its activations should be ReLU.
            replace_activations: put ReLU where the model has another activation. Its accuracy is lost until it is
                trained again.
            config_fields: any field of the config, for example `quantization_levels=16`.

        Raises:
            ValueError: the model has a part that cannot be converted; the message names it and what to do.
            ImportError: the class was loaded as remote code and the package is not installed.
        """
        try:
            from spikezip_hf.conversion import quantize_ann
        except ImportError as error:
            raise ImportError("Converting a model needs the package: pip install spikezip-hf.") from error
        return quantize_ann(cls, ann, replace_activations=replace_activations, **config_fields)

    def calibrate(
        self,
        batches: Iterable[Mapping[str, torch.Tensor]],
        method: str = "mse",
        overwrite: bool = True,
        percentile: float = 99.9,
    ):
        """Set every scale: of weights from the weights, of nodes from a forward pass without nodes over `batches`.

        Args:
            batches: dicts of model inputs; labels are ignored. A few hundred samples are enough.
            method: "mse" for the least squared quantization error, "percentile" for the smallest scale at which all
                but the largest activations keep their size (both go through `batches` twice), "lsq" for LSQ's rule
                2*E|x|/sqrt(S_max), which is quicker and meant for training that follows.
            overwrite: also set scales that are set already.
            percentile: for "percentile": so many percent of the activations that share a scale are not clipped, above
                0 to 100. They are counted in bins, and the scale is up to 1.1 % wider than the exact one.

        Returns:
            The model itself.

        Raises:
            ValueError: no batches, unknown method, percentile out of range, or activations that give no usable scale;
                names the node.
            ImportError: as for `from_ann`.
        """
        try:
            from spikezip_hf.conversion import calibrate
        except ImportError as error:
            raise ImportError("Calibrating a model needs the package: pip install spikezip-hf.") from error
        calibrate(self, batches, method, overwrite, percentile)
        return self


class _RefuseBackward(torch.autograd.Function):
    """Identity that explains itself when a gradient is asked of a spiking model."""

    @staticmethod
    def forward(ctx, x, anchor, name):
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        raise RuntimeError(
            f"{ctx.name} cannot be trained: spikes have no gradient. Fine-tune {ctx.name.replace('Spike', 'Quant')} "
            f"and convert it again with {ctx.name}.from_quantized(qann)."
        )


class SpikePreTrainedModel(TwinPreTrainedModel):
    """Base of Spike models: conversion from the Quant twin, and simulation."""

    quant_class: type[TwinPreTrainedModel]
    readout: str  # the output field that a simulation follows: "logits" or "last_hidden_state"

    @classmethod
    def from_quantized(cls, qann: TwinPreTrainedModel, **config_fields):
        """The spiking twin of a trained Quant model: same weights, thresholds copied from the quantizers' scales.

        Args:
            qann: model of the Quant class of the same name.
            config_fields: any field of the config, for example `time_steps=64` or `firing_schedule="layerwise"`.

        Returns:
            The spiking model, in eval mode, on the device and in the types of `qann`.

        Raises:
            TypeError: `qann` is not of the Quant twin's class.
            ValueError: a scale was never calibrated or is not usable; the message names its node.
        """
        adapters = [name for name in qann.state_dict() if ".base_layer." in name or ".modules_to_save." in name]
        if hasattr(qann, "merge_and_unload") or adapters:
            raise TypeError(
                "from_quantized takes a plain Quant model, and this one has PEFT's adapters in it: call "
                "merge_and_unload() on the PEFT model, and convert what that returns."
            )
        if type(qann).__name__ != cls.quant_class.__name__:
            raise TypeError(
                f"{cls.__name__}.from_quantized takes a {cls.quant_class.__name__}, got {type(qann).__name__}. "
                f"Make one with {cls.quant_class.__name__}.from_ann(ann)."
            )
        qann.check_nodes()
        return cls.twin_of(qann, **config_fields)

    def calibrate_schedule(
        self,
        batches: Iterable[Mapping[str, torch.Tensor]] | None = None,
        schedule: str = "coarse_to_fine",
        **settings: float,
    ):
        """Make a firing schedule for this network and write it into the config. Answers at equilibrium stay the same.

        It takes more steps than the paper's: `time_steps` of the config is raised, with a word, if it is too small.

        Args:
            batches: dicts of model inputs, for "nodewise".
            schedule: "nodewise": a node opens when those that it reads from have had the steps in which `coverage`
                (0.7) of their neurons reach their levels, by calibration. "coarse_to_fine": a node opens
                `opening_pace` (0.8) steps later than those that it reads from, and fires at a difference of one level
                only from `fine_start` (0.375) times the number of levels on, `fine_pace` (1) steps later than those.
            settings: these four.

        Returns:
            The model itself.

        Raises:
            ValueError: unknown schedule, unknown setting or one out of range, no batches, or `stop="confidence"`,
                whose threshold is one of another schedule.
            ImportError: as for `from_ann`.
        """
        try:
            from spikezip_hf.conversion import calibrate_schedule
        except ImportError as error:
            raise ImportError("Calibrating a schedule needs the package: pip install spikezip-hf.") from error
        calibrate_schedule(self, batches, schedule, settings)
        return self

    def to_quantized(self) -> TwinPreTrainedModel:
        """The quantized twin, with the same weights and scales: to train it further, or to compare with it."""
        return self.quant_class.twin_of(self)

    def check_loaded(self, source: str, missing_keys: list[str], unexpected_keys: list[str]) -> None:
        super().check_loaded(source, missing_keys, unexpected_keys)
        if unexpected_keys:
            raise ValueError(
                f"{source} holds {', '.join(unexpected_keys[:3])}, which {type(self).__name__} does not have: it is a "
                "checkpoint of another class. Load it with that, or with the AutoModel of its task."
            )
        if missing_keys:
            raise ValueError(
                f"{source} lacks {', '.join(missing_keys[:3])}{' ...' if len(missing_keys) > 3 else ''}: "
                f"{type(self).__name__} would answer at random. Train {self.quant_class.__name__} and convert it."
            )
        self.config.schedule(self.nodes)  # says which node it does not name
        self.check_nodes()

    def post_init(self):
        super().post_init()
        self.eval()

    def train(self, mode: bool = True):
        """A spiking model has no training mode (no dropout to turn on): stays in eval mode."""
        return super().train(False)

    def row_bytes(self, inputs: torch.Tensor) -> int:
        """Bytes of the largest tensor that a pass makes for one step of one sample of `inputs`."""
        # Sums of exact products are never in memory where kernels hand them to neurons block by block; levels are.
        config, fused = self.config, products_with_neurons(inputs) and self.config.quantization_levels <= 128
        # Of a map, and not of a parameter: replicas of a model have none.
        single = next(m.weight.dtype for m in self.modules() if isinstance(m, LinearMap)) == torch.float32
        integers = config.weight_bits is not None and config.scale_granularity == "per_tensor"
        of_sum = 1 if fused and (integers or (single and in_fixed_point(inputs))) else 4
        # Nor are scores, where their softmax is one of whole numbers.
        of_score = 1 if fused and single and self.integer_scores and config.scale_granularity != "per_channel" else 4
        return max(
            positions * max(of_sum * hidden_width, 4 * width, of_score * heads * keys)
            for positions, keys, width, hidden_width, heads in self.layer_sizes(inputs)
        )

    @torch.no_grad()
    def run(
        self,
        network: Callable[..., ModelOutput],
        inputs: torch.Tensor,
        input_steps: int = 1,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str | None = None,
        confidence_threshold: float | None = None,
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine_class: type[SpikingEngine] | None = None,
    ) -> Trajectory:
        """Run `network` on a batch and follow its output field `self.readout` through time.

        Args:
            network: `self.network` with its inputs given, to be called with an engine and the two output flags.
            inputs: the batch, looked at for its size and for values that are not finite.
            input_steps: F, steps over which it arrives.
            time_steps and what follows: see forward.
            engine_class: of the engine, by default the one of `execution`.
        """
        config = self.config
        time_steps = config.time_steps if time_steps is None else time_steps
        flags = self.output_flags(output_hidden_states, output_attentions)
        if stop is None:
            stop = config.stop
            if stop == "confidence" and confidence_threshold is None and self.no_confidence(execution, flags):
                stop = "equilibrium"  # nobody has asked for it in this call
        if confidence_threshold is None and stop == config.stop:
            confidence_threshold = config.confidence_threshold
        chunk_steps = config.chunk_steps if chunk_steps is None else chunk_steps
        check_positive_integer("time_steps", time_steps)
        if chunk_steps is not None:
            check_positive_integer("chunk_steps", chunk_steps)
        check_choice("execution", execution, EXECUTIONS)
        check_stop(stop, confidence_threshold)
        if execution == "event" and any(flags):
            raise ValueError(
                'output_hidden_states and output_attentions need another execution than "event", whose tensors are '
                "changes of one step and not states."
            )
        if stop == "confidence" and (why := self.no_confidence(execution, flags)):
            raise ValueError(why)
        if input_steps > time_steps:
            raise ValueError(f"The input has {input_steps} steps, more than time_steps={time_steps}: raise it.")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise ValueError("The input holds values that are not finite (NaN or infinity).")
        if execution == "equilibrium":
            if output_time_steps:
                raise ValueError('output_time_steps needs a simulation: execution="equilibrium" has no time steps.')
            return closed_form(network(QuantEngine(), *flags), self.readout)
        # Of the paper's own there is nothing to say, and to look for all nodes takes a while.
        schedule = {} if config.firing_schedule == "synchronous" else config.schedule(self.nodes)
        engine_class = engine_class or (CumulativeEngine if execution == "cumulative" else EventEngine)
        engine = engine_class(
            inputs.shape[0],
            inputs.device,
            input_steps=input_steps,
            max_spikes_per_step=config.max_spikes_per_step,
            **schedule,
        )
        group_size = None  # all samples
        if chunk_steps is None:
            row_bytes = self.row_bytes(inputs)
            group_size, chunk_steps = default_chunk(inputs.shape[0], time_steps, row_bytes, inputs.device, stop)
        with parameters_remembered():
            run = simulate(
                lambda engine: network(engine, *flags),
                self.readout,
                engine,
                time_steps=time_steps,
                chunk_steps=chunk_steps,
                stop=stop,
                keep_steps=output_time_steps,
                confidence_threshold=confidence_threshold,
                group_size=group_size if isinstance(engine, CumulativeEngine) else None,
            )
        if execution == "event":
            confirm_levels(network, run)
        return run

    def no_confidence(self, execution: str = "cumulative", flags: tuple[bool, bool] = (False, False)) -> str | None:
        """Why stopping on confidence makes no sense for this model and these arguments; None if it does."""
        if execution == "equilibrium":
            return 'stop="confidence" needs a simulation: execution="equilibrium" has no time steps.'
        if any(flags):
            return (
                'output_hidden_states and output_attentions are those of the last step, and with stop="confidence" '
                "samples have different ones: leave them out, or stop otherwise."
            )
        if self.readout != "logits" or self.config.num_labels < 2 or "ForToken" in type(self).__name__:
            return (
                f'stop="confidence" waits for one class of a sample to be ahead, and {type(self).__name__} with '
                f'{self.config.num_labels} label(s) has no classes of samples: use stop="equilibrium".'
            )
        return None

    def refuse_backward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, with an error for whoever asks for its gradient."""
        if not torch.is_grad_enabled():
            return x
        return _RefuseBackward.apply(x, torch.zeros((), requires_grad=True), type(self).__name__)
