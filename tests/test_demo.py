"""The main job on real images, whole (a minute and more), and its trained network under the tests of exactness."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from spikezip_hf import demo, verify_equivalence
from spikezip_hf.data import load_digits


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    threads = torch.get_num_threads()
    demo.run(folder)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def results(output):
    return json.loads((output / "results.json").read_text())["simulated"]


@pytest.fixture(scope="module")
def twins(output):
    return [AutoModelForImageClassification.from_pretrained(output / name) for name in ("qann", "snn")]


@pytest.fixture(scope="module")
def held_out(output):
    images = list(load_digits()["test"]["image"])
    return AutoImageProcessor.from_pretrained(output / "snn")(images=images, return_tensors="pt")["pixel_values"]


def accuracy_of(results, network, steps="-"):
    return next(row["accuracy"] for row in results["rows"] if (row["network"], row["T"]) == (network, steps))


def test_split_is_a_held_out_fifth():
    data = load_digits()
    assert (len(data["train"]), len(data["test"])) == (1437, 360)
    seen = {image.tobytes() for image in data["train"]["image"]}
    assert not any(image.tobytes() in seen for image in data["test"]["image"])


def test_accuracies(results):
    assert results["samples"] == 360
    assert accuracy_of(results, "ANN") >= 0.96  # 349 to 356 of 360, by seed and version of torch
    assert accuracy_of(results, "QANN") >= accuracy_of(results, "ANN") - 0.01
    assert accuracy_of(results, "SNN", "equilibrium") == accuracy_of(results, "QANN")
    assert accuracy_of(results, "SNN", 8) < accuracy_of(results, "SNN", 64)


def test_certificate_covers_every_held_out_image(results):
    assert results["exact"] is True
    assert results["at equilibrium"] == 360
    assert results["certificate"].startswith("exact: 360 of 360 samples")
    assert 1 < results["T_eq"]["mean"] <= results["T_eq"]["95th percentile"] <= results["T_eq"]["max"]


def test_predictions_are_identical_on_every_held_out_image(twins, held_out):
    qann, snn = twins
    with torch.no_grad():
        expected = qann(held_out).logits
        simulated = snn(held_out).logits
    assert torch.equal(simulated, expected)
    assert simulated.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_trained_network_is_exact_in_batches_of_any_size(twins, held_out, batch):
    qann, snn = twins
    for images in held_out[: 3 * batch].split(batch):
        certificate = verify_equivalence(qann, snn, {"pixel_values": images})
        assert certificate.exact, str(certificate)
        assert certificate.mismatches == {}


def test_engines_agree_on_the_trained_network(twins, held_out):
    snn = twins[1].double()
    images = held_out[:16].double()
    for time_steps in (8, 64):
        cumulative = snn(images, time_steps=time_steps, output_time_steps=True, stop="never")
        event = snn(images, time_steps=time_steps, output_time_steps=True, stop="never", execution="event")
        assert torch.equal(cumulative.spike_counts, event.spike_counts)
        assert torch.equal(cumulative.equilibrium_step, event.equilibrium_step)
        # float64 sums of 64 changes against one product of their sum
        assert torch.allclose(cumulative.logits_per_step, event.logits_per_step, rtol=0, atol=1e-10)
    snn.float()


def test_files(output, results):
    assert {path.name for path in (output / "snn").iterdir() if path.suffix != ".py"} == {
        "README.md",
        "accuracy_over_time.png",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "results.json",
    }
    card = (output / "snn" / "README.md").read_text()
    assert f"| SNN | equilibrium | {100 * accuracy_of(results, 'QANN'):.2f} % | 100.00 % |" in card
    assert "![Accuracy against time-steps on digits](accuracy_over_time.png)" in card
    assert (output / "accuracy_over_time.png").stat().st_size > 10_000
    table = (output / "results.md").read_text()
    assert f"| SNN | equilibrium | {accuracy_of(results, 'QANN'):.2%} | 100.00% |" in table
    assert [(row["network"], row["T"]) for row in results["rows"]] == [
        ("ANN", "-"),
        ("QANN", "-"),
        *(("SNN", steps) for steps in (8, 16, 32, 64)),
        ("SNN", "equilibrium"),
    ]


def test_bad_levels_are_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--output", str(tmp_path / "out"), "--levels", "5"])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 2
    assert "quantization_levels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_interrupted(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["demo"])
    monkeypatch.setattr(demo, "run", interrupt)
    with pytest.raises(SystemExit, match="Interrupted"):
        demo.main()
