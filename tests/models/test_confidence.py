"""stop="confidence": the first step whose margin is large enough, and what is left of a run that ends there."""

import pytest
import torch

from spikezip_hf import QuantViTForImageClassification, SpikeViTForImageClassification, SpikeViTModel
from tests.conftest import make_ann, make_images, make_text_qann, make_texts, spiking_twin
from tests.models.test_fast_engine import make_inputs, make_snn

T = 90
networks = pytest.mark.parametrize("architecture", ["vit", "bert"])


@pytest.fixture(scope="module")
def cases():
    """{architecture: (network, batch, its whole run, a threshold that all samples but one reach)}.

    Weights are integers: the same bits for any number of rows.
    """
    made = {}
    for architecture in ("vit", "bert"):
        snn = make_snn(architecture, weight_bits=8)
        batch = make_inputs(snn)
        whole = snn(**batch, time_steps=T, stop="never", output_time_steps=True)
        margins = margins_of(whole.logits_per_step)
        highest = margins.amax(1).sort().values
        made[architecture] = snn, batch, whole, float((highest[0] + highest[1]) / 2)
    return made


def margins_of(logits):
    largest = logits.sort(-1).values
    return largest[..., -1] - largest[..., -2]


def first_clear_step(logits_per_step, threshold):
    """(B,) from 1; -1 if there is none."""
    return torch.tensor(
        [
            next((step for step, margin in enumerate(margins, start=1) if margin >= threshold), -1)
            for margins in margins_of(logits_per_step).tolist()
        ]
    )


@networks
@pytest.mark.parametrize("chunk_steps", [1, 3, 7, 64, None])
def test_a_sample_is_decided_at_the_first_step_that_is_clear_enough(cases, architecture, chunk_steps):
    snn, batch, whole, threshold = cases[architecture]
    decided = first_clear_step(whole.logits_per_step, threshold)
    assert int((decided > 0).sum()) == 3  # and one never

    out = snn(
        **batch,
        time_steps=T,
        stop="confidence",
        confidence_threshold=threshold,
        chunk_steps=chunk_steps,
        output_time_steps=True,
    )
    assert out.decision_step.tolist() == decided.tolist()
    for sample, step in enumerate(decided.tolist()):
        if step > 0:
            until = snn(**batch, time_steps=step, stop="never")
            assert torch.equal(out.logits[sample], until.logits[sample])
            assert torch.equal(out.spike_counts[sample], until.spike_counts[sample])
            assert int(out.equilibrium_step[sample]) == -1
            running = whole.logits_per_step[sample, :step]
            assert torch.equal(out.logits_per_step[sample], torch.cat([running, running[-1:].expand(T - step, -1)]))
        else:
            assert torch.equal(out.logits[sample], whole.logits[sample])
            assert torch.equal(out.spike_counts[sample], whole.spike_counts[sample])
            assert torch.equal(out.logits_per_step[sample], whole.logits_per_step[sample])
            assert out.equilibrium_step[sample] == whole.equilibrium_step[sample]


@networks
@pytest.mark.parametrize("chunk_steps", [1, 7])
def test_a_margin_equal_to_the_threshold_is_enough(cases, architecture, chunk_steps):
    snn, batch, whole, _ = cases[architecture]
    margins = margins_of(whole.logits_per_step)
    threshold = float(margins[0].max())
    out = snn(**batch, time_steps=T, stop="confidence", confidence_threshold=threshold, chunk_steps=chunk_steps)
    assert int(out.decision_step[0]) == 1 + int(margins[0].argmax())


@networks
@pytest.mark.parametrize("chunk_steps", [1, 7, 64])
def test_a_batch_that_is_never_clear_ends_as_with_stop_at_equilibrium(cases, architecture, chunk_steps):
    snn, batch, _, _ = cases[architecture]
    arguments = {"time_steps": T, "chunk_steps": chunk_steps, "output_time_steps": True}
    out = snn(**batch, stop="confidence", confidence_threshold=1e6, **arguments)
    settled = snn(**batch, stop="equilibrium", **arguments)
    assert out.decision_step.tolist() == [-1] * 4
    assert settled.decision_step is None
    assert bool((out.equilibrium_step > 0).all())
    for name in ("logits", "logits_per_step", "equilibrium_step", "spike_counts", "neuron_counts"):
        assert torch.equal(out[name], settled[name])


@networks
def test_a_run_ends_when_all_samples_are_decided(cases, architecture):
    snn, batch, whole, _ = cases[architecture]
    threshold = float(margins_of(whole.logits_per_step).amax(1).min())
    last = int(first_clear_step(whole.logits_per_step, threshold).max())
    passes = []
    hook = snn.base_model.register_forward_hook(lambda *_: passes.append(1))
    snn(**batch, time_steps=T, stop="confidence", confidence_threshold=threshold, chunk_steps=1)
    hook.remove()
    assert len(passes) == last


def test_decided_samples_take_no_more_rows(cases):
    snn, batch, whole, threshold = cases["vit"]
    decided = first_clear_step(whole.logits_per_step, threshold)
    ends = torch.where(decided > 0, decided, whole.equilibrium_step)
    rows = []
    hook = snn.classifier.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    snn(**batch, time_steps=T, stop="confidence", confidence_threshold=threshold, chunk_steps=1)
    hook.remove()
    moving = [int((ends > step).sum()) for step in range(int(ends.max()))]
    assert rows == [*moving, 4]  # the last proves the equilibrium of those never decided


def test_input_per_step_is_decided_like_any_other():
    snn = make_snn(weight_bits=8, dtype=torch.float64)
    batch = make_inputs(snn, steps=5)
    whole = snn(**batch, time_steps=40, stop="never", output_time_steps=True)
    threshold = float(margins_of(whole.logits_per_step).median())
    out = snn(**batch, time_steps=40, stop="confidence", confidence_threshold=threshold, chunk_steps=3)
    decided = first_clear_step(whole.logits_per_step, threshold)
    assert out.decision_step.tolist() == decided.tolist()
    assert int((decided > 0).sum()) > 0


def test_the_event_driven_form_decides_at_the_same_step():
    snn = make_snn(weight_bits=8, dtype=torch.float64)
    batch = make_inputs(snn)
    whole = snn(**batch, time_steps=T, stop="never", output_time_steps=True)
    threshold = float(margins_of(whole.logits_per_step).median())
    arguments = {"time_steps": T, "stop": "confidence", "confidence_threshold": threshold}
    event = snn(**batch, execution="event", **arguments)
    assert event.decision_step.tolist() == first_clear_step(whole.logits_per_step, threshold).tolist()
    assert torch.equal(event.spike_counts, snn(**batch, **arguments).spike_counts)


@pytest.fixture(scope="module")
def snn():
    return make_snn()


class TestRefused:
    def test_no_threshold(self, snn):
        with pytest.raises(ValueError, match="needs confidence_threshold"):
            snn(**make_inputs(snn), stop="confidence")

    @pytest.mark.parametrize("stop", ["never", "equilibrium", None])
    def test_a_threshold_with_another_stop(self, snn, stop):
        with pytest.raises(ValueError, match="confidence_threshold is for stop="):
            snn(**make_inputs(snn), stop=stop, confidence_threshold=1.0)

    @pytest.mark.parametrize("threshold", [0, 0.0, -1.0, float("nan"), float("inf"), True, "1"])
    def test_a_threshold_that_is_no_positive_number(self, snn, threshold):
        with pytest.raises(ValueError, match="must be a number above 0"):
            snn(**make_inputs(snn), stop="confidence", confidence_threshold=threshold)

    def test_an_unknown_stop(self, snn):
        with pytest.raises(ValueError, match="stop must be one of"):
            snn(**make_inputs(snn), stop="sure")

    def test_execution_without_time(self, snn):
        with pytest.raises(ValueError, match="needs a simulation"):
            snn(**make_inputs(snn), stop="confidence", confidence_threshold=1.0, execution="equilibrium")

    @pytest.mark.parametrize("wanted", ["output_attentions", "output_hidden_states"])
    def test_states_of_the_last_step(self, snn, wanted):
        with pytest.raises(ValueError, match=wanted):
            snn(**make_inputs(snn), stop="confidence", confidence_threshold=1.0, **{wanted: True})

    @pytest.mark.parametrize("task", ["Model", "ForTokenClassification"])
    def test_a_network_without_classes_of_texts(self, task):
        qann = make_text_qann("bert", task)
        with pytest.raises(ValueError, match="has no classes of samples"):
            spiking_twin(qann)(**make_texts(qann.config, [3]), stop="confidence", confidence_threshold=1.0)

    def test_an_image_network_without_a_head(self, snn):
        with pytest.raises(ValueError, match="has no classes of samples"):
            SpikeViTModel.from_quantized(snn.vit.to_quantized())(
                **make_inputs(snn), stop="confidence", confidence_threshold=1.0
            )

    def test_a_single_label(self):
        qann = QuantViTForImageClassification.from_ann(make_ann(num_labels=1))
        images = make_images(qann.config, 2)
        snn = spiking_twin(qann.calibrate([{"pixel_values": images}]))
        with pytest.raises(ValueError, match="1 label"):
            snn(images, stop="confidence", confidence_threshold=1.0)


class TestConfig:
    def test_its_fields_are_the_defaults_and_arguments_come_first(self):
        snn = make_snn(weight_bits=8, stop="confidence", confidence_threshold=1e6, time_steps=T, chunk_steps=2)
        batch = make_inputs(snn)
        assert snn(**batch).decision_step.tolist() == [-1] * 4
        assert snn(**batch, confidence_threshold=1e-6).decision_step.tolist() == [1] * 4
        assert snn(**batch, stop="equilibrium").decision_step is None
        assert snn(**batch, stop="never").decision_step is None

    def test_chunk_steps(self):
        snn = make_snn(chunk_steps=2)
        passes = []
        snn.vit.register_forward_hook(lambda *_: passes.append(1))
        snn(**make_inputs(snn), time_steps=9, stop="never")
        assert len(passes) == 5
        snn(**make_inputs(snn), time_steps=9, stop="never", chunk_steps=8)
        assert len(passes) == 7

    def test_stop_never(self):
        snn = make_snn(stop="never", chunk_steps=1)
        passes = []
        snn.vit.register_forward_hook(lambda *_: passes.append(1))
        snn(**make_inputs(snn), time_steps=150)
        assert len(passes) == 150
        snn(**make_inputs(snn), time_steps=150, stop="equilibrium")
        assert len(passes) < 270

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"stop": "confidence"}, "needs confidence_threshold"),
            ({"confidence_threshold": 1.0}, "is for stop="),
            ({"stop": "confidence", "confidence_threshold": -1.0}, "must be a number above 0"),
            ({"stop": "sure"}, "stop must be one of"),
            ({"chunk_steps": 0}, "chunk_steps must be an integer of at least 1"),
        ],
    )
    def test_wrong_fields_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            make_snn(**fields)

    def test_it_survives_saving_and_loading(self, tmp_path):
        snn = make_snn(weight_bits=8, stop="confidence", confidence_threshold=0.5, chunk_steps=3)
        snn.save_pretrained(tmp_path)
        loaded = SpikeViTForImageClassification.from_pretrained(tmp_path)
        assert (loaded.config.stop, loaded.config.confidence_threshold, loaded.config.chunk_steps) == (
            "confidence",
            0.5,
            3,
        )
        out, again = snn(**make_inputs(snn)), loaded(**make_inputs(snn))
        assert int((out.decision_step > 0).sum()) > 0
        assert torch.equal(out.decision_step, again.decision_step)
        assert torch.equal(out.logits, again.logits)

    def test_other_values_can_be_given_while_loading(self, tmp_path):
        make_snn().save_pretrained(tmp_path)
        loaded = SpikeViTForImageClassification.from_pretrained(tmp_path, stop="confidence", confidence_threshold=1e-6)
        assert loaded(**make_inputs(loaded)).decision_step.tolist() == [1] * 4
