"""What is recorded is what happened: held against outputs, the event-driven form, runs cut off at T, and the QANN."""

import pytest
import torch

from spikezip_hf import SpikeViTModel
from spikezip_hf.analysis.answers import answers
from spikezip_hf.analysis.closeup import attention_nodes, close_up
from spikezip_hf.analysis.confidence import Courses
from spikezip_hf.analysis.costs import simulation_costs
from spikezip_hf.analysis.recording import record
from spikezip_hf.models import simulation
from spikezip_hf.models.configuration_quantization import pair
from tests.conftest import make_batch, make_images, make_qann, make_text_qann, make_texts, spiking_twin

NETWORKS = ("vit", "bert", "roberta")
each_network = pytest.mark.parametrize("network", NETWORKS)


def qann_of(network: str, **fields):
    return make_qann(**fields) if network == "vit" else make_text_qann(network, **fields)


def twins(network: str, dtype=torch.float32, weight_bits=None, **fields):
    qann = qann_of(network, dtype=dtype, weight_bits=weight_bits)
    return qann, spiking_twin(qann, time_steps=200, **fields)


def one_of(batch: dict, row: int = 0) -> dict:
    """A batch of one, without padding."""
    one = {name: value[row : row + 1] for name, value in batch.items()}
    if "attention_mask" in one:
        there = one["attention_mask"][0].bool()
        one = {name: value[:, there] for name, value in one.items()}
    return one


@each_network
@pytest.mark.parametrize("chunk_steps", [None, 3])
def test_recorded_is_what_the_model_returns(network, chunk_steps):
    qann, snn = twins(network, chunk_steps=chunk_steps)
    batch = make_batch(qann)
    recording = record(snn, [batch])
    out = snn(**batch, output_time_steps=True)
    steps = recording.spikes.shape[1]
    assert steps == int(out.equilibrium_step.max())
    assert torch.equal(recording.spikes.sum(1), out.spike_counts)
    assert torch.equal(recording.neurons, out.neuron_counts)
    assert torch.equal(recording.logits_per_step[:, :-1], out.logits_per_step[:, : steps - 1])
    assert torch.equal(recording.logits_per_step[:, -1], out.logits)
    assert torch.equal(out.logits, qann(**batch).logits)
    assert torch.equal(recording.equilibrium_step, out.equilibrium_step)
    assert list(recording.node_names) == snn.node_names
    assert bool(recording.exact.all())
    assert torch.equal(recording.expected, qann(**batch).logits.argmax(-1))
    # Each sample fires for the last time in its own last step.
    last = torch.where(recording.spikes.any(-1), torch.arange(1, steps + 1), 0).amax(1)
    assert torch.equal(last, recording.equilibrium_step)
    assert recording.labels is None


def test_a_batch_that_goes_in_groups(monkeypatch):
    """Of two, two and two samples, one group after another."""
    _, snn = twins("vit", weight_bits=8)
    batch = make_batch(snn)
    whole = record(snn, [batch])
    row_bytes = snn.row_bytes(batch["pixel_values"])
    monkeypatch.setitem(simulation.CHUNK_BYTES, "cpu", 2 * row_bytes * simulation.SHORTEST_CHUNK)
    passes = []
    snn.vit.register_forward_pre_hook(lambda *given: passes.append(given[2]["engine"].num_samples), with_kwargs=True)
    parts = record(snn, [batch])
    assert max(passes[:-1]) == 2
    for field in ("spikes", "logits_per_step", "equilibrium_step", "final_levels", "exact"):
        assert torch.equal(getattr(parts, field), getattr(whole, field)), field


@each_network
def test_each_step_is_that_of_the_event_driven_form(network):
    qann, snn = twins(network, torch.float64)
    batch = make_batch(qann)
    ours, theirs = record(snn, [batch]), record(snn, [batch], execution="event")
    assert torch.equal(ours.spikes, theirs.spikes)
    assert torch.equal(ours.final_levels, theirs.final_levels)


def test_firing_rates():
    qann, snn = twins("bert")
    recording = record(snn, [make_batch(qann)])  # texts of several lengths
    rates = recording.firing_rate
    assert 0 < float(rates.max()) <= 1
    weights = recording.neurons / recording.neurons.sum(0)
    torch.testing.assert_close(recording.mean_firing_rate(), (rates * weights[:, None]).sum(0))


@pytest.mark.parametrize("network", ["vit", "bert"])
def test_batches_of_different_durations_are_put_together(network):
    qann, snn = twins(network, torch.float64)
    batch = make_batch(qann)
    labels = torch.arange(6) % 3
    whole = record(snn, [{**batch, "labels": labels}])
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 1), slice(1, 6))]
    joined = record(snn, [{**parts[0], "labels": labels[:1]}, {**parts[1], "labels": labels[1:]}])
    assert len(joined) == 6
    assert torch.equal(joined.labels, labels)
    assert torch.equal(joined.spikes, whole.spikes)
    torch.testing.assert_close(joined.logits_per_step, whole.logits_per_step)
    other = joined.select([3, 0])
    assert torch.equal(other.spikes, joined.spikes[[3, 0]])
    assert torch.equal(other.labels, labels[[3, 0]])


def test_a_run_that_ends_before_equilibrium():
    qann, snn = twins("vit")
    recording = record(snn, [make_batch(qann)], 5)
    assert recording.spikes.shape[1] == recording.logits_per_step.shape[1] == recording.time_steps == 5
    assert recording.equilibrium_step.tolist() == [-1] * 6
    assert not recording.exact.any()


def test_input_that_arrives_in_steps():
    qann, snn = twins("vit")
    frames = {"pixel_values": make_images(qann.config, 3, steps=4) / 4}
    recording = record(snn, [frames])
    assert torch.equal(recording.spikes.sum(1), snn(**frames).spike_counts)
    assert bool(recording.exact.all())


@pytest.mark.parametrize("spikes", [1, 3])
def test_graded_spikes_and_schedules(spikes):
    qann, snn = twins("vit", firing_schedule="layerwise", firing_window=4, max_spikes_per_step=spikes)
    batch = make_batch(qann)
    recording = record(snn, [batch])
    assert torch.equal(recording.spikes.sum(1), snn(**batch).spike_counts)
    for number, node in enumerate(snn.nodes):
        shut = snn.config.first_firing_step(node) - 1
        assert not recording.spikes[:, :shut, number].any()
    seen = close_up(snn, one_of(batch), snn.node_names)
    most = max(int(seen.raster(name).abs().max()) for name in snn.node_names)
    assert most == spikes


@each_network
def test_rasters_add_up_to_the_levels_of_the_quantized_network(network):
    qann, snn = twins(network, chunk_steps=4)
    one = one_of(make_batch(qann), 1)
    seen = close_up(snn, one, snn.node_names)
    counts = snn(**one).spike_counts[0].tolist()
    for name, count in zip(snn.node_names, counts, strict=True):
        raster = seen.raster(name)
        assert torch.equal(raster.sum(0), seen.expected_levels[name].flatten())
        assert int(raster.long().abs().sum()) == count
        assert set(raster.unique().tolist()) <= {-1, 0, 1}
        assert torch.equal(seen.raster(name, [2, 0]), raster[:, [2, 0]])
    assert len(raster) == len(seen.logits_per_step) == seen.equilibrium_step
    assert torch.equal(seen.logits_per_step[-1], seen.expected_logits)


@each_network
def test_attention_after_each_step(network):
    qann, snn = twins(network)
    one = one_of(make_batch(qann), 2)
    names = attention_nodes(snn)
    seen = close_up(snn, one, names)
    expected = qann(**one, output_attentions=True).attentions
    for name, probs in zip(names, expected, strict=True):
        assert torch.equal(seen.values(name)[-1], probs[0])
        assert torch.equal(seen.expected_values(name), probs[0])
    for steps in (1, 2, 7, seen.equilibrium_step - 1):
        cut_off = snn(**one, time_steps=steps, stop="never", output_attentions=True).attentions
        for name, probs in zip(names, cut_off, strict=True):
            torch.testing.assert_close(seen.values(name)[steps - 1], probs[0])


def test_close_up_of_the_event_driven_form():
    qann, snn = twins("vit", torch.float64)
    one = one_of(make_batch(qann))
    ours, theirs = (close_up(snn, one, snn.node_names, execution=kind) for kind in ("cumulative", "event"))
    for name in snn.node_names:
        assert torch.equal(ours.levels[name], theirs.levels[name])


def test_a_text_with_padding_is_the_text_without():
    qann, snn = twins("bert", torch.float64)
    padded = make_texts(qann.config, [7], extra=4)
    names = snn.node_names
    ours, theirs = close_up(snn, padded, names), close_up(snn, one_of(padded), names)
    for name in names:
        assert int(ours.raster(name).abs().sum()) == int(theirs.raster(name).abs().sum())


def test_hooks_are_gone_afterwards(monkeypatch):
    qann, snn = twins("vit")
    batch = make_batch(qann)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in snn.modules())

    record(snn, [batch])
    assert hooks() == 0
    monkeypatch.setattr(type(snn), "trajectory", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(snn, [batch])
    assert hooks() == 0


def test_refusals():
    qann, snn = twins("vit")
    batch = make_batch(qann)
    with pytest.raises(ValueError, match="batches is empty"):
        record(snn, [])
    with pytest.raises(ValueError, match="time_steps must be an integer of at least 1"):
        record(snn, [batch], 0)
    with pytest.raises(ValueError, match="no spiking classifier"):
        record(qann, [batch])
    with pytest.raises(ValueError, match="SpikeViTModel is no spiking classifier"):
        record(SpikeViTModel(snn.config), [batch])
    of_tokens = spiking_twin(make_text_qann("bert", "ForTokenClassification"))
    with pytest.raises(ValueError, match="ForTokenClassification is no spiking classifier"):
        record(of_tokens, [make_batch(of_tokens)])
    with pytest.raises(ValueError, match="has no nowhere"):
        close_up(snn, one_of(batch), ["nowhere"])
    with pytest.raises(ValueError, match="batch must be of one"):
        close_up(snn, batch, snn.node_names[:1])


def test_images_of_another_size():
    qann, snn = twins("vit")
    height, width = pair(qann.config.image_size)
    pixels = torch.randn(3, 3, height + 7, width * 2, generator=torch.Generator().manual_seed(0))
    batch = {"pixel_values": pixels, "interpolate_pos_encoding": True}
    logits = qann(**batch).logits
    recording = record(snn, [batch])
    assert bool(recording.exact.all())
    assert torch.equal(recording.logits_per_step[:, -1], logits)
    assert answers(snn, batch, 200)["prediction"] == logits.argmax(-1).tolist()
    assert torch.equal(Courses.of(snn, [batch]).predictions[:, -1], logits.argmax(-1))
    one = {**batch, "pixel_values": batch["pixel_values"][:1]}
    seen = close_up(snn, one, attention_nodes(snn)[-1:])
    assert torch.equal(seen.levels[attention_nodes(snn)[-1]][-1], seen.expected_levels[attention_nodes(snn)[-1]])
    assert list(seen.inputs) == ["pixel_values"]
    assert simulation_costs(snn, one, [4], most_steps=200, executions=["cumulative"], repeats=1)["table"]
