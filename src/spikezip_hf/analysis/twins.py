"""Three networks of one life on the same data: the ordinary one (ANN), its quantized twin (QANN), its spiking twin."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.analysis.answers import answers
from spikezip_hf.conversion.certificate import exact_text, missed_text
from spikezip_hf.models.modeling_quantization import eval_mode


def compare_twins(
    ann, qann, snn, batches: Iterable[Mapping[str, torch.Tensor]], steps: Sequence[int], max_steps: int
) -> dict[str, Any]:
    """Accuracy of the three networks, of the SNN after some numbers of steps and at equilibrium, with certificate.

    Args:
        ann, qann, snn: classifiers of the same inputs; the last two are twins. `ann` may be None.
        batches: dicts of model inputs with "labels" (B,).
        steps: numbers of steps T to report.
        max_steps: most steps a sample is simulated for.

    Returns:
        What `figures` returns, and "seconds", those of all batches, by network.

    Raises:
        ValueError: no batches, or a number of steps beyond `max_steps`.
    """
    networks = {name: one for name, one in (("ANN", ann), ("QANN", qann), ("SNN", snn)) if one is not None}
    tables: dict[str, dict[str, list]] = {name: {} for name in networks}
    seconds = dict.fromkeys(networks, 0.0)
    check_steps(steps, max_steps)
    for batch in tqdm(batches, desc="simulating", unit="batch"):
        for name, network in networks.items():
            start = time.perf_counter()
            with eval_mode(network):
                spiking = (max_steps, qann) if name == "SNN" else ()
                found = answers(network, batch, *spiking)
            seconds[name] += time.perf_counter() - start
            for column, values in found.items():
                tables[name].setdefault(column, []).extend(values)
    if not tables["SNN"]:
        raise ValueError("batches is empty.")
    return {
        **figures(tables, steps, max_steps),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def check_steps(steps: Sequence[int], max_steps: int) -> None:
    """Raise ValueError if a number of steps to report is beyond those simulated."""
    if max(steps, default=0) > max_steps:
        raise ValueError(f"steps holds {max(steps)}, more than max_steps={max_steps}.")


def figures(tables: Mapping[str, Mapping[str, Sequence]], steps: Sequence[int], max_steps: int) -> dict[str, Any]:
    """What follows from the answers of the networks to the same samples.

    Where a sample has not reached equilibrium, the last row is called by its number of steps.

    Args:
        tables: columns as of `answers`, of "QANN" and "SNN", the latter with its twin, and of "ANN" if there is one.
        steps: numbers of steps T to report.
        max_steps: most steps a sample was simulated for.

    Returns:
        dict, ready for JSON. "equilibrium steps" has the number of samples for each T_eq that occurred; "accuracy per
        step" ends with the last step at which a sample settled.
    """
    snn = {name: torch.tensor(values) for name, values in tables["SNN"].items()}
    truth, t_eq, per_step = snn["label"], snn["equilibrium_step"], snn["prediction_per_step"]
    expected = torch.tensor(tables["QANN"]["prediction"])
    reached = t_eq[t_eq > 0]
    settled = len(reached) == len(t_eq)
    last = int(reached.max()) if settled else max_steps

    def row(network: str, T: int | str, classes: torch.Tensor) -> dict[str, Any]:
        right, agrees = (float((classes == other).double().mean()) for other in (truth, expected))
        return {"network": network, "T": T, "accuracy": right, "agrees with QANN": agrees}

    curve = (per_step == truth[:, None]).double().mean(0)
    return {
        "samples": len(truth),
        "T": max_steps,
        "rows": [
            *(row(name, "-", torch.tensor(tables[name]["prediction"])) for name in ("ANN", "QANN") if name in tables),
            *(row("SNN", count, per_step[:, count - 1]) for count in steps if settled or count < max_steps),
            row("SNN", "equilibrium" if settled else max_steps, snn["prediction"]),
        ],
        "at equilibrium": len(reached),
        "equilibrium steps": {str(step): int((t_eq == step).sum()) for step in reached.unique().tolist()},
        "accuracy per step": [round(value, 6) for value in curve.tolist()][:last],
        "T_eq": {
            "mean": round(float(reached.double().mean()), 2),
            "95th percentile": int(reached.double().quantile(0.95, interpolation="higher")),
            "max": int(reached.max()),
        }
        if len(reached)
        else None,
        "spikes per neuron": int(snn["spikes"].sum()) / int(snn["neurons"].sum()),
        "certificate": certificate_of(t_eq, snn["exact"], max_steps),
        "exact": bool(snn["exact"].all()),
    }


def certificate_of(equilibrium_step: torch.Tensor, exact: torch.Tensor, max_steps: int) -> str:
    """In words, whether samples reached equilibrium, with all levels and logits of the quantized network."""
    if bool(exact.all()):
        return exact_text(equilibrium_step)
    reasons = missed_text(equilibrium_step, max_steps)
    different = int(((equilibrium_step > 0) & ~exact).sum())
    if different:
        reasons.append(f"levels, thresholds or logits of {different} of {len(exact)} differ")
    return "not exact: " + "; ".join(reasons)


def table(results: Mapping) -> str:
    """What `compare_twins` returned as text: a Markdown table and three lines."""
    lines = ["| network | T | accuracy | agrees with QANN |", "|---|---|---|---|"]
    for row in results["rows"]:
        lines.append(f"| {row['network']} | {row['T']} | {row['accuracy']:.2%} | {row['agrees with QANN']:.2%} |")
    t_eq = results["T_eq"]
    times = ", ".join(f"{name} {value}" for name, value in t_eq.items()) if t_eq else "no sample got there"
    return "\n".join(
        [
            *lines,
            "",
            f"T_eq: {times} ({results['at equilibrium']} of {results['samples']} held-out samples)",
            f"spikes per neuron until then: {results['spikes per neuron']:.2f}",
            f"certificate: {results['certificate']}",
        ]
    )
