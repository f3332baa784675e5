"""What NIR can say of a network, it says exactly; the rest is refused by name."""

import numpy as np
import pytest
import torch

nir = pytest.importorskip("nir")

from spikezip_hf import QuantViTForImageClassification  # noqa: E402
from spikezip_hf.export.network_graph import to_spike_graph  # noqa: E402
from spikezip_hf.export.nir_graph import MAPS, SAYABLE, NIRError, nir_subgraphs, save_nir, to_nir  # noqa: E402
from spikezip_hf.models.operators import Conv2d, Linear  # noqa: E402
from tests.conftest import make_ann, make_batch, make_qann, make_swin_qann, make_text_qann, spiking_twin  # noqa: E402
from tests.export.common import make_step  # noqa: E402
from tests.models.test_event_vit import make_event_qann  # noqa: E402


def evaluate(graph, x: np.ndarray) -> np.ndarray:
    """NIR's equations of Linear, Affine and Conv2d, along the edges from input to output."""
    following = dict(graph.edges)
    name = "input"
    while (name := following[name]) != "output":
        node = graph.nodes[name]
        if isinstance(node, nir.Conv2d):
            said = {name: tuple(int(n) for n in getattr(node, name)) for name in ("stride", "padding", "dilation")}
            tensors = (torch.from_numpy(array) for array in (x, node.weight, node.bias))
            x = torch.nn.functional.conv2d(*tensors, groups=int(node.groups), **said).numpy()
        else:
            x = x @ node.weight.T + getattr(node, "bias", 0.0)
    return x


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_maps_through_a_file(weight_bits, tmp_path):
    ann = make_ann(dtype=torch.float64, qkv_bias=weight_bits is None)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=16, weight_bits=weight_bits)
    qann.calibrate([make_batch(qann)])
    modules = {module.name: module for module in qann.modules() if isinstance(module, Linear | Conv2d)}
    graphs = nir_subgraphs(spiking_twin(qann))
    assert set(graphs) == set(modules)
    for name, graph in graphs.items():
        nir.write(tmp_path / "map.nir", graph)
        read = nir.read(tmp_path / "map.nir")
        assert read.edges == graph.edges == [("input", name), (name, "output")]
        assert type(read.nodes[name]) is type(graph.nodes[name])
        for field in ("weight", "bias", "stride", "padding", "dilation", "groups", "input_shape"):
            np.testing.assert_array_equal(getattr(read.nodes[name], field, 0), getattr(graph.nodes[name], field, 0))
        size = tuple(int(n) for n in read.nodes["input"].input_type["input"])
        x = torch.randn(2, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = modules[name](x)
        assert tuple(expected.shape[1:]) == tuple(int(n) for n in read.nodes["output"].output_type["output"])
        # Another order of sums of 50 numbers of size 1, in float64.
        np.testing.assert_allclose(evaluate(read, x.numpy()), expected.numpy(), rtol=0, atol=1e-13)
    kinds = {type(graph.nodes[name]).__name__ for name, graph in graphs.items()}
    assert kinds == ({"Conv2d", "Affine"} if weight_bits is None else {"Conv2d", "Affine", "Linear"})


@pytest.mark.parametrize("make", [make_qann, make_swin_qann, lambda: make_text_qann("bert"), make_event_qann])
def test_no_two_of_them_meet(make):
    """So that one map is the most that NIR can say of these: whatever is next to it, it has no word for."""
    graph = to_spike_graph(spiking_twin(make()))
    kinds = {operation.name: operation.kind for operation in graph.operations}
    for operation in graph.operations:
        for name in operation.inputs:
            if operation.kind in MAPS or kinds.get(name) in MAPS:
                assert not (operation.kind in SAYABLE and kinds.get(name) in SAYABLE)


def test_the_rest_is_refused_by_name():
    snn = spiking_twin(make_qann())
    with pytest.raises(NIRError, match=r"22 fire \(embeddings.patch_embeddings.node, ...\)") as caught:
        to_nir(snn)
    graph = to_spike_graph(snn)
    unsayable = {"fire", "softmax", "layer_norm", "matmul", "static"}
    refused = {operation.name: operation.kind for operation in graph.operations if operation.kind in unsayable}
    assert refused.items() <= caught.value.refused.items()
    assert not set(caught.value.refused.values()) & set(SAYABLE)
    for kind in unsayable:
        assert f" {kind} (" in str(caught.value)
    assert "subgraph='embeddings.patch_embeddings.projection' and 13 others" in str(caught.value)


def test_files_of_all_maps_or_of_one(tmp_path):
    snn = make_step("swin")
    maps, refused = save_nir(snn, tmp_path / "all")
    assert maps == list(nir_subgraphs(snn))
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(f"{name}.nir" for name in maps)
    read = nir.read(tmp_path / "all" / "encoder.layers.0.downsample.reduction.nir")
    weight = snn.swin.encoder.layers[0].downsample.reduction.weight.detach().numpy()
    np.testing.assert_array_equal(read.nodes["encoder.layers.0.downsample.reduction"].weight, weight)
    assert {"fire", "roll", "pad", "mean"} <= set(refused.values())
    assert save_nir(snn, tmp_path / "one", "classifier") == (["classifier"], refused)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["classifier.nir"]
    with pytest.raises(NIRError, match=r"'layers.7' is no part of the network"):
        save_nir(snn, tmp_path / "none", "layers.7")
    assert not (tmp_path / "none").exists()


def test_subgraph_by_its_path():
    snn = spiking_twin(make_qann())
    one = to_nir(snn, "layers.0.mlp.fc1").nodes["layers.0.mlp.fc1"]
    np.testing.assert_array_equal(one.weight, snn.vit.layers[0].mlp.fc1.weight.detach().numpy())
    with pytest.raises(NIRError, match=r"'layers.0.attention.softmax' is softmax, and no affine map"):
        to_nir(snn, "layers.0.attention.softmax")
    with pytest.raises(NIRError, match=r"'layers.7' is no part of the network"):
        to_nir(snn, "layers.7")
