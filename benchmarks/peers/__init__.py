"""The same network, with the same weights and scales, on other implementations of SpikeZIP-TF.

    from peers.spikingjelly import spikingjelly_modes
    for peer in spikingjelly_modes(qann):
        peer.name, peer.quantized(batch), peer.simulate(batch, time_steps=32)

Nothing of a peer's code is in here, and nothing of it is changed: each module has one of our Quant models built in the
layout that the peer's converter expects (spikezip_hf.conversion), and lets the peer convert it.
"""

from abc import ABC, abstractmethod

import torch

Batch = dict[str, torch.Tensor]  # what our models take: pixel_values, or input_ids and what belongs to them


class Peer(ABC):
    """One of our networks on another implementation, in one of its ways to run it.

    Attributes:
        name: of the implementation and of the way.
    """

    name: str

    @abstractmethod
    def quantized(self, inputs: Batch) -> torch.Tensor:
        """Logits (B, classes) of the peer's QANN."""

    @abstractmethod
    def simulate(self, inputs: Batch, time_steps: int) -> torch.Tensor:
        """Logits (B, classes) accumulated over `time_steps` steps of the peer's SNN, from rest."""
