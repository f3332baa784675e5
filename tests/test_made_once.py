"""Networks that tests share: a copy is what would be made anew, whatever is done to another one."""

from unittest import mock

import pytest
import torch

from spikezip_hf.models import kernels
from tests.conftest import make_qann, make_swin_qann, make_text_qann
from tests.models.test_event_vit import make_event_qann
from tests.models.test_fast_engine import make_snn
from tests.models.test_layers import make_network
from tests.models.test_vit_variants import make_variant
from tests.models.test_weight_quantization import make_network as make_network_of_8_bits

MAKERS = {
    "ViT": lambda make: make(make_qann)(seed=1),
    "Swin": lambda make: make(make_swin_qann)(weight_bits=8),
    "BERT": lambda make: make(make_text_qann)("bert", granularity="mixed"),
    "of recordings": lambda make: make(make_event_qann)(torch.float64),
    "a variant": lambda make: make(make_variant)("mean"),
    "weights of 8 bits": lambda make: make(make_network_of_8_bits)("bert"),
    "of test_layers": lambda make: make(make_network)("vit"),
    "spiking": lambda make: make(make_snn)(firing_schedule="layerwise"),
}


def same(one, other) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return (
        mine.keys() == others.keys()
        and all(torch.equal(mine[name], others[name]) for name in mine)
        and one.config.to_dict() == other.config.to_dict()
        and [module.training for module in one.modules()] == [module.training for module in other.modules()]
    )


@pytest.mark.parametrize("network", MAKERS)
def test_a_copy_is_what_would_be_made_anew(network):
    made = [MAKERS[network](lambda make: make)]
    torch.manual_seed(99)
    made.append(MAKERS[network](lambda make: make))
    draws = torch.rand(3)
    anew = MAKERS[network](lambda make: make.__wrapped__)
    assert torch.equal(torch.rand(3), draws)
    with mock.patch.object(kernels, "native", None):
        assert same(MAKERS[network](lambda make: make.__wrapped__), anew)
    with torch.no_grad():
        for parameter in made[0].parameters():
            parameter.add_(1)
    made[0].config.num_labels = 17
    assert not same(made[0], anew)
    assert same(made[1], anew)
    assert same(MAKERS[network](lambda make: make), anew)
