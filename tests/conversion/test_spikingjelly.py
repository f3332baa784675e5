"""Our Quant models in SpikingJelly's layout: the same function, read back unchanged, and SpikingJelly as an oracle."""

import re

import pytest
import torch

from spikezip_hf import verify_equivalence
from spikezip_hf.conversion import read_reference, step_inputs, to_spikingjelly
from tests.conftest import make_batch, make_qann, make_text_qann, make_texts, spiking_twin
from tests.conversion.levels import assert_equal_levels, node_levels
from tests.models.test_event_vit import make_event_qann


def with_float32_scales(qann):
    """SpikingJelly keeps thresholds in float32."""
    for node in qann.nodes:
        node.scale.data = node.scale.data.float().to(node.scale.dtype)
    return qann.eval()


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


@pytest.mark.parametrize("step_mode", ["s", "m"])
@torch.no_grad()
def test_spikingjelly_as_an_oracle(tmp_path, make, step_mode):
    """SpikingJelly's simulation of our network ends with our levels, every node's, and our logits."""
    pytest.importorskip("spikingjelly", reason="needs SpikingJelly 2.0: pip install --no-deps spikingjelly loguru")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import ModuleConverter, SpikeZIPTFQANNRecipe
    from spikingjelly.activation_based.neuron import STBIFNode

    time_steps = 64
    qann = with_float32_scales(make())
    batch = make_batch(qann)
    snn = spiking_twin(qann, time_steps=time_steps)
    assert verify_equivalence(qann, snn, batch).exact

    network = to_spikingjelly(qann)
    family = "vit" if "pixel_values" in batch else "roberta"
    theirs = ModuleConverter(recipe=SpikeZIPTFQANNRecipe(model_family=family)).convert(network).eval()
    functional.set_step_mode(theirs, step_mode)
    functional.reset_net(theirs)
    first, later, always = step_inputs(qann, batch)
    if step_mode == "m":
        logits = theirs(*(torch.stack([x, *[y] * (time_steps - 1)]) for x, y in zip(first, later)), **always).sum(0)
    else:
        logits = theirs(*first, **always)
        for _ in range(time_steps - 1):
            logits = logits + theirs(*later, **always)
    # Theirs adds up the changes of 64 steps, in float64.
    torch.testing.assert_close(logits, snn(**batch).logits, rtol=1e-9, atol=1e-9)

    torch.save(network.state_dict(), tmp_path / "network.pth")
    _, report = read_reference(tmp_path / "network.pth", num_attention_heads=4)
    levels = {name: module.acc_q for name, module in theirs.named_modules() if isinstance(module, STBIFNode)}
    # The recipe calls neurons query_if, and quantizers query_quan or quan_q.
    assert_equal_levels(node_levels(qann, batch), levels, Renamed(report), batch.get("attention_mask"))


class Renamed:
    """A report with quantizers of attention under the names of SpikingJelly's neurons."""

    def __init__(self, report):
        self.mapped = {
            ours: re.sub(r"(?<=\.)(?:quan_(\w+)|(\w+)_quan)\.s$", r"\1\2_if.s", source)
            for ours, source in report.mapped.items()
        }
