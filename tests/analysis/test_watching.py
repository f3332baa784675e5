"""What is shown step by step is what was recorded, it ends at the QANN, and bad inputs are told in a line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from spikezip_hf import SpikeViTModel
from spikezip_hf.analysis import frames, watching
from spikezip_hf.analysis.closeup import CloseUp, close_up
from spikezip_hf.analysis.recording import record
from spikezip_hf.analysis.report import close_figures, patch_figures
from spikezip_hf.analysis.watching import Watched, Watcher
from spikezip_hf.models.image_processing_events import EventImageProcessor
from tests.conftest import make_qann, make_text_qann, spiking_twin
from tests.models.test_event_vit import make_event_qann
from tests.models.test_vit_variants import make_variant
from tests.test_auto_text import make_tokenizer

NETWORKS = ("vit", "bert", "roberta")
TEXT = "a stirring funny film"
PIECES = (frames.now, frames.answers, frames.attention, frames.nodes)


def noise(width: int = 20, height: int = 13, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 4), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGBA").convert(mode)


def make_watcher(network: str, spiking: bool = True, **fields) -> Watcher:
    if network == "vit":
        qann, processor = make_qann(), ViTImageProcessor(size={"height": 8, "width": 8})
    else:
        qann, processor = make_text_qann(network), make_tokenizer(network)
    return Watcher(spiking_twin(qann, time_steps=7) if spiking else qann, processor, **{"time_steps": 300} | fields)


def input_of(network: str):
    return noise() if network == "vit" else TEXT


@pytest.fixture(scope="module", params=NETWORKS)
def seen(request) -> tuple[Watcher, Watched]:
    torch.manual_seed(0)
    watcher = make_watcher(request.param)
    return watcher, watcher.watch(input_of(request.param))


def texts(html: str) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]*>", " ", html)


def test_frames_are_what_was_recorded(seen):
    watcher, watched = seen
    recording = record(watcher.model, [watched.seen.inputs], 300)
    steps = [watched.frame(step) for step in range(1, len(watched) + 1)]
    assert len(watched) == int(recording.equilibrium_step[0]) == watched.equilibrium_step
    assert watched.node_names == recording.node_names
    assert torch.equal(torch.stack([frame.spikes for frame in steps]), recording.spikes[0].long())
    assert torch.equal(torch.stack([frame.firing_rate for frame in steps]), recording.firing_rate[0])
    assert torch.equal(torch.stack([frame.logits for frame in steps]), recording.logits_per_step[0])
    for number, frame in enumerate(steps, 1):
        assert torch.equal(frame.so_far, recording.spikes[0, :number].sum(0))
        assert frame.settled == (number == watched.equilibrium_step)
        assert frame.answer == watched.class_names[int(frame.logits.argmax())]
    # Rasters are of the same run.
    for node in watched.raster_nodes:
        column = watched.node_names.index(node)
        assert torch.equal(watched.seen.raster(node).abs().sum(1), torch.stack([f.spikes[column] for f in steps]))
    facts = watched.facts()
    assert facts["spikes"] == int(recording.spikes.sum()) == sum(int(frame.spikes.sum()) for frame in steps)
    assert facts["spikes per neuron"] == facts["spikes"] / int(recording.neurons.sum())


def test_the_last_frame_is_the_quantized_network(seen):
    watcher, watched = seen
    last = watched.frame(len(watched))
    expected = watcher.twin(**watched.seen.inputs).logits[0]
    assert torch.equal(last.logits, expected)
    assert torch.equal(last.probabilities, watched.expected_probabilities)
    assert torch.equal(last.attention, watched.expected_attention)
    assert last.settled
    assert watched.facts()["logits equal"]
    for row in watched.answer_rows(len(watched)):
        assert row["SNN logit"] == row["QANN logit"]
    assert not torch.equal(watched.frame(1).logits, expected)


def test_final_answer_is_final(seen):
    _, watched = seen
    since = watched.facts()["final answer from T"]
    answers = [watched.frame(step).answer for step in range(1, len(watched) + 1)]
    assert len(set(answers[since - 1 :])) == 1
    assert since == 1 or answers[since - 2] != answers[-1]


def test_a_quantized_network_is_watched_as_its_twin(seen):
    watcher, watched = seen
    network = watcher.model.config.model_type.removeprefix("spike_")
    other = make_watcher(network, spiking=False).watch(input_of(network))
    assert torch.equal(other.seen.spikes, watched.seen.spikes)


@pytest.mark.parametrize("name", ["mean", "mean, norm behind", "no class token", "distilled"])
def test_maps_of_other_vits_are_of_their_patches(name):
    qann = make_variant(name)
    watcher = Watcher(qann, ViTImageProcessor(size={"height": 8, "width": 8}), time_steps=300)
    watched = watcher.watch(noise())
    probs, first = watched.seen.expected_values(watched.attention_node), qann.config.prefix_tokens
    reads = probs[:, first:].mean(1) if qann.config.pooling == "mean" else probs[:, 0]
    assert torch.allclose(watched.expected_attention, reads.mean(0))
    assert watched.attention.shape[-1] == first + 4
    html = frames.attention(watched, 1)
    assert ("Attention of the patches" in html) == (qann.config.pooling == "mean")
    picture = torch.zeros(8, 8, 3)
    distance = torch.zeros(*watched.attention.shape)
    seen = close_up(watcher.model, watched.seen.inputs, watcher.model.node_names)
    attention = seen.values(watched.attention_node), seen.expected_values(watched.attention_node)
    assert set(patch_figures(qann.config, seen, picture, *attention, distance)) == {"image", "heads"}
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert {"image", "heads"} <= set(close_figures(watcher.model, seen, None, picture))


def test_tables(seen):
    _, watched = seen
    step = len(watched) // 2
    rows = watched.node_rows(step)
    assert [row["node"] for row in rows] == list(watched.node_names)
    assert sum(row["spikes in this step"] for row in rows) == int(watched.frame(step).spikes.sum())
    logits = [row["QANN logit"] for row in watched.answer_rows(step)]
    assert logits == sorted(logits, reverse=True)
    assert len(watched.answer_rows(step, most=2)) == 2
    for number in range(1, len(watched) + 1):
        assert watched.frame(number).answer in [row["class"] for row in watched.answer_rows(number, most=1)]
    for step in (0, len(watched) + 1):
        with pytest.raises(ValueError, match=f"step must be from 1 to {len(watched)}, got {step}"):
            watched.frame(step)


def test_html_of_each_step(seen):
    _, watched = seen
    for step in (1, len(watched)):
        for piece in PIECES:
            assert texts(piece(watched, step))
        assert f"--step: {step}" in frames.now(watched, step)
    assert "At equilibrium" in frames.now(watched, len(watched))
    assert "Not at equilibrium yet" in frames.now(watched, len(watched) - 1)
    assert "bit for bit" in frames.facts(watched)


@pytest.mark.parametrize("network", ["vit", "bert"])
def test_html_of_figures(network):
    watched = make_watcher(network).watch(input_of(network))
    veils = {frames.course: 2, frames.rates: 1, frames.raster: len(watched.raster_nodes)}
    for piece, count in veils.items():
        html = piece(watched)
        assert html.count('class="veil"') == count
        assert html.count("src=") == html.count('src="data:image/png;base64,') == 1


def test_veils_start_behind_the_step():
    figure = frames.new_figure(4, 3)
    axes = figure.subplots()
    axes.set_xlim(0.5, 10.5)
    drawn = frames.drawn(figure, "<b>")
    ((left, _, right, _),) = drawn.boxes
    start, each = map(float, re.search(r"calc\(([0-9.-]+)% \+ ([0-9.]+)% \*", drawn.html()).groups())
    assert start == pytest.approx(left, abs=0.01)
    assert start + 10 * each == pytest.approx(right, abs=0.01)
    assert "<b>" not in drawn.html()


def test_a_run_cut_off_claims_nothing():
    watched = make_watcher("bert", time_steps=3).watch(TEXT)
    assert len(watched) == 3
    assert watched.equilibrium_step is None
    assert not watched.facts()["logits equal"]
    assert "Not at equilibrium after all 3 steps" in frames.now(watched, 3)
    assert "not reached in 3 steps" in frames.facts(watched)
    assert "not proven" in frames.facts(watched)


def test_names_and_tokens_are_escaped():
    watcher = make_watcher("bert")
    watcher.model.config.id2label = {0: "<script>", 1: "$a$", 2: "c"}
    watched = watcher.watch(TEXT)
    html = "".join(piece(watched, 2) for piece in PIECES) + frames.facts(watched) + frames.course(watched)
    assert "<script" not in html
    assert "<script" not in frames.problem("<script>")


def test_one_simulation_for_each_input(monkeypatch):
    watcher, calls = make_watcher("vit"), []
    simulated = watching.close_up

    def counted(*args, **kwargs) -> CloseUp:
        calls.append(args)
        return simulated(*args, **kwargs)

    monkeypatch.setattr(watching, "close_up", counted)
    watched = watcher.watch(noise())
    monkeypatch.setattr(type(watcher.model), "trajectory", None)
    for step in range(1, len(watched) + 1):
        watched.frame(step)
        watched.node_rows(step)
    assert len(calls) == 1


def test_images_of_all_modes(tmp_path):
    watcher = make_watcher("vit", time_steps=4)
    for mode in ("L", "P", "RGB", "RGBA", "1", "CMYK", "LA"):
        image = noise(mode=mode)
        watched = watcher.watch(image)
        assert watched.picture.shape == (8, 8, 3)
        assert watched.grid == (2, 2)
        assert 0 <= float(watched.picture.min()) <= float(watched.picture.max()) <= 1
        path = tmp_path / "image.tiff"
        image.save(path)
        assert torch.equal(watcher.watch(path).seen.logits_per_step, watched.seen.logits_per_step)


def test_bad_texts():
    watcher = make_watcher("roberta")
    # RoBERTa has two positions fewer than its config says.
    assert watcher.max_length == watcher.model.max_tokens == watcher.model.config.max_position_embeddings - 2
    for nothing in (None, "", " \n\t"):
        with pytest.raises(ValueError, match="There is no text"):
            watcher.watch(nothing)
    with pytest.raises(ValueError, match=r"too long: \d+ tokens, where at most 22 are simulated"):
        watcher.watch("film " * 400)
    assert len(make_watcher("bert", max_length=3).watch("film").tokens) == 3
    with pytest.raises(ValueError, match="too long: 4 tokens, where at most 3 are"):
        make_watcher("bert", max_length=3).watch("film film")
    with pytest.raises(ValueError, match="Nothing of this text is in the network's vocabulary"):
        make_watcher("bert").watch("qqq")
    for other in (7, ["film"], b"film"):
        with pytest.raises(ValueError, match=f"A text is watched.* of the type {type(other).__name__}"):
            watcher.watch(other)
    with pytest.raises(ValueError, match="half a character"):
        watcher.watch("film \ud800")


def test_longest_text_fits():
    for network in ("bert", "roberta"):
        watcher = make_watcher(network)
        text = " ".join(["film"] * (watcher.max_length - 2))
        watched = watcher.watch(text if network == "bert" else "f" * (watcher.max_length - 2))
        assert len(watched.tokens) == watcher.max_length


def test_bad_images(tmp_path):
    watcher = make_watcher("vit")
    with pytest.raises(ValueError, match="There is no image"):
        watcher.watch(None)
    for other in (7, np.zeros((8, 8, 3)), b"film"):
        with pytest.raises(ValueError, match=f"An image of PIL or .*{type(other).__name__}"):
            watcher.watch(other)
    with pytest.raises(ValueError, match="900 x 2: it is too thin"):
        watcher.watch(noise(900, 2))
    path = tmp_path / "image.png"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as an image: it is no image"):
        watcher.watch(path)
    noise(100, 100).save(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="cannot be read as an image: image file is truncated"):
        watcher.watch(path)


def test_bad_networks():
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    snn = spiking_twin(make_qann())
    with pytest.raises(ValueError, match="SpikeViTModel is no spiking classifier"):
        Watcher(SpikeViTModel(snn.config), processor)
    for field in ("time_steps", "max_length"):
        with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1"):
            Watcher(snn, processor, **{field: 0})
    with pytest.raises(ValueError, match="is given recordings of events"):
        Watcher(spiking_twin(make_event_qann()), EventImageProcessor())
    watcher = Watcher(snn, processor)
    with torch.no_grad():
        next(watcher.model.classifier.parameters()).fill_(float("nan"))
        watcher.model.vit.layernorm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        watcher.watch(noise())
