"""Each test here runs over the whole table of architectures."""

import pytest
import torch

from tests.invariance.architectures import ARCHITECTURES, Twins, twins

# Levels, spikes and T_eq of a sample are its own in float64, where no sum comes near a tie; its bits, in float32.
OWN = [(name, torch.float64) for name in ARCHITECTURES]
OWN += [(name, torch.float32) for name, architecture in ARCHITECTURES.items() if architecture.own_bits]


@pytest.fixture(params=ARCHITECTURES)
def plain(request) -> Twins:
    """In float32, as networks are used: what runs on equal shapes is held to the bit."""
    return twins(request.param, torch.float32)


@pytest.fixture(params=OWN, ids=lambda case: f"{case[0]}-{str(case[1]).removeprefix('torch.')}")
def own(request) -> Twins:
    """Where what a sample does is promised to be its own."""
    return twins(*request.param)
