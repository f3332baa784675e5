"""The three networks side by side: figures that follow from the logits, and one certificate for all batches."""

import pytest
import torch

from spikezip_hf import verify_equivalence
from spikezip_hf.analysis import compare_twins, table
from spikezip_hf.conversion import Certificate
from tests.conftest import make_text_ann, make_text_qann, make_texts, text_class

STEPS = (2, 8, 100)


@pytest.fixture(scope="module")
def networks():
    qann = make_text_qann("roberta", levels=8)
    return make_text_ann("roberta"), qann, text_class("Spike", "roberta").from_quantized(qann, time_steps=50)


@pytest.fixture(scope="module")
def batches(networks):
    config = networks[1].config
    return [
        {**make_texts(config, lengths, seed=seed), "labels": torch.arange(len(lengths)) % 3}
        for seed, lengths in enumerate([[9, 4, 6], [12, 3]])
    ]


@pytest.fixture(scope="module")
def results(networks, batches):
    return compare_twins(*networks, batches, STEPS, max_steps=400)


def test_figures_follow_from_the_logits(networks, batches, results):
    ann, qann, snn = networks
    truth = torch.cat([batch["labels"] for batch in batches])
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    with torch.no_grad():
        expected = torch.cat([qann(**batch).logits for batch in inputs])
        answers = {
            ("ANN", "-"): torch.cat([ann(**batch).logits for batch in inputs]),
            ("QANN", "-"): expected,
            ("SNN", "equilibrium"): torch.cat([snn(**batch, time_steps=400).logits for batch in inputs]),
        }
        runs = [snn(**batch, time_steps=400, output_time_steps=True) for batch in inputs]
        for steps in STEPS:
            answers["SNN", steps] = torch.cat([run.logits_per_step[:, steps - 1] for run in runs])
    assert [(row["network"], row["T"]) for row in results["rows"]] == [
        ("ANN", "-"),
        ("QANN", "-"),
        *(("SNN", steps) for steps in STEPS),
        ("SNN", "equilibrium"),
    ]
    for row in results["rows"]:
        logits = answers[row["network"], row["T"]]
        assert row["accuracy"] == float((logits.argmax(-1) == truth).double().mean())
        assert row["agrees with QANN"] == float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
    steps = torch.cat([run.equilibrium_step for run in runs])
    found = {step: int((steps == int(step)).sum()) for step in results["equilibrium steps"]}
    assert results["equilibrium steps"] == found
    assert sum(found.values()) == len(truth)
    per_step = torch.cat([run.logits_per_step for run in runs]).argmax(-1) == truth[:, None]
    assert results["accuracy per step"] == pytest.approx(
        per_step.double().mean(0)[: int(steps.max())].tolist(), abs=1e-6
    )
    assert results["T_eq"]["max"] == int(steps.max())
    assert results["T_eq"]["mean"] == pytest.approx(float(steps.double().mean()), abs=0.01)
    spikes = sum(int(run.spike_counts.sum()) for run in runs)
    assert results["spikes per neuron"] == spikes / sum(int(run.neuron_counts.sum()) for run in runs)
    assert results["exact"] is True
    assert results["certificate"].startswith("exact: 5 of 5 samples at equilibrium")
    assert all(seconds >= 0 for seconds in results["seconds"].values())


def test_table(results):
    text = table(results)
    assert "| SNN | equilibrium |" in text
    assert f"max {results['T_eq']['max']} (5 of 5 held-out samples)" in text


def test_too_few_steps_are_said(networks, batches):
    results = compare_twins(*networks, batches, (2,), max_steps=3)
    assert (results["exact"], results["at equilibrium"], results["T_eq"]) == (False, 0, None)
    assert "no sample got there" in table(results)
    assert [(row["network"], row["T"]) for row in results["rows"]][-1] == ("SNN", 3)
    assert "5 of 5 samples not at equilibrium after 3 steps" in table(results)


def test_refusals(networks, batches):
    with pytest.raises(ValueError, match="steps holds 100, more than max_steps=50"):
        compare_twins(*networks, batches, STEPS, max_steps=50)
    with pytest.raises(ValueError, match="batches is empty"):
        compare_twins(*networks, [], STEPS, max_steps=400)


def test_joined_certificate_needs_all(networks, batches):
    _, qann, snn = networks
    good = verify_equivalence(qann, snn, batches[0], time_steps=400)
    bad = verify_equivalence(qann, snn, batches[1], time_steps=3)
    for pair in ((good, bad), (bad, good)):
        joined = Certificate.joined(pair)
        assert not joined.exact
        assert not joined.logits_equal
        assert joined.mismatches == bad.mismatches
        assert joined.max_logit_difference == bad.max_logit_difference
        assert len(joined.equilibrium_step) == 5
    assert Certificate.joined([good, good]).exact
