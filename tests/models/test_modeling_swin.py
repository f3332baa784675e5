"""The Swin twins: the network is transformers', every simulation of it is exact, and users meet what they know."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    SwinConfig,
    SwinModel,
    ViTImageProcessor,
    pipeline,
)

from spikezip_hf import (
    QATTrainer,
    QuantSwinConfig,
    QuantSwinForImageClassification,
    QuantSwinModel,
    SpikeSwinConfig,
    SpikeSwinModel,
    verify_equivalence,
)
from spikezip_hf.analysis.closeup import close_up
from spikezip_hf.analysis.energy import energy
from spikezip_hf.analysis.operations import count_operations
from spikezip_hf.analysis.recording import record
from spikezip_hf.conversion.calibration import FloatEngine
from spikezip_hf.hub.card_text import outline, size
from spikezip_hf.hub.results import network_digest
from spikezip_hf.kernels import native
from spikezip_hf.loading import is_text
from spikezip_hf.models import kernels
from spikezip_hf.models.configuration_quantization import derive_config
from spikezip_hf.models.engines import RecordingEngine
from spikezip_hf.models.windows import Windows
from spikezip_hf.training.optim import layer_id
from tests.conftest import make_images, make_swin_ann, make_swin_qann, spiking_twin
from tests.training.common import make_args, make_data

# Sizes of images and windows: dividing; padded in blocks and in patch merging; padded in patches; not square; spanning
# the map in one direction.
SIZES = {
    "dividing": {},
    "padded": {"image_size": 22},
    "half a patch": {"image_size": 17},
    "not square": {"image_size": [14, 30], "window_size": 3},
    "spanned": {"image_size": [8, 24], "depths": [2], "num_heads": [2]},
    "deep": {"depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 2, "use_absolute_embeddings": True},
    "no bias": {"qkv_bias": False, "depths": [2], "num_heads": [4]},
}
SCHEDULES = [
    {},
    {"max_spikes_per_step": 3},
    {"firing_schedule": "layerwise", "firing_window": 4},
    {"schedule": "nodewise"},
    {"schedule": "coarse_to_fine"},
]


def spiking(qann, schedule=None, **fields):
    """The twin, with a schedule that is made for it if one is named."""
    snn = spiking_twin(qann, **{"time_steps": 600, **fields})
    if schedule is not None:
        snn.calibrate_schedule([{"pixel_values": make_images(qann.config, 4, snn.dtype)}], schedule)
    return snn


@pytest.fixture(scope="module")
def qann():
    return make_swin_qann(dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def snn(qann):
    return spiking(qann)


@pytest.fixture(scope="module")
def images(qann):
    return make_images(qann.config, 3, torch.float64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    qann = make_swin_qann(weight_bits=8)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    qann.save_pretrained(folder / "qann", processing_class=processor)
    spiking(qann).save_pretrained(folder / "snn", processing_class=processor)
    return folder


class TestNetworkIsThatOfTransformers:
    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
    def test_before_quantization(self, sizes):
        ann = make_swin_ann(dtype=torch.float64, **sizes)
        qann = QuantSwinForImageClassification.from_ann(ann).eval()
        images = make_images(ann.config, 3, torch.float64)
        with torch.no_grad():
            expected = ann(images, output_hidden_states=True)
            found = qann(images, engine=FloatEngine(), output_hidden_states=True)
        # The same sums in another order (sdpa): rounding in the last digits.
        assert torch.allclose(found.logits, expected.logits, rtol=0, atol=1e-12)
        for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)

    def test_attention_probabilities(self):
        ann = make_swin_ann(dtype=torch.float64)
        ann.set_attn_implementation("eager")
        qann = QuantSwinForImageClassification.from_ann(ann).eval()
        images = make_images(ann.config, 3, torch.float64)
        with torch.no_grad():
            expected = ann(images, output_attentions=True).attentions
            found = qann(images, engine=FloatEngine(), output_attentions=True).attentions
        for one, other in zip(found, expected, strict=True):
            assert one.dim() == 5  # (B, windows, heads, n, n)
            # transformers' eager softmax is of float32.
            assert torch.allclose(one.flatten(0, 1), other, rtol=0, atol=1e-6)

    def test_bare_model(self, qann, images):
        torch.manual_seed(0)
        ann = SwinModel(make_swin_ann().config, add_pooling_layer=False).double().eval()
        bare = QuantSwinModel.from_ann(ann).eval()
        with torch.no_grad():
            expected = ann(images).last_hidden_state
            assert torch.allclose(bare(images, engine=FloatEngine()).last_hidden_state, expected, rtol=0, atol=1e-12)
        with pytest.raises(ValueError, match="add_pooling_layer=False"):
            QuantSwinModel.from_ann(SwinModel(ann.config))

    def test_window_larger_than_the_map_uses_the_middle_of_its_table(self):
        """transformers' Swin cannot run this; windows are then those of a network whose window has the map's size."""
        ann = make_swin_ann(dtype=torch.float64, image_size=8, depths=[2], num_heads=[2], window_size=5)
        qann = QuantSwinForImageClassification.from_ann(ann).eval()
        small = make_swin_ann(dtype=torch.float64, image_size=8, depths=[2], num_heads=[2], window_size=4)
        state = {}
        for name, weight in ann.state_dict().items():
            state[name] = weight
            if name.endswith("table"):
                state[name] = weight.unflatten(0, (9, 9))[1:-1, 1:-1].flatten(0, 1)
        small.load_state_dict(state)
        images = make_images(ann.config, 2, torch.float64)
        with torch.no_grad():
            # As above.
            assert torch.allclose(qann(images, engine=FloatEngine()).logits, small(images).logits, rtol=0, atol=1e-12)

    def test_state_dict_is_transformers_own_and_nodes(self):
        ann = make_swin_ann(use_absolute_embeddings=True)
        qann = QuantSwinForImageClassification.from_ann(ann)
        own = [key for key in qann.state_dict() if not key.endswith((".scale", ".initialized"))]
        assert set(own) == set(ann.state_dict())


class TestWindows:
    @pytest.mark.parametrize("grid", [(8, 8), (7, 10), (5, 4), (3, 9)])
    @pytest.mark.parametrize("shifted", [False, True])
    def test_merging_undoes_partition_of_levels(self, grid, shifted):
        windows = Windows.of(grid, 4, shifted)
        levels = torch.randint(-8, 8, (2, grid[0] * grid[1], 3), dtype=torch.int8)
        cut = windows.partition(levels)
        down, across = windows.counts
        assert cut.shape == (2, down * across, windows.size**2, 3)
        assert cut.is_contiguous()
        assert torch.equal(windows.merge(cut), levels)
        # Padding is zeros and nothing else.
        assert int(cut.abs().sum()) == int(levels.abs().sum())

    def test_mask_parts_what_the_shift_brought_together(self):
        mask = Windows.of((8, 8), 4, shifted=True).mask(torch.zeros(1))
        assert mask.shape == (4, 16, 16)
        assert not mask[0].any()  # the first window is a piece of the map
        assert set(mask[3].unique().tolist()) == {0.0, -100.0}
        assert torch.equal(mask, mask.mT)


class TestEquivalence:
    @pytest.mark.parametrize("weight_bits", [None, 8])
    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
    def test_certificate(self, sizes, weight_bits):
        qann = make_swin_qann(ann_fields=sizes, weight_bits=weight_bits)
        images = make_images(qann.config, 4)
        snn = spiking(qann)
        certificate = verify_equivalence(qann, snn, {"pixel_values": images})
        assert certificate.exact, str(certificate)
        with torch.no_grad():
            assert torch.equal(snn(images, execution="equilibrium").logits, qann.eval()(images).logits)

    @pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "mixed"])
    @pytest.mark.parametrize("fields", SCHEDULES)
    def test_every_schedule_has_the_same_fixed_point(self, fields, granularity):
        qann = make_swin_qann(levels=8, scale_granularity=granularity, weight_bits=8)
        images = make_images(qann.config, 3)
        certificate = verify_equivalence(qann, spiking(qann, **fields), {"pixel_values": images})
        assert certificate.exact, str(certificate)

    @pytest.mark.parametrize("steps", [None, 3])
    @pytest.mark.parametrize("fields", SCHEDULES)
    def test_cumulative_equals_event_spike_for_spike(self, fields, steps):
        qann = make_swin_qann(1, torch.float64, levels=8, ann_fields={"image_size": 10, "window_size": 2})
        snn = spiking(qann, **fields)
        images = make_images(qann.config, 2, torch.float64, steps=steps)
        arguments = {"time_steps": 30, "output_time_steps": True, "stop": "never"}
        cumulative, event = snn(images, **arguments), snn(images, execution="event", **arguments)
        assert torch.equal(cumulative.spike_counts, event.spike_counts)
        assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)
        # Sums of up to 30 changes against one product of their sum: rounding in the last digits, no flipped level.
        assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("chunk_steps", [1, 4, 100])
    def test_chunks_give_the_same_spikes(self, snn, images, chunk_steps):
        out, expected = snn(images, chunk_steps=chunk_steps), snn(images)
        assert torch.equal(out.spike_counts, expected.spike_counts)
        assert torch.equal(out.equilibrium_step, expected.equilibrium_step)

    def test_input_per_step(self):
        qann = make_swin_qann(levels=8)
        frames = make_images(qann.config, 3, steps=4)
        certificate = verify_equivalence(qann, spiking(qann), {"pixel_values": frames})
        assert certificate.exact, str(certificate)
        assert int(certificate.equilibrium_step.min()) >= 4

    @pytest.mark.skipif(native.library() is None, reason="no compiled kernels on this machine")
    def test_kernels_are_used_and_give_the_bits_of_the_references(self, monkeypatch):
        qann = make_swin_qann(weight_bits=8)
        snn, images = spiking(qann), make_images(qann.config, 2)
        shapes = []
        products = native.Library.products

        def watched(self, a, b, *scale):
            shapes.append(tuple(a.shape[1:3]))
            return products(self, a, b, *scale)

        monkeypatch.setattr(native.Library, "products", watched)
        out = snn(images, output_time_steps=True)
        if native.library().has_products:
            assert {(4, 2), (1, 4)} <= set(shapes)  # windows and heads of both stages
        monkeypatch.setattr(kernels, "native", None)
        expected = snn(images, output_time_steps=True)
        assert torch.equal(out.logits_per_step, expected.logits_per_step)
        assert torch.equal(out.spike_counts, expected.spike_counts)


class TestNodes:
    def test_order_and_stages(self):
        qann = make_swin_qann(ann_fields={"depths": [2, 1, 1], "num_heads": [1, 2, 2]})
        recorder = RecordingEngine()
        qann.eval()(make_images(qann.config, 1), engine=recorder)
        assert list(recorder.levels) == qann.node_names
        stages = {node.name: node.stage for node in qann.nodes}
        assert stages["embeddings.norm_node"] == 0
        assert stages["encoder.layers.0.blocks.1.mlp.output_node"] == 1
        assert stages["encoder.layers.0.downsample.output_node"] == 1
        assert stages["encoder.layers.1.blocks.0.mlp.output_node"] == 2
        assert stages["layernorm_node"] == 4
        assert len(stages) == 2 + 4 * 10 + 2 * 2 + 1

    def test_unsigned_ones_stand_behind_relu_and_softmax_only(self, qann):
        unsigned = {node.name.rpartition(".")[2] for node in qann.nodes if not node.signed}
        assert unsigned == {"probs_node", "hidden_node"}

    @pytest.mark.parametrize("sizes", [SIZES["dividing"], SIZES["padded"]])
    def test_the_patch_embedding_is_the_only_product_with_analog_input(self, sizes):
        qann = make_swin_qann(ann_fields=sizes)
        for model in (qann, spiking(qann)):
            report = model.product_inputs()
            assert report.analog == ["embeddings.patch_embeddings.projection"]
            assert len(report.products) == 1 + 3 * 8 + 1 + 1
            assert report.products["encoder.layers.0.blocks.1.attention.q_proj"] == ("spikes", "weights")
            assert report.products["encoder.layers.0.blocks.1.attention.o_proj"] == ("spikes", "weights")
            assert report.products["encoder.layers.0.blocks.1.attention.context"] == ("spikes", "spikes")
            assert report.products["encoder.layers.0.downsample.reduction"] == ("spikes", "weights")
            assert report.products["classifier"] == ("spikes", "weights")
            assert set(report.operators.values()) == {"Softmax", "LayerNorm"}


class TestOutputs:
    def test_hidden_states_and_attentions_are_those_of_the_quantized_network(self, qann, snn, images):
        with torch.no_grad():
            expected = qann(images, output_hidden_states=True, output_attentions=True)
        out = snn(images, output_hidden_states=True, output_attentions=True)
        assert [state.shape for state in out.hidden_states] == [(3, 64, 16), (3, 16, 32), (3, 16, 32)]
        assert [probs.shape for probs in out.attentions] == [(3, 4, 2, 16, 16), (3, 1, 4, 16, 16)]
        assert all(map(torch.equal, out.hidden_states, expected.hidden_states))
        assert all(map(torch.equal, out.attentions, expected.attentions))

    def test_neurons(self, snn, images):
        counts = dict(zip(snn.node_names, snn(images).neuron_counts[0].tolist(), strict=True))
        assert counts["encoder.layers.0.blocks.0.attention.probs_node"] == 4 * 2 * 16 * 16
        assert counts["encoder.layers.0.blocks.0.mlp.hidden_node"] == 64 * 24
        assert counts["encoder.layers.0.downsample.norm_node"] == 16 * 64

    def test_bytes_of_the_largest_tensor(self, qann, snn, images):
        # Hidden layer of the first stage's MLP: 24 for each of 64 positions, as are the scores: 2 heads, 16 keys.
        assert snn.row_bytes(images) == 64 * 4 * 32
        assert spiking(make_swin_qann(ann_fields={"image_size": 22})).row_bytes(images) == 144 * 4 * 32

    def test_base_model(self, qann, images):
        bare = QuantSwinModel(qann.config)
        bare.load_state_dict(qann.swin.state_dict())
        bare = bare.double().eval()
        out = spiking(bare)(images)
        with torch.no_grad():
            assert torch.equal(out.last_hidden_state, bare(images).last_hidden_state)
        assert bool((out.equilibrium_step > 0).all())

    @pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 8, 8)])
    def test_image_sizes(self, qann, snn, shape):
        for model in (qann, snn):
            with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 3, 16, 16\)"):
                model(torch.zeros(shape))


class TestTraining:
    def test_every_parameter_gets_a_gradient(self, images):
        qann = make_swin_qann(dtype=torch.float64, ann_fields={"use_absolute_embeddings": True}).train()
        qann(images, labels=torch.arange(3)).loss.backward()
        silent = [name for name, p in qann.named_parameters() if p.grad is None or not bool(p.grad.any())]
        assert silent == []

    def test_checkpointing_gives_the_same_gradients(self, images):
        plain, checkpointed = (make_swin_qann(dtype=torch.float64).train() for _ in range(2))
        # transformers 5.23 renamed it and warns at the old name; older ones have only that
        new = hasattr(checkpointed, "activation_checkpointing_enable")
        getattr(checkpointed, "activation_checkpointing_enable" if new else "gradient_checkpointing_enable")()
        for model in (plain, checkpointed):
            model(images, labels=torch.arange(3)).loss.backward()
        for (name, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
            assert torch.equal(one.grad, other.grad), name

    def test_drop_path_grows_over_all_blocks(self):
        qann = make_swin_qann(ann_fields={"drop_path_rate": 0.2})
        assert qann.config.drop_path_rate == 0.2
        rates = [block.drop_path.rate for stage in qann.swin.encoder.layers for block in stage.blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2])

    def test_trainer_step(self, tmp_path):
        ann = make_swin_ann()
        qann = QuantSwinForImageClassification.from_ann(ann, quantization_levels=16)
        images, data = make_images(qann.config, 2), make_data(qann.config)
        args = make_args(tmp_path, max_steps=2, layer_decay=0.8)
        before = {name: p.clone() for name, p in qann.named_parameters()}
        QATTrainer(model=qann, args=args, train_dataset=data, teacher_model=ann).train()
        assert qann.calibrated
        changed = [name for name, p in qann.named_parameters() if not torch.equal(p, before[name])]
        assert "swin.encoder.layers.0.downsample.reduction.weight" in changed
        assert verify_equivalence(qann, spiking(qann), {"pixel_values": images}).exact

    def test_distilling_hidden_states_is_refused(self, tmp_path):
        ann = make_swin_ann()
        qann = QuantSwinForImageClassification.from_ann(ann)
        args = make_args(tmp_path, hidden_state_weight=1.0)
        with pytest.raises(ValueError, match="set them to 0 for Swin"):
            QATTrainer(model=qann, args=args, train_dataset=make_data(qann.config), teacher_model=ann)

    def test_depth_of_parameters(self):
        depths = [2, 1]
        names = {
            "swin.embeddings.norm.weight": 0,
            "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": 1,
            "swin.encoder.layers.0.blocks.1.attention.q_proj.weight": 2,
            "swin.encoder.layers.0.downsample.norm.bias": 2,
            "swin.encoder.layers.1.blocks.0.layernorm_before.weight": 3,
            "swin.layernorm.weight": 3,
            "classifier.weight": 4,
        }
        assert {name: layer_id(name, 3, depths) for name in names} == names


class TestCheckpoints:
    def test_another_image_size_is_refused_while_loading(self, saved):
        with pytest.raises(ValueError, match=r"image_size of the checkpoint is .* another network"):
            AutoModelForImageClassification.from_pretrained(saved / "snn", image_size=24)

    def test_image_size_is_in_the_digest(self):
        """No weight has a size that would show it."""
        qann = make_swin_qann()
        before = network_digest(qann)
        qann.config.image_size = 24
        assert network_digest(qann) != before

    def test_auto_classes_give_the_same_bits(self, saved):
        qann = AutoModelForImageClassification.from_pretrained(saved / "qann")
        snn = AutoModelForImageClassification.from_pretrained(saved / "snn")
        assert verify_equivalence(qann, snn, {"pixel_values": make_images(qann.config, 2)}).exact
        assert isinstance(AutoModel.from_pretrained(saved / "snn"), SpikeSwinModel)
        assert isinstance(AutoConfig.from_pretrained(saved / "snn"), SpikeSwinConfig)
        assert isinstance(AutoImageProcessor.from_pretrained(saved / "snn"), ViTImageProcessor)

    def test_what_is_saved(self, saved):
        names = {path.name for path in (saved / "snn").iterdir()}
        assert {"modeling_spike_swin.py", "modeling_image.py", "windows.py", "configuration_spike_swin.py"} <= names
        assert json.loads((saved / "snn" / "config.json").read_text())["model_type"] == "spike_swin"
        assert "3 layers, 32 channels" in (saved / "snn" / "README.md").read_text()

    def test_pipeline(self, saved):
        classify = pipeline("image-classification", model=str(saved / "snn"))
        pictures = [
            Image.fromarray(image) for image in torch.randint(0, 256, (2, 20, 20, 3), dtype=torch.uint8).numpy()
        ]
        pixels = AutoImageProcessor.from_pretrained(saved / "snn")(images=pictures, return_tensors="pt")
        with torch.no_grad():
            logits = AutoModelForImageClassification.from_pretrained(saved / "qann").eval()(**pixels).logits
        names = [f"LABEL_{number}" for number in logits.argmax(-1)]
        assert [answer[0]["label"] for answer in classify(pictures)] == names

    def test_swin_is_of_images(self):
        assert not any(map(is_text, ("swin", "quant_swin", "spike_swin", "vit", "quant_vit")))
        assert all(map(is_text, ("bert", "quant_bert", "spike_roberta")))


class TestAnalysis:
    def test_recording(self, snn, images):
        recording = record(snn, [{"pixel_values": images}])
        assert recording.exact.tolist() == [True] * 3

    @pytest.mark.parametrize("sizes", [SIZES["dividing"], SIZES["padded"]])
    def test_operations_and_energy(self, sizes):
        qann = make_swin_qann(dtype=torch.float64, levels=8, ann_fields=sizes)
        snn, images = spiking(qann), make_images(qann.config, 2, torch.float64)
        operations = count_operations(snn, {"pixel_values": images})
        assert {entry.kind for entry in operations.entries}.isdisjoint({"analog weights"})
        counts = {entry.module: entry for entry in operations.entries if entry.kind == "weights"}
        block = "encoder.layers.0.blocks.1"
        # Each spike of the LayerNorm's node goes to each of the 16 channels of q, wherever windows have put it.
        spikes = snn.trajectory(images).spike_counts[:, snn.node_names.index(f"{block}.layernorm_before_node")]
        assert torch.equal(counts[f"{block}.attention.q_proj"].count, 16 * spikes)
        height, width = qann.config.grids[0]
        # Padding is no neuron of that node.
        assert counts[f"{block}.attention.q_proj"].dense.tolist() == [height * width * 16 * 16] * 2
        assert energy(operations).snn.energy_j > 0

    def test_report_and_page(self, snn, images, tmp_path):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from spikezip_hf.analysis.report import nodes_to_see, write_report
        from spikezip_hf.analysis.watching import Watcher

        seen = close_up(snn, {"pixel_values": images[:1]}, nodes_to_see(snn))
        recording = record(snn, [{"pixel_values": images}])
        write_report(tmp_path / "report", snn, recording, seen=seen, picture=torch.rand(16, 16, 3))
        drawn = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
        assert "raster" in drawn
        assert not {"image", "heads"} & drawn
        with pytest.raises(ValueError, match="SpikeSwinForImageClassification attends within windows"):
            Watcher(snn, ViTImageProcessor())

    def test_card(self, qann):
        report = outline(qann)
        assert report.products == qann.product_inputs().products
        assert size(qann).startswith("3 layers, 32 channels")


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hidden_act": "gelu"}, "hidden_act must be 'relu'"),
            ({"window_size": 0}, "window_size must be"),
            ({"num_heads": [3, 6]}, "num_heads is of 2 stages, and depths of 4"),
            ({"num_heads": [5, 6, 12, 24]}, "num_heads: 5 heads do not divide the 96 channels"),
            ({"use_absolute_embeddings": True, "image_size": 30}, "use_absolute_embeddings needs an image_size"),
            ({"drop_path_rate": 1.0}, "drop_path_rate must be"),
            ({"time_steps": 0}, "time_steps must be"),
        ],
    )
    def test_config_fields(self, fields, message):
        with pytest.raises(ValueError, match=message):
            SpikeSwinConfig(**fields)

    def test_gelu_is_refused(self):
        with pytest.raises(ValueError, match="only ReLU becomes spikes"):
            QuantSwinForImageClassification.from_ann(make_swin_ann(hidden_act="gelu"))

    def test_window_size_cannot_change(self):
        with pytest.raises(ValueError, match="window_size of the network to convert is 4"):
            QuantSwinForImageClassification.from_ann(make_swin_ann(), window_size=2)

    def test_fields_of_other_networks_are_refused(self):
        for field, value in (("use_class_token", True), ("pooling", "mean")):
            with pytest.raises(ValueError, match=f"{field}: no such field in QuantSwinConfig"):
                QuantSwinForImageClassification.from_ann(make_swin_ann(), **{field: value})

    def test_default_drop_path_is_transformers_own(self):
        assert QuantSwinConfig().drop_path_rate == SwinConfig().drop_path_rate
        assert derive_config(QuantSwinConfig, SwinConfig(hidden_act="relu", drop_path_rate=0)).drop_path_rate == 0
