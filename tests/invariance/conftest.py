"""Each test here runs over the table of architectures: a few of each kind by default, all in `make test-slow`."""

import pytest
import torch

from tests.invariance.architectures import ARCHITECTURES, Twins, twins

QUICK = ("vit", "vit, 8 bits", "swin", "events, 8 bits", "bert, tokens", "roberta", "roberta, bare")
assert set(QUICK) <= ARCHITECTURES.keys()


def case(name: str, *more):
    return pytest.param(
        (name, *more), id=", ".join((name, *map(str, more))), marks=() if name in QUICK else pytest.mark.slow
    )


# Levels, spikes and T_eq of a sample are its own in float64, where no sum comes near a tie; its bits, in float32.
OWN = [case(name, torch.float64) for name in ARCHITECTURES]
OWN += [case(name, torch.float32) for name, architecture in ARCHITECTURES.items() if architecture.own_bits]


@pytest.fixture(params=map(case, ARCHITECTURES))
def plain(request) -> Twins:
    """In float32, as networks are used: what runs on equal shapes is held to the bit."""
    return twins(*request.param, torch.float32)


@pytest.fixture(params=OWN)
def own(request) -> Twins:
    """Where what a sample does is promised to be its own."""
    return twins(*request.param)
