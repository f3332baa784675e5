"""One step of the spiking network as a function of tensors and an explicit state, fit for `torch.export` and ONNX."""

import torch
from torch import nn

from spikezip_hf.export.engines import StreamingEngine
from spikezip_hf.export.portable import portable as portable_copy
from spikezip_hf.export.signature import BATCH, LENGTH, Signature, read_out
from spikezip_hf.models.configuration_quantization import check_choice
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel

INPUTS = ("static", "frames")


class StreamingStep(nn.Module):
    """One step of a Spike model: inputs and state in, accumulated logits and the next state out.

        step = StreamingStep(snn)
        state = step.initial_state(batch_size)
        for _ in range(time_steps):
            logits, settled, state = step(inputs, state)

    The state is {node name: (B, ...) levels}, all 0 at rest, beside `step`, the steps done so far, if the firing
    schedule asks for it, and the accumulated input if it comes in frames. A step in which a sample is `settled`, every
    tracer at its target, was the quantized network's forward pass: the sample is at equilibrium, and its logits are
    final, once its whole input has arrived.

    Args:
        snn: a model of any Spike class in float32. Its weights are shared.
        inputs: "static", the whole input at each step; "frames", the pixels that arrive in this step, zeros after the
            last frame.
        portable: of plain operators, as other runtimes have them. Without, by the model's own products and kernels:
            the bits of its simulation with `chunk_steps=1`, and nothing to export. Call it under `torch.no_grad()`.

    Attributes:
        signature: names, shapes and types of what goes in and out, but for the state.
        state_shapes: {name: shape} of the state, sizes or the name of a dimension.
        state_dtypes: {name: dtype} of the state.

    Raises:
        TypeError, ValueError: `snn` is none, or cannot be exported; the message says why.
    """

    def __init__(self, snn: SpikePreTrainedModel, inputs: str = "static", portable: bool = True):
        super().__init__()
        self.signature = Signature(snn, SpikePreTrainedModel)
        check_choice("inputs", inputs, INPUTS)
        if inputs == "frames" and self.signature.max_length is not None:
            raise ValueError('inputs must be "static" for a network of texts, whose input is there at once.')
        self.inputs = inputs
        self.neurons = {
            "frames": inputs == "frames",
            "max_spikes_per_step": snn.config.max_spikes_per_step,
            **snn.config.schedule(snn.nodes),
        }
        self.model = portable_copy(snn) if portable else snn
        self.state_shapes, self.state_dtypes = self.describe_state()

    def engine(self, state: dict[str, torch.Tensor]) -> StreamingEngine:
        """What runs a step from this state."""
        return StreamingEngine(state, **self.neurons)

    def forward(self, inputs: dict[str, torch.Tensor], state: dict[str, torch.Tensor]):
        """The next step.

        Args:
            inputs: `pixel_values`, or `input_ids`, `attention_mask` and, if the network knows several types of tokens,
                `token_type_ids`.
            state: what `initial_state` or the step before returned.

        Returns:
            The accumulated logits, or last hidden state, after this step; (B,) bool, which samples are settled; the
            state after this step.

        Raises:
            ValueError: the state is not of this network.
        """
        if state.keys() != self.state_shapes.keys():
            raise ValueError("state must have the names that initial_state(batch_size) returns, and no others.")
        engine = self.engine(state)
        logits = read_out(self.model, engine, inputs)
        settled = torch.stack(list(engine.at_target.values())).all(0)
        return logits, settled, {name: engine.next_state[name] for name in self.state_shapes}

    def initial_state(
        self, batch_size: int, length: int | None = None, device: torch.device | None = None
    ) -> dict[str, torch.Tensor]:
        """The state at rest.

        Args:
            length: of the texts, padding included.

        Raises:
            ValueError: no length for a network of texts.
        """
        if self.signature.max_length is not None and length is None:
            raise ValueError("length is missing: the state of a network of texts has a level for each position.")
        sizes = {BATCH: batch_size, LENGTH: length}
        return {
            name: torch.zeros([sizes.get(size, size) for size in shape], dtype=self.state_dtypes[name], device=device)
            for name, shape in self.state_shapes.items()
        }

    @torch.no_grad()
    def describe_state(self) -> tuple[dict[str, tuple], dict[str, torch.dtype]]:
        """Shapes and types of the state, in network order: what two steps of different lengths show."""
        shown = []
        for length in (2, 3):
            engine = self.engine({})
            inputs = self.signature.sample(1, length)
            read_out(self.model, engine, {name: x.to(self.model.device) for name, x in inputs.items()})
            shown.append(engine.next_state)
        shapes = {
            name: tuple(
                BATCH if axis == 0 else size if size == other else LENGTH
                for axis, (size, other) in enumerate(zip(x.shape, shown[1][name].shape))
            )
            for name, x in shown[0].items()
        }
        return shapes, {name: x.dtype for name, x in shown[0].items()}

    def example(self, batch_size: int = 2) -> tuple:
        """Arguments to make a graph with, or to check it, a step's at rest."""
        inputs = self.signature.sample(batch_size)
        return inputs, self.initial_state(batch_size, self.signature.length_of(inputs))

    def dynamic_shapes(self) -> tuple:
        """Which dimensions of the arguments may differ, as `torch.export` wants to be told."""
        return self.signature.dynamic(self.signature.inputs), self.signature.dynamic(self.state_shapes)
