"""Our Quant models in SpikingJelly's layout: the same function, and read back unchanged.

SpikingJelly itself runs them in judge/test_spikingjelly.py.
"""

import pytest
import torch

from spikezip_hf.conversion import read_reference, step_inputs, to_spikingjelly
from tests.conftest import make_batch, make_qann, make_text_qann, make_texts
from tests.models.test_event_vit import make_event_qann

NETWORKS = {
    "vit": lambda dtype=torch.float64, **fields: make_qann(dtype=dtype, **fields),
    "roberta": lambda dtype=torch.float64, **fields: make_text_qann("roberta", dtype=dtype, **fields),
    "roberta_reference": lambda dtype=torch.float64, **fields: make_text_qann(
        "roberta", dtype=dtype, node_placement="reference", **fields
    ),
}


@pytest.fixture(params=NETWORKS)
def make(request):
    return NETWORKS[request.param]


@torch.no_grad()
@pytest.mark.parametrize("weight_bits", [None, 8])
def test_the_plain_network_computes_the_same(make, weight_bits):
    qann = make(weight_bits=weight_bits).eval()
    batch = make_batch(qann)
    first, _, always = step_inputs(qann, batch)
    logits = to_spikingjelly(qann)(*first, **always)
    # Float64: ours multiplies levels and scales the sum, the plain network multiplies values.
    torch.testing.assert_close(logits, qann(**batch).logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_is_read_back_unchanged(tmp_path, make, dtype):
    qann = make(dtype)
    torch.save(to_spikingjelly(qann).state_dict(), tmp_path / "network.pth")
    again, report = read_reference(
        tmp_path / "network.pth", num_attention_heads=4, layer_norm_eps=qann.config.layer_norm_eps
    )
    expected, state = qann.state_dict(), again.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert "quantizers' bounds" in report.settings["quantization_levels"]
    batch = make_batch(qann)
    assert torch.equal(again(**batch).logits, qann.eval()(**batch).logits)


def test_bounds_that_are_not_ours_are_refused(tmp_path):
    state = to_spikingjelly(make_text_qann("roberta")).state_dict()
    state["roberta.encoder.layer.0.attention.self.after_attn_quan.neg_min"] = torch.tensor(0.0)
    state["roberta.encoder.layer.0.attention.self.after_attn_quan.pos_max"] = torch.tensor(15.0)
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(
        ValueError, match="after_attn_quan has levels from 0 to 15, and ours there has them from -8 to 7"
    ):
        read_reference(tmp_path / "network.pth", num_attention_heads=4)


@pytest.mark.parametrize(
    ("qann", "message"),
    [
        (lambda: make_qann(granularity="per_channel"), "scale_granularity is 'per_channel'"),
        (lambda: make_text_qann("roberta", head_act="tanh"), "head_act is 'tanh'"),
        (lambda: make_qann(head_dim=4), "head_dim"),
        (make_event_qann, "reduced_channels is 3: the layout is that of None alone"),
    ],
)
def test_what_the_layout_cannot_express_is_refused(qann, message):
    with pytest.raises(ValueError, match=message):
        to_spikingjelly(qann())


def test_other_classes_are_refused():
    with pytest.raises(TypeError, match="got QuantBertForSequenceClassification"):
        to_spikingjelly(make_text_qann("bert"))


def test_inputs_that_spikingjelly_cannot_take_are_refused():
    vit, roberta = make_qann(), make_text_qann("roberta")
    with pytest.raises(ValueError, match="no input per step"):
        step_inputs(vit, {"pixel_values": torch.zeros(1, 2, 3, 8, 8)})
    with pytest.raises(ValueError, match="padded on the right"):
        step_inputs(roberta, make_texts(roberta.config, [3, 5], side="left"))
