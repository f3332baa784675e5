"""What goes into an exported network and comes out of it: names, shapes, types."""

import torch
from torch.export import Dim

from spikezip_hf.export.engines import LevelEngine
from spikezip_hf.models.modeling_quantization import TwinPreTrainedModel
from spikezip_hf.models.rows import unwrap

BATCH, LENGTH = "batch", "length"  # dimensions that may differ from call to call
SAMPLE_LENGTH = 7  # tokens of a text that a graph is made and checked with


class Signature:
    """Inputs and output of a model that is exported.

    Args:
        model: a Quant or Spike model.
        kind: what it has to be.

    Attributes:
        inputs: {name: shape}, sizes or the name of a dimension.
        max_length: most tokens of a text; None for images.
        output: name of what the network answers, logits or last_hidden_state.

    Raises:
        TypeError: `model` is not of this kind.
        ValueError: a scale was never set, or the model is not in float32 on a CPU; says what to do.
    """

    def __init__(self, model: TwinPreTrainedModel, kind: type[TwinPreTrainedModel]):
        if not isinstance(model, kind):
            raise TypeError(
                f"A {kind.__name__.removesuffix('PreTrainedModel')} model is needed here, got "
                f"{type(model).__name__}: what is exported of a Quant model is the quantized network, of a Spike "
                "model one step of it. Convert with from_quantized(qann), or back with to_quantized()."
            )
        if model.dtype != torch.float32:
            raise ValueError(f"The model is in {model.dtype}, and an export in float32: call model.float() first.")
        if model.device.type != "cpu":
            raise ValueError(
                f"The model is on {model.device}, and an export is made on a CPU: call model.cpu() first."
            )
        model.check_nodes()
        self.max_length: int | None = None
        self.vocab_size = getattr(model.config, "vocab_size", 0)
        if model.main_input_name == "input_ids":
            self.max_length = model.max_tokens
            names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if model.config.type_vocab_size > 1 else 2]
            self.inputs: dict[str, tuple] = {name: (BATCH, LENGTH) for name in names}
        else:
            self.inputs = {name: (BATCH, *x.shape[1:]) for name, x in model.dummy_inputs.items()}
        self.output = "last_hidden_state" if model is model.base_model else "logits"

    def sample(self, batch: int, length: int = SAMPLE_LENGTH, seed: int = 0) -> dict[str, torch.Tensor]:
        """Inputs drawn at random: noise, or texts of random ids, each shorter by a token than the one before."""
        generator = torch.Generator().manual_seed(seed)
        if self.max_length is None:
            return {name: torch.randn(batch, *shape[1:], generator=generator) for name, shape in self.inputs.items()}
        length = min(length, self.max_length)
        ids = torch.randint(0, self.vocab_size, (batch, length), generator=generator)
        tokens = torch.arange(length) < (length - torch.arange(batch)).clamp_min(1)[:, None]
        types = torch.zeros_like(ids)
        every = {"input_ids": ids, "attention_mask": tokens.long(), "token_type_ids": types}
        return {name: every[name] for name in self.inputs}

    def length_of(self, inputs: dict[str, torch.Tensor]) -> int | None:
        """Length of texts; None for images."""
        return None if self.max_length is None else inputs["input_ids"].shape[1]

    def dynamic(self, shapes: dict[str, tuple]) -> dict[str, dict[int, Dim]]:
        """`dynamic_shapes` of `torch.export` for tensors of these shapes."""
        dimensions = {BATCH: Dim(BATCH, min=1), LENGTH: Dim(LENGTH, min=1, max=self.max_length)}
        return {
            name: {axis: dimensions[size] for axis, size in enumerate(shape) if isinstance(size, str)}
            for name, shape in shapes.items()
        }


def read_out(model: TwinPreTrainedModel, engine: LevelEngine, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of one pass on `engine`; of a model without a head the last hidden state."""
    outputs = model.network(model.prepare(**inputs), engine, False, False)
    return unwrap(outputs.logits if "logits" in outputs else outputs.last_hidden_state)
