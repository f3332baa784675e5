"""Our networks on SpikingJelly 2.0.0, converted by its recipe for SpikeZIP (`SpikeZIPTFQANNRecipe`) as it is.

What drives the network: an image is the current of the first step, with zeros behind it; token ids are given at every
step, of which SpikingJelly's embeddings look at the first.

How it differs from the paper and from us: biases are released over as many steps as a node has levels (but in one step
for the projections of a ViT's attention), so a shorter run has not seen all of them. Thresholds are float32 even in a
float64 network. Padding is kept out of attention but not silenced: its neurons fire, and change no logit.

Once settled, logits are its QANN's up to rounding in float64. In float32 they need not be: neurons and operators add
up changes, which rounds differently from the QANN, and where that moves a level across a tie, later layers differ.
"""

import torch
from torch import nn

from spikezip_hf import QuantRobertaForSequenceClassification, QuantViTForImageClassification
from spikezip_hf.conversion import step_inputs, to_spikingjelly

from . import Batch, Peer

try:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import ModuleConverter, SpikeZIPTFQANNRecipe
except ImportError as error:
    raise ImportError(
        f"SpikingJelly is missing ({error}): pip install --no-deps spikingjelly==2.0.0 loguru"
    ) from error


class SpikingJellyPeer(Peer):
    """A converted network in one step mode.

    Args:
        qann: ours, which prepares the inputs.
        network: the same in SpikingJelly's layout.
        snn: `network` converted; several modes may share it, each run starts with a reset.
        step_mode: "s" for one call a step, "m" for one call with all the steps.
    """

    def __init__(self, qann, network: nn.Module, snn: nn.Module, step_mode: str):
        self.name = f"SpikingJelly, {'step by step' if step_mode == 's' else 'multi-step'}"
        self.qann, self.network, self.snn, self.step_mode = qann, network, snn, step_mode

    @torch.no_grad()
    def quantized(self, inputs: Batch) -> torch.Tensor:
        first, _, always = step_inputs(self.qann, inputs)
        return self.network(*first, **always)

    @torch.no_grad()
    def simulate(self, inputs: Batch, time_steps: int) -> torch.Tensor:
        first, later, always = step_inputs(self.qann, inputs)
        functional.set_step_mode(self.snn, self.step_mode)
        functional.reset_net(self.snn)
        if self.step_mode == "m":
            sequences = [torch.stack([x, *[y] * (time_steps - 1)]) for x, y in zip(first, later)]
            return self.snn(*sequences, **always).sum(0)
        logits = self.snn(*first, **always)
        for _ in range(time_steps - 1):
            logits = logits + self.snn(*later, **always)
        return logits


def spikingjelly_modes(
    qann: QuantViTForImageClassification | QuantRobertaForSequenceClassification,
) -> list[Peer]:
    """`qann` on SpikingJelly, step by step and multi-step.

    Raises:
        ValueError: it has what SpikingJelly's layout cannot express.
    """
    family = "vit" if isinstance(qann, QuantViTForImageClassification) else "roberta"
    network = to_spikingjelly(qann)
    snn = ModuleConverter(recipe=SpikeZIPTFQANNRecipe(model_family=family)).convert(network).eval()
    return [SpikingJellyPeer(qann, network, snn, step_mode) for step_mode in ("s", "m")]
