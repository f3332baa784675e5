"""The text twins: exactness, and what users meet."""

import pytest
import torch

from spikezip_hf import verify_equivalence
from spikezip_hf.models.engines import RecordingEngine
from tests.conftest import (
    ARCHITECTURES,
    TASKS,
    crossed,
    make_text_ann,
    make_text_qann,
    make_texts,
    spiking_twin,
    text_class,
)

LENGTHS = [12, 3, 7, 1]
pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def spiking(qann, **fields):
    return spiking_twin(qann, **{"time_steps": 1000, **fields})


class TestExactness:
    @pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("levels", [4, 16, 32])
    @pytest.mark.parametrize("task", TASKS)
    def test_quant_equals_cumulative_at_equilibrium_to_the_bit(self, architecture, task, levels, seed):
        qann = make_text_qann(architecture, task, seed, levels=levels)
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS, seed=seed)
        certificate = verify_equivalence(qann, snn, texts)
        assert certificate.exact, str(certificate)
        with torch.no_grad():
            expected = qann(**texts)[snn.readout]
        assert torch.equal(snn(**texts)[snn.readout], expected)
        assert torch.equal(snn(**texts, execution="equilibrium")[snn.readout], expected)

    @pytest.mark.parametrize(
        "granularity", ["per_tensor", pytest.param("per_channel", marks=pytest.mark.slow), "mixed"]
    )
    @pytest.mark.parametrize("head_act", ["relu", "tanh"])
    @pytest.mark.parametrize("node_placement", ["full", "reference"])
    @pytest.mark.parametrize("fields", [{}, {"max_spikes_per_step": 3}, {"firing_schedule": "layerwise"}])
    def test_every_option_is_exact(self, architecture, fields, node_placement, head_act, granularity):
        qann = make_text_qann(
            architecture, node_placement=node_placement, head_act=head_act, granularity=granularity, levels=8
        )
        certificate = verify_equivalence(qann, spiking(qann, **fields), make_texts(qann.config, LENGTHS))
        assert certificate.exact, str(certificate)

    @pytest.mark.parametrize(
        ("schedule", "head_act", "node_placement", "side"),
        crossed(
            ["synchronous", "layerwise"],
            ["relu", "tanh"],
            ["full", "reference"],
            ["left", "right"],
            default=[
                ("synchronous", "relu", "full", "right"),
                ("layerwise", "tanh", "full", "left"),
                ("synchronous", "tanh", "reference", "left"),
                ("layerwise", "relu", "reference", "right"),
            ],
        ),
    )
    def test_cumulative_equals_event_spike_for_spike(self, architecture, schedule, head_act, node_placement, side):
        fields = {"firing_schedule": schedule, "firing_window": 5}
        qann = make_text_qann(
            architecture, dtype=torch.float64, head_act=head_act, node_placement=node_placement, levels=8
        )
        snn, texts = spiking(qann, **fields), make_texts(qann.config, LENGTHS, side=side)
        for time_steps in (5, 40):
            run = {"time_steps": time_steps, "output_time_steps": True, "stop": "never"}
            cumulative, event = snn(**texts, **run), snn(**texts, **run, execution="event")
            assert torch.equal(cumulative.spike_counts, event.spike_counts)
            assert torch.equal(cumulative.neuron_counts, event.neuron_counts)
            assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)
            # Sums of up to 40 changes against one product of their sum: rounding in the last digits.
            assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-12)

    def test_chunks_give_the_same_spikes(self, architecture):
        qann = make_text_qann(architecture, dtype=torch.float64)
        snn, texts = spiking(qann, time_steps=45), make_texts(qann.config, LENGTHS)
        streaming = snn(**texts, chunk_steps=1, stop="never")
        for chunk_steps in (3, 8, 45):
            out = snn(**texts, chunk_steps=chunk_steps, stop="never")
            assert torch.equal(out.spike_counts, streaming.spike_counts)
            assert torch.equal(out.equilibrium_step, streaming.equilibrium_step)

    def test_nodes_are_listed_in_the_order_they_fire(self, architecture):
        qann = make_text_qann(architecture)
        recorder = RecordingEngine()
        qann(**make_texts(qann.config, [3]), engine=recorder)
        assert list(recorder.levels) == qann.node_names == spiking(qann).node_names

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_exact_too(self, architecture, dtype):
        qann = make_text_qann(architecture).to(dtype)
        certificate = verify_equivalence(qann, spiking(qann), make_texts(qann.config, LENGTHS))
        assert certificate.exact, str(certificate)


class TestProducts:
    def test_none_is_analog_by_default(self, architecture):
        for task in TASKS:
            qann = make_text_qann(architecture, task)
            for model in (qann, spiking(qann)):
                report = model.product_inputs()
                assert report.analog == []
                assert set(report.products.values()) == {("spikes", "weights"), ("spikes", "spikes")}
                heads = {"Model": 0, "ForSequenceClassification": 2, "ForTokenClassification": 1}
                assert len(report.products) == 2 * 8 + heads[task]
                assert set(report.operators.values()) == {"Softmax", "LayerNorm"}
                assert "analog input: none" in str(report)

    def test_first_token_of_a_padded_batch_counts_as_spikes(self, architecture):
        from spikezip_hf.models.placement import ProvenanceEngine

        qann, engine = make_text_qann(architecture), ProvenanceEngine()
        qann.eval()(**make_texts(qann.config, LENGTHS, side="left"), engine=engine)
        assert not [name for name, sides in engine.products.items() if "analog" in sides]

    def test_the_reference_placement_names_its_analog_inputs(self, architecture):
        qann = make_text_qann(architecture, node_placement="reference")
        layers = [f"encoder.layer.{index}" for index in range(2)]
        inputs = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
        head = {"bert": "pooler.dense", "roberta": "classifier.dense"}[architecture]
        assert qann.product_inputs().analog == [f"{layer}.{name}" for layer in layers for name in inputs] + [head]
        assert not any("norm_node" in name for name in qann.node_names)
        assert not next(node for node in qann.nodes if node.name.endswith("context_node")).signed

    def test_a_tanh_is_declared(self, architecture):
        report = make_text_qann(architecture, head_act="tanh").product_inputs()
        assert [kind for kind in report.operators.values() if kind == "Tanh"] == ["Tanh"]
        assert "1 Tanh" in str(report)
        assert report.analog == []

    def test_mode_of_every_module_is_kept(self, architecture):
        qann = make_text_qann(architecture, hidden_dropout_prob=0.5).train()
        qann.base_model.embeddings.eval()  # as one freezes a part
        assert qann.product_inputs().analog == []
        assert verify_equivalence(qann, spiking(qann), make_texts(qann.config, LENGTHS)).exact
        qann.calibrate([make_texts(qann.config, LENGTHS)])
        assert qann.training
        assert not qann.base_model.embeddings.training
        assert not qann.base_model.embeddings.dropout.training


class TestTasks:
    @pytest.mark.parametrize(
        ("fields", "labels", "problem"),
        [
            ({"num_labels": 3}, torch.tensor([0, 2, 1, 1]), "single_label_classification"),
            ({"num_labels": 1}, torch.tensor([0.3, -2.0, 1.0, 0.0]), "regression"),
            ({"num_labels": 3}, (torch.arange(12).reshape(4, 3) % 2).float(), "multi_label_classification"),
        ],
    )
    def test_problem_types(self, architecture, fields, labels, problem):
        ann = make_text_ann(architecture, **fields)
        qann = make_text_qann(architecture, **fields)
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS)
        with torch.no_grad():
            out = qann(**texts, labels=labels)
        losses = {
            "single_label_classification": torch.nn.functional.cross_entropy,
            "regression": lambda logits, labels: torch.nn.functional.mse_loss(logits.squeeze(-1), labels),
            "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        }
        assert torch.equal(out.loss, losses[problem](out.logits, labels))
        assert qann.config.problem_type == problem
        simulated = snn(**texts, labels=labels)
        assert torch.equal(simulated.loss, out.loss)
        assert torch.equal(simulated.logits, out.logits)
        ann(**texts, labels=labels)
        assert ann.config.problem_type == problem

    def test_token_labels(self, architecture):
        qann = make_text_qann(architecture, "ForTokenClassification")
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS)
        labels = torch.where(texts["attention_mask"] == 1, texts["input_ids"] % 3, -100)
        with torch.no_grad():
            out = qann(**texts, labels=labels)
        assert out.logits.shape == (4, 12, 3)
        assert torch.equal(out.loss, torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten()))
        simulated = snn(**texts, labels=labels, output_time_steps=True, time_steps=200)
        assert torch.equal(simulated.loss, out.loss)
        assert simulated.logits_per_step.shape == (4, 200, 12, 3)

    def test_base_model(self, architecture):
        qann = make_text_qann(architecture, "Model")
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS)
        out = snn(**texts, output_time_steps=True, time_steps=300)
        assert out.last_hidden_state.shape == (4, 12, 32)
        assert out.last_hidden_state_per_step.shape == (4, 300, 12, 32)
        assert out.pooler_output is None
        assert not out.last_hidden_state[texts["attention_mask"] == 0].any()

    def test_hidden_states_and_attentions_are_those_of_the_quantized_network(self, architecture):
        qann = make_text_qann(architecture)
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS)
        asked = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            expected = qann(**texts, **asked)
        out = snn(**texts, **asked)
        assert len(out.hidden_states) == 3
        assert len(out.attentions) == 2
        assert all(map(torch.equal, out.hidden_states, expected.hidden_states))
        assert all(map(torch.equal, out.attentions, expected.attentions))

    def test_embeddings_instead_of_ids(self, architecture):
        qann = make_text_qann(architecture)
        snn, texts = spiking(qann), make_texts(qann.config, LENGTHS)
        expected = snn(**texts)
        embedded = dict(texts)
        embedded["inputs_embeds"] = qann.get_input_embeddings()(embedded.pop("input_ids")).detach()
        out = snn(**embedded)
        assert torch.equal(out.logits, expected.logits)
        assert torch.equal(out.spike_counts, expected.spike_counts)
        assert torch.equal(qann(**embedded).logits, expected.logits)

    def test_positions_given_by_hand(self, architecture):
        qann = make_text_qann(architecture, dtype=torch.float64)
        texts = make_texts(qann.config, [6, 6])
        first = qann.config.pad_token_id + 1 if architecture == "roberta" else 0
        usual = torch.arange(first, first + 6).expand(2, -1)
        with torch.no_grad():
            assert torch.equal(qann(**texts, position_ids=usual).logits, qann(**texts).logits)
            assert not torch.equal(qann(**texts, position_ids=usual.flip(1)).logits, qann(**texts).logits)

    def test_gradients_are_refused_with_the_way_out(self, architecture):
        snn = spiking(make_text_qann(architecture))
        loss = snn(**make_texts(snn.config, [4, 4]), labels=torch.tensor([0, 1])).loss
        with pytest.raises(RuntimeError, match=f"Fine-tune {type(snn).__name__.replace('Spike', 'Quant')}"):
            loss.backward()


class TestTraining:
    @pytest.mark.parametrize("head_act", ["relu", "tanh"])
    def test_every_parameter_gets_a_gradient(self, architecture, head_act):
        for task in TASKS[1:]:
            qann = make_text_qann(architecture, task, dtype=torch.float64, head_act=head_act).train()
            texts = make_texts(qann.config, LENGTHS)
            labels = torch.tensor([0, 1, 2, 0]) if task == TASKS[1] else texts["input_ids"] % 3
            qann(**texts, labels=labels).loss.backward()
            silent = [name for name, p in qann.named_parameters() if p.grad is None or not bool(p.grad.any())]
            assert silent == []

    def test_every_dropout_is_used(self, architecture):
        qann = make_text_qann(architecture, dtype=torch.float64).train()
        calls = dict.fromkeys((name for name, m in qann.named_modules() if isinstance(m, torch.nn.Dropout)), 0)
        for name in calls:
            qann.get_submodule(name).register_forward_hook(
                lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
            )
        qann(**make_texts(qann.config, LENGTHS))
        body = architecture
        layers = [f"{body}.encoder.layer.{index}" for index in range(2)]
        assert calls == {
            f"{body}.embeddings.dropout": 1,
            **{f"{layer}.attention.self.dropout": 1 for layer in layers},
            **{f"{layer}.attention.output.dropout": 1 for layer in layers},
            **{f"{layer}.output.dropout": 1 for layer in layers},
            **({"dropout": 1} if architecture == "bert" else {"classifier.dropout": 2}),
        }

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_gives_the_same_gradients(self, architecture, reentrant):
        plain, checkpointed = (make_text_qann(architecture, dtype=torch.float64).train() for _ in range(2))
        # transformers 5.23 renamed it and warns at the old name; older ones have only that
        new = hasattr(checkpointed, "activation_checkpointing_enable")
        name = "activation_checkpointing_enable" if new else "gradient_checkpointing_enable"
        getattr(checkpointed, name)({"use_reentrant": reentrant})
        for model in (plain, checkpointed):
            model(**make_texts(model.config, LENGTHS), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        for (name, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad), name

    @pytest.mark.filterwarnings("ignore")  # tracing is on its way out, and warns of every check
    def test_a_trace_serves_padded_batches_too(self, architecture):
        qann = make_text_qann(architecture).eval().requires_grad_(False)
        ids = make_texts(qann.config, [6, 6])
        padded = make_texts(qann.config, [6, 2])
        with torch.no_grad():  # products of levels are in floating point in a graph, and round
            order = ("input_ids", "attention_mask", "token_type_ids")
            traced = torch.jit.trace(
                lambda *inputs: qann(*inputs).logits, tuple(ids[key] for key in order), check_trace=False
            )
            assert torch.allclose(traced(*(padded[key] for key in order)), qann(**padded).logits, atol=1e-5)

    @pytest.mark.slow
    def test_compiles_as_one_graph(self, architecture):
        """Without its checks, which need values; what they look for is in order here."""
        qann = make_text_qann(architecture).eval()
        compiled = torch.compile(qann, backend="eager", fullgraph=True)
        for lengths in (LENGTHS, [5, 5]):
            texts = make_texts(qann.config, lengths)
            with torch.no_grad():
                # Products of levels are in floating point in a graph, and round.
                assert torch.allclose(compiled(**texts).logits, qann(**texts).logits, atol=1e-5)


class TestErrors:
    @pytest.fixture
    def models(self, architecture):
        qann = make_text_qann(architecture)
        return qann, spiking(qann)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("input_ids"), "either input_ids or inputs_embeds"),
            (lambda t: t.update(inputs_embeds=torch.zeros(4, 12, 32)), "either input_ids or inputs_embeds"),
            (lambda t: t.update(input_ids=t["input_ids"][0]), r"input_ids must be \(batch, length\)"),
            (lambda t: t.update(input_ids=t["input_ids"][:, :0]), "neither of them empty"),
            (lambda t: t.update(attention_mask=t["attention_mask"][:, :5]), r"attention_mask must be .* \(4, 5\)"),
            (lambda t: t.update(attention_mask=torch.zeros(4, 1, 1, 12)), "attention_mask must be"),
            (lambda t: t["attention_mask"][2].zero_(), "A text has no tokens: attention_mask is 0"),
            (
                lambda t: t.update(input_ids=t["input_ids"].float()),
                "input_ids must be int64 or int32",
            ),
            (lambda t: t.update(token_type_ids=t["token_type_ids"] > 0), "token_type_ids must be int64 or int32"),
            (lambda t: t.update(attention_mask=(1.0 - t["attention_mask"]) * -1e9), "must hold 1 for tokens and 0"),
            (lambda t: t["input_ids"].add_(60), "input_ids must be from 0 to 59, got"),
            (lambda t: t["input_ids"].sub_(60), "input_ids must be from 0 to 59, got -"),
            (lambda t: t["token_type_ids"].fill_(2), "token_type_ids must be from 0 to 1, got 2"),
            (lambda t: t.update(position_ids=torch.full((4, 12), 24)), "position_ids must be from 0 to 23, got 24"),
        ],
    )
    def test_inputs(self, models, change, message):
        texts = make_texts(models[0].config, LENGTHS)
        change(texts)
        for model in models:
            with pytest.raises(ValueError, match=message):
                model(**texts)

    def test_nothing_but_padding(self, models):
        ids = torch.full((1, 4), models[0].config.pad_token_id)
        for model in models:
            with pytest.raises(ValueError, match="A text has no tokens: input_ids hold the padding id"):
                model(ids)

    def test_embeddings_of_another_width(self, models):
        for model in models:
            with pytest.raises(ValueError, match=r"inputs_embeds must be 32 wide \(hidden_size\), got 31"):
                model(inputs_embeds=torch.zeros(2, 3, 31))

    def test_position_limit(self, models, architecture):
        limit = 24 - (2 if architecture == "roberta" else 0)
        for model in models:
            model(**make_texts(model.config, [limit, 4]))
            model(**make_texts(model.config, [limit, 4], extra=7))  # padding may lie beyond
            for side in ("left", "right"):
                with pytest.raises(ValueError, match=rf"text of {limit + 1} tokens, .* positions for {limit} "):
                    model(**make_texts(model.config, [4, limit + 1], side=side, extra=1))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"node_placement": "some"}, "node_placement must be one of 'full', 'reference'"),
            ({"head_act": "gelu"}, "head_act must be one of 'relu', 'tanh'"),
            ({"hidden_act": "gelu"}, "hidden_act must be 'relu'"),
            ({"is_decoder": True}, "is_decoder is True"),
            ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
            ({"num_attention_heads": 5, "hidden_size": 32}, r"hidden_size \(32\) is not a multiple"),
            ({"quantization_levels": 7}, "quantization_levels must be"),
            ({"time_steps": 0}, "time_steps must be"),
        ],
    )
    def test_config_fields(self, architecture, fields, message):
        with pytest.raises(ValueError, match=message):
            text_class("Spike", architecture, "Model").config_class(**fields)

    def test_roberta_needs_a_padding_id(self, architecture):
        config_class = text_class("Quant", architecture, "Model").config_class
        if architecture == "roberta":
            with pytest.raises(ValueError, match="pad_token_id is None"):
                config_class(pad_token_id=None)
        else:
            assert config_class(pad_token_id=None).pad_token_id is None

    def test_weights_that_are_not_a_number(self, architecture):
        snn = spiking(make_text_qann(architecture))
        with torch.no_grad():
            snn.base_model.encoder.layer[1].intermediate.dense.bias[3] = float("nan")
        with pytest.raises(FloatingPointError, match=r"encoder\.layer\.1\.intermediate\.hidden_node is not a number"):
            snn(**make_texts(snn.config, LENGTHS))
