"""The ViT twins as users meet them: isolation of batches, outputs, errors."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spikezip_hf import (
    QuantViTConfig,
    QuantViTForImageClassification,
    QuantViTModel,
    SpikeViTConfig,
    SpikeViTForImageClassification,
    SpikeViTModel,
)
from tests.conftest import make_images, make_qann, tie_distances

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TINY_IMAGE = {"image_size": 8, "patch_size": 4}


@pytest.fixture(scope="module")
def qann():
    return make_qann(dtype=torch.float64, levels=16)


@pytest.fixture(scope="module")
def snn(qann):
    return SpikeViTForImageClassification.from_quantized(qann, time_steps=300)


@pytest.fixture(scope="module")
def images(qann):
    return make_images(qann.config, 8, torch.float64)


class TestNothingLeaks:
    def assert_same(self, one, other, rows=slice(None)):
        assert torch.equal(one.spike_counts, other.spike_counts[rows])
        assert torch.equal(one.equilibrium_step, other.equilibrium_step[rows])
        if one.logits.shape == other.logits.shape:
            assert torch.equal(one.logits, other.logits)
        else:  # another number of rows may round differently
            assert torch.allclose(one.logits, other.logits[rows], rtol=0, atol=1e-10)

    def test_same_input_twice(self, snn, images):
        self.assert_same(snn(images), snn(images))

    def test_interleaved_batches(self, snn, images):
        first, second = images[:4], images[4:]
        alone = snn(first), snn(second)
        for _ in range(2):
            self.assert_same(snn(second), alone[1])
            self.assert_same(snn(first), alone[0])

    @pytest.mark.parametrize("batch", [1, 3, 7])
    def test_alone_or_in_a_batch(self, snn, images, batch):
        together = snn(images)
        for start in range(0, 8, batch):
            rows = slice(start, min(start + batch, 8))
            self.assert_same(snn(images[rows]), together, rows)

    def test_levels_alone_or_in_a_batch(self, snn, images):
        together = snn.trajectory(images).levels
        alone = snn.trajectory(images[5:6]).levels
        assert all(torch.equal(alone[name], together[name][5:6]) for name in together)

    def test_truncated_run_leaves_nothing(self, snn, images):
        before = snn(images)
        snn(images.flip(0), time_steps=3)
        self.assert_same(snn(images), before)

    def test_threads(self, snn, images):
        parts = [images[:2], images[2:5], images[5:], images] * 3
        alone = [snn(part) for part in parts]
        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(pool.map(snn, parts), alone, strict=True):
                self.assert_same(one, other)

    def test_permuted_batch(self, snn, images):
        order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
        together, permuted = snn(images), snn(images[order])
        assert torch.equal(permuted.spike_counts, together.spike_counts[order])
        assert torch.equal(permuted.equilibrium_step, together.equilibrium_step[order])

    def test_the_model_itself_is_not_changed_by_a_run(self, snn, images):
        before = {key: value.clone() for key, value in snn.state_dict().items()}
        attributes = {name: set(vars(module)) for name, module in snn.named_modules()}
        snn(images)
        assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
        assert attributes == {name: set(vars(module)) for name, module in snn.named_modules()}

    def test_float32_differences_come_from_a_tie(self):
        """In float32 a level may depend on the batch; then some node's input stood at a tie, and that is shown."""
        qann = make_qann(levels=32)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=300)
        images = make_images(qann.config, 64)
        together = snn.trajectory(images).levels
        nearest = tie_distances(qann, pixel_values=images)
        for sample in range(0, 64, 4):
            alone = snn.trajectory(images[sample : sample + 1]).levels
            for name in together:
                differs = alone[name] != together[name][sample : sample + 1]
                if bool(differs.any()):  # the first node that differs: its own input is at a tie to float32's rounding
                    assert float(nearest[name][sample : sample + 1][differs].max()) < 1e-4
                    break


class TestOutputs:
    def test_fields(self, snn, images):
        out = snn(images, output_time_steps=True, time_steps=20)
        assert out.logits.shape == (8, 5)
        assert out.logits_per_step.shape == (8, 20, 5)
        assert out.equilibrium_step.dtype == out.spike_counts.dtype == torch.int64
        assert out.spike_counts.shape == out.neuron_counts.shape == (8, len(snn.node_names))
        assert out.neuron_counts[0, snn.node_names.index("layers.0.mlp.hidden_node")] == 5 * 48
        assert out.neuron_counts[0, snn.node_names.index("layers.0.attention.probs_node")] == 4 * 5 * 5
        assert out.loss is None
        assert out.logits_per_step[:, 0].ne(out.logits_per_step[:, 19]).any()

    def test_first_steps_of_a_run_do_not_depend_on_its_length(self, snn, images):
        long = snn(images, time_steps=40, output_time_steps=True).logits_per_step
        for time_steps in (1, 8, 9, 17):
            short = snn(images, time_steps=time_steps).logits
            assert torch.allclose(short, long[:, time_steps - 1], rtol=0, atol=1e-12)  # another number of rows

    def test_loss_is_that_of_the_final_logits(self, snn, images):
        labels = torch.arange(8) % 5
        out = snn(images, labels=labels)
        assert torch.equal(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))

    def test_tuple(self, snn, images):
        assert torch.equal(snn(images, return_dict=False)[0], snn(images).logits)

    def test_hidden_states_and_attentions_are_those_of_the_quantized_network(self, qann, snn, images):
        with torch.no_grad():
            expected = qann.eval()(images, output_hidden_states=True, output_attentions=True)
        for execution in ("cumulative", "equilibrium"):
            out = snn(images, execution=execution, output_hidden_states=True, output_attentions=True)
            assert len(out.hidden_states) == len(expected.hidden_states) == 3
            assert len(out.attentions) == len(expected.attentions) == 2
            assert all(map(torch.equal, out.hidden_states, expected.hidden_states))
            assert all(map(torch.equal, out.attentions, expected.attentions))

    def test_base_model(self, qann, images):
        base = QuantViTModel(qann.config)
        base.load_state_dict(qann.vit.state_dict())
        spiking = SpikeViTModel.from_quantized(base.double().eval(), time_steps=300)
        out = spiking(images, output_time_steps=True)
        with torch.no_grad():
            assert torch.equal(out.last_hidden_state, base(images).last_hidden_state)
        assert out.last_hidden_state_per_step.shape == (8, 300, 5, 32)
        assert bool((out.equilibrium_step > 0).all())

    def test_equilibrium_execution_simulates_nothing(self, snn, images):
        out = snn(images, execution="equilibrium")
        assert out.spike_counts is None
        assert out.equilibrium_step is None

    def test_gradients_are_refused_with_the_way_out(self, snn, images):
        loss = snn(images, labels=torch.zeros(8, dtype=torch.long)).loss
        with pytest.raises(RuntimeError, match="Fine-tune QuantViTForImageClassification and convert it again"):
            loss.backward()

    def test_a_spiking_model_never_drops_out(self, images):
        qann = make_qann(dtype=torch.float64, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
        snn = SpikeViTForImageClassification.from_quantized(qann, time_steps=300)
        snn.train()
        with torch.no_grad():
            assert torch.equal(snn(images).logits, qann.eval()(images).logits)

    def test_dropout_acts_while_the_quantized_network_trains(self, images):
        qann = make_qann(dtype=torch.float64, hidden_dropout_prob=0.5).train()
        assert not torch.equal(qann(images).logits, qann(images).logits)


class TestNodes:
    def test_unsigned_ones_stand_behind_relu_and_softmax_only(self):
        qann = make_qann(num_hidden_layers=3)
        unsigned = {node.name for node in qann.nodes if not node.signed}
        assert unsigned == {f"layers.{i}.{n}" for i in range(3) for n in ("attention.probs_node", "mlp.hidden_node")}

    def test_stages_are_layers(self):
        stages = {node.name: node.stage for node in make_qann(num_hidden_layers=3).nodes}
        assert stages.pop("embeddings.patch_embeddings.node") == 0
        assert stages.pop("layernorm_node") == 3
        assert len(stages) == 3 * 10
        assert all(stage == int(name.split(".")[1]) for name, stage in stages.items())

    def test_features_of_the_gradient_scale(self):
        for node in make_qann().nodes:
            features = {"probs_node": 4, "hidden_node": 48}.get(node.name.split(".")[-1], 32)
            assert node.gradient_scale == pytest.approx((features * node.max_level) ** -0.5), node.name


def test_the_patch_embedding_is_the_only_product_with_analog_input():
    qann = make_qann()
    for model in (qann, SpikeViTForImageClassification.from_quantized(qann)):
        report = model.product_inputs()
        assert report.analog == ["embeddings.patch_embeddings.projection"]
        assert len(report.products) == 1 + 2 * 8 + 1
        assert report.products["layers.1.attention.context"] == ("spikes", "spikes")
        assert report.products["classifier"] == ("spikes", "weights")
        assert set(report.operators.values()) == {"Softmax", "LayerNorm"}


def test_mixed_granularity_has_one_scale_inside_attention_and_mlp():
    for node in make_qann(granularity="mixed").nodes:
        inner = node.name.split(".")[-1] in ("q_node", "k_node", "v_node", "probs_node", "context_node", "hidden_node")
        assert node.scale.numel() == (1 if inner else 32), node.name


class TestTraining:
    def test_attention_dropout_comes_before_the_quantizer(self, images):
        qann = make_qann(dtype=torch.float64, attention_probs_dropout_prob=0.3).train()
        one, other = (qann(images, output_attentions=True).attentions[0] for _ in range(2))
        assert not torch.equal(one, other)
        node = qann.vit.layers[0].attention.probs_node
        assert torch.equal(node.dequantize(node.quantize(one), one.dtype), one)

    def test_every_dropout_is_used(self, images):
        qann = make_qann(dtype=torch.float64).train()
        calls = dict.fromkeys((name for name, m in qann.named_modules() if isinstance(m, torch.nn.Dropout)), 0)
        for name in calls:
            qann.get_submodule(name).register_forward_hook(
                lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
            )
        qann(images)
        assert calls == {
            "vit.embeddings.dropout": 1,
            **{f"vit.layers.{i}.dropout": 2 for i in range(2)},
            **{f"vit.layers.{i}.attention.dropout": 1 for i in range(2)},
        }

    def test_every_parameter_gets_a_gradient(self, images):
        qann = make_qann(dtype=torch.float64).train()
        qann(images, labels=torch.arange(8) % 5).loss.backward()
        silent = [name for name, p in qann.named_parameters() if p.grad is None or not bool(p.grad.any())]
        assert silent == []

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_gives_the_same_gradients(self, images, reentrant):
        plain, checkpointed = make_qann(dtype=torch.float64).train(), make_qann(dtype=torch.float64).train()
        # transformers 5.23 renamed it and warns at the old name; older ones have only that
        new = hasattr(checkpointed, "activation_checkpointing_enable")
        name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
        getattr(checkpointed, name)({"use_reentrant": reentrant})
        for model in (plain, checkpointed):
            model(images, labels=torch.arange(8) % 5).loss.backward()
        for (name, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
            assert torch.equal(one.grad, other.grad), name


def test_replicas_without_parameters_of_their_own(qann, snn, images):
    """As torch.nn.DataParallel makes them on several GPUs: parameters become plain attributes."""

    def replica(model):
        modules = dict(model.named_modules())
        copies = {name: module._replicate_for_data_parallel() for name, module in modules.items()}
        for name, module in modules.items():
            for key in module._modules:
                setattr(copies[name], key, copies[f"{name}.{key}" if name else key])
            for key, parameter in module._parameters.items():
                setattr(copies[name], key, parameter if parameter is None else parameter.view_as(parameter))
            for key, buffer in module._buffers.items():
                setattr(copies[name], key, buffer)
        return copies[""]

    for model in (qann.eval(), snn):
        assert torch.equal(replica(model)(images).logits, model(images).logits)


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"quantization_levels": 7}, "quantization_levels must be an even integer"),
            ({"quantization_levels": 2}, "quantization_levels must be an even integer"),
            ({"quantization_levels": 258}, "quantization_levels must be an even integer"),
            ({"scale_granularity": "per_row"}, "scale_granularity must be one of"),
            ({"hidden_act": "gelu"}, "hidden_act must be 'relu', got 'gelu'"),
            ({"time_steps": 0}, "time_steps must be an integer of at least 1, got 0"),
            ({"max_spikes_per_step": 0}, "max_spikes_per_step must be"),
            ({"firing_schedule": "random"}, "firing_schedule must be one of 'synchronous', 'layerwise'"),
            ({"firing_window": -1}, "firing_window must be"),
            ({"firing_schedule": "nodewise"}, "needs firing_steps: .* calibrate_schedule"),
            ({"firing_schedule": "coarse_to_fine", "firing_steps": {"a": 1}}, "needs fine_steps"),
            ({"firing_steps": {"a": 0}}, r"firing_steps\['a'\] must be"),
        ],
    )
    def test_config_fields(self, fields, message):
        with pytest.raises(ValueError, match=message):
            SpikeViTConfig(**fields)

    @pytest.mark.parametrize(
        "shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 16, 16), (0, 3, 8, 8), (2, 3, 8), (2, 0, 3, 8, 8)]
    )
    def test_image_sizes(self, qann, snn, shape):
        for model in (qann, snn):
            with pytest.raises(
                ValueError, match=r"pixel_values must be \(batch, 3, 8, 8\).*num_channels and image_size"
            ):
                model(torch.zeros(shape))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"time_steps": 0}, "time_steps must be"),
            ({"time_steps": 2.5}, "time_steps must be"),
            ({"chunk_steps": 0}, "chunk_steps must be"),
            ({"execution": "fast"}, "execution must be one of 'cumulative', 'event', 'equilibrium'"),
            ({"stop": "early"}, "stop must be one of 'equilibrium', 'never'"),
            ({"execution": "equilibrium", "output_time_steps": True}, "no time steps"),
            ({"execution": "event", "output_hidden_states": True}, "output_hidden_states and output_attentions need"),
            ({"execution": "event", "output_attentions": True}, "output_hidden_states and output_attentions need"),
        ],
    )
    def test_forward_arguments(self, snn, images, arguments, message):
        with pytest.raises(ValueError, match=message):
            snn(images, **arguments)

    def test_a_misspelt_argument_is_not_swallowed(self, snn, images):
        with pytest.raises(TypeError, match="time_step"):
            snn(images, time_step=8)

    def test_more_input_steps_than_time_steps(self, snn, images):
        with pytest.raises(ValueError, match="10 steps, more than time_steps=4"):
            snn(images[:, None].expand(-1, 10, -1, -1, -1), time_steps=4)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_pixels_that_are_not_finite(self, snn, images, bad):
        images = images.clone()
        images[1, 0, 3, 3] = bad
        with pytest.raises(ValueError, match="not finite"):
            snn(images)

    @pytest.mark.parametrize("execution", ["cumulative", "event"])
    def test_weights_that_are_not_a_number(self, images, execution):
        snn = SpikeViTForImageClassification.from_quantized(make_qann(dtype=torch.float64))
        with torch.no_grad():
            snn.vit.layers[1].mlp.fc1.bias[3] = float("nan")
        with pytest.raises(FloatingPointError, match=r"input of layers\.1\.mlp\.hidden_node is not a number"):
            snn(images, execution=execution)

    def test_a_network_without_scales_warns(self, images, caplog):
        from transformers.utils import logging

        fresh = QuantViTForImageClassification(QuantViTConfig(**TINY, **TINY_IMAGE)).double()
        logging.get_logger("spikezip_hf").addHandler(caplog.handler)
        logging.get_logger("spikezip_hf.models.modeling_quantization").warning_once.cache_clear()
        fresh(images)
        assert "call calibrate(batches) first" in caplog.text
        caplog.clear()
        fresh.calibrate([{"pixel_values": images}])
        logging.get_logger("spikezip_hf.models.modeling_quantization").warning_once.cache_clear()
        fresh(images)
        assert "calibrate" not in caplog.text

    def test_missing_pixels(self, snn):
        with pytest.raises(ValueError, match="pixel_values is missing"):
            snn()


class TestConstruction:
    def test_meta_construction_leaves_nothing_uninitialised(self, tmp_path):
        """from_pretrained builds on the meta device; what the file lacks has to come from _init_weights."""
        config = QuantViTConfig(**TINY, **TINY_IMAGE)
        with torch.device("meta"):
            model = QuantViTForImageClassification(config)
        model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(True if tensor.dtype == torch.bool else float("nan"))
        model.init_weights()
        for name, tensor in model.state_dict().items():
            assert bool(tensor.isfinite().all()), name
        assert not any(bool(node.initialized) for node in model.nodes)
        assert all(node.scale.item() == node.default_scale for node in model.nodes)
        covered = set(dict(model.named_parameters())) | set(dict(model.named_buffers()))
        assert set(model.state_dict()) == covered  # every constant is saved

    def test_quant_and_spike_share_their_keys(self):
        quant = QuantViTForImageClassification(QuantViTConfig(**TINY, **TINY_IMAGE))
        spike = SpikeViTForImageClassification(SpikeViTConfig(**TINY, **TINY_IMAGE))
        assert list(quant.state_dict()) == list(spike.state_dict())

    def test_twins_share_no_memory(self):
        qann = make_qann()
        snn = SpikeViTForImageClassification.from_quantized(qann)
        pointers = {tensor.data_ptr() for tensor in qann.state_dict().values()}
        assert not pointers & {tensor.data_ptr() for tensor in snn.state_dict().values()}

    def test_copies(self, snn, images):
        for twin in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
            assert torch.equal(twin(images).logits, snn(images).logits)
        assert pickle.loads(pickle.dumps(snn.config)).to_dict() == snn.config.to_dict()
