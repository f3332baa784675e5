# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The quantized and the spiking twin of a network of images, bare and as classifier.

What users call; the network they call is in the file of its architecture.
"""

from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_quantization import pair
from .engines import QuantEngine
from .inputs import check_pixels, names_its_arguments
from .modeling_quantization import QuantPreTrainedModel, SpikePreTrainedModel, TwinPreTrainedModel
from .operators import Linear, name_operators
from .outputs import SpikeClassifierOutput, SpikeModelOutput
from .simulation import Trajectory, plain


class ImagePreTrainedModel(TwinPreTrainedModel):
    """Base of all models of images: what they take in."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)

    @property
    def dummy_inputs(self):
        size = (1, self.config.num_channels, *pair(self.config.image_size))
        return {"pixel_values": torch.zeros(size, device=self.device)}

    takes_any_size = False  # whether the network takes images of other sizes than the config's

    def prepare(  # type: ignore[override]
        self, pixel_values: torch.Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> torch.Tensor:
        """`pixel_values` in the type of the weights.

        Raises:
            ValueError: they are missing, empty, or not (B, channels, H, W) or (B, F, channels, H, W) of the config;
                with `interpolate_pos_encoding`, of its channels, and at least one patch high and wide. Or the network
                takes no other sizes.
        """
        if interpolate_pos_encoding and not self.takes_any_size:
            raise ValueError(
                f"interpolate_pos_encoding: {type(self).__name__} takes images of image_size alone, "
                f"{pair(self.config.image_size)}."
            )
        check_pixels(pixel_values, self.config, self.takes_any_size, interpolate_pos_encoding)
        assert pixel_values is not None
        # Not self.dtype: the replicas of DataParallel have no parameters to ask.
        return pixel_values.to(self.base_model.embeddings.patch_embeddings.input_product.weight.dtype)


class QuantImageModel(QuantPreTrainedModel, ImagePreTrainedModel):
    """Quantized network without a head."""

    supports_gradient_checkpointing = True

    @can_return_tuple
    @names_its_arguments
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> BaseModelOutput:
        """Values of the quantized network.

        Args:
            pixel_values: (B, channels, H, W), or (B, F, channels, H, W) for input per step, which adds up.
            engine: what the tensors mean; given by a model around this one, or to observe the nodes.
            interpolate_pos_encoding: take images of other sizes than the config's, if the network can.
        """
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        outputs = self.network(pixel_values, self.checked_engine(engine), output_hidden_states, output_attentions)
        return plain(outputs) if engine is None else outputs


class SpikeImagePreTrainedModel(SpikePreTrainedModel, ImagePreTrainedModel):
    """Simulation of a network of images, with or without a head."""

    def trajectory(
        self, pixel_values: torch.Tensor | None = None, interpolate_pos_encoding: bool = False, **arguments
    ) -> Trajectory:
        """Simulate; `arguments` are those of `SpikePreTrainedModel.run`."""
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        input_steps = pixel_values.shape[1] if pixel_values.dim() == 5 else 1
        return self.run(partial(self.network, pixel_values), pixel_values, input_steps, **arguments)


class SpikeImageModel(SpikeImagePreTrainedModel):
    """Spiking network without a head."""

    readout = "last_hidden_state"

    @can_return_tuple
    @names_its_arguments
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str | None = None,
        confidence_threshold: float | None = None,
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> SpikeModelOutput | BaseModelOutput:
        """Simulate the network on a batch, from rest: see `SpikeImageClassifier.forward`.

        Args:
            engine: given by a model around this one, which runs the simulation itself.
        """
        if engine is not None:
            return self.network(pixel_values, engine, output_hidden_states, output_attentions)
        run = self.trajectory(
            pixel_values,
            interpolate_pos_encoding,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            confidence_threshold=confidence_threshold,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return SpikeModelOutput(
            last_hidden_state=self.refuse_backward(run.readout),
            last_hidden_state_per_step=run.per_step,
            **run.records(),
        )


class ImageClassifierNetwork(ImagePreTrainedModel):
    """The network and a linear head, written once for both twins."""

    _auto_class = "AutoModelForImageClassification"
    base_class: type[ImagePreTrainedModel]

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.base_class(config))
        self.add_readout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels, weight_bits=config.weight_bits)
        for name, module in self.named_children():
            if module is not self.base_model:
                name_operators(module, name)
        self.post_init()

    def add_readout(self, config) -> None:
        """Make what stands between the network and the head."""

    def features(self, x, engine):
        """What the head reads of the last hidden state (rows, N, hidden): (rows, hidden)."""
        raise NotImplementedError

    def logits(self, x, engine):
        """Logits (rows, classes) of the last hidden state. The head reads accumulated spikes and never fires."""
        return engine.linear(self.classifier, self.features(x, engine))

    def network(self, pixel_values, engine, output_hidden_states=None, output_attentions=None):
        """One pass on `engine`: logits (rows, classes)."""
        outputs = self.base_model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            engine=engine,
            return_dict=True,
            interpolate_pos_encoding=self.takes_any_size,  # `prepare` has looked at the sizes
        )
        return ImageClassifierOutput(
            logits=self.logits(outputs.last_hidden_state, engine),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class QuantImageClassifier(QuantPreTrainedModel, ImageClassifierNetwork):
    """Quantized image classifier: the network that is trained, and the twin of its spiking form."""

    supports_gradient_checkpointing = True

    @can_return_tuple
    @names_its_arguments
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        engine: QuantEngine | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> ImageClassifierOutput:
        """Values of the quantized network.

        Args:
            pixel_values: (B, channels, H, W), or (B, F, channels, H, W) for input per step, which adds up.
            labels: (B,) class indices; or as transformers' `problem_type` says.
            engine: what the tensors mean; given to observe the nodes.
            interpolate_pos_encoding: take images of other sizes than the config's, if the network can: a ViT, with
                position embeddings between its own.

        Raises:
            ValueError: pixels that the network cannot take.
            FloatingPointError: NaN reached a node, in eval mode on a CPU; the message names it.
        """
        pixel_values = self.prepare(pixel_values, interpolate_pos_encoding)
        outputs = plain(
            self.network(pixel_values, self.checked_engine(engine), output_hidden_states, output_attentions)
        )
        if labels is not None:
            outputs.loss = self.loss_function(labels, outputs.logits, self.config)
        return outputs


class SpikeImageClassifier(SpikeImagePreTrainedModel, ImageClassifierNetwork):
    """Spiking image classifier (paper section 3.2)."""

    readout = "logits"

    @can_return_tuple
    @names_its_arguments
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        time_steps: int | None = None,
        output_time_steps: bool = False,
        execution: str = "cumulative",
        stop: str | None = None,
        confidence_threshold: float | None = None,
        chunk_steps: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> SpikeClassifierOutput:
        """Simulate the network on a batch, from rest.

        Args:
            pixel_values: (B, channels, H, W), a static current; or (B, F, channels, H, W), the current that arrives at
                each of the first F steps.
            labels: (B,) class indices, for the loss of the final logits.
            time_steps: T, most steps to run; the config's by default.
            output_time_steps: also return `logits_per_step`.
            execution: "cumulative", exact and fast; "event", the paper's operators step by step, which round
                differently in float32; "equilibrium", the final logits in one pass and no simulation.
            stop: "equilibrium" to end when every sample is proven to have got there; "never" to run all T steps;
                "confidence" to be done with a sample as soon as its largest logit leads the next by
                `confidence_threshold`, whatever the quantized network would say in the end. The config's by default.
            chunk_steps: steps computed at once (1 = streaming), for memory and speed; by default as many as fit a
                tensor of 16 MiB on a CPU, 256 MiB on a GPU, on a CPU of fewer samples at once if need be, and at most
                64 where the run may end early. Spikes depend on it at ties alone, if at all.
            output_hidden_states, output_attentions: return those of the last step.
            interpolate_pos_encoding: take images of other sizes than the config's, if the network can: a ViT, with
                position embeddings between its own.

        Raises:
            ValueError: an argument is out of range or the pixels are not finite; the message names it.
            FloatingPointError: NaN reached a neuron; the message names its node.
        """
        run = self.trajectory(
            pixel_values,
            interpolate_pos_encoding,
            time_steps=time_steps,
            output_time_steps=output_time_steps,
            execution=execution,
            stop=stop,
            confidence_threshold=confidence_threshold,
            chunk_steps=chunk_steps,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.refuse_backward(run.readout)
        return SpikeClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            logits_per_step=run.per_step,
            **run.records(),
        )
