"""Three networks of one life on the same data: the ordinary one (ANN), its quantized twin (QANN), its spiking twin."""

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers.utils.logging import tqdm

from spikezip_hf.analysis.accuracy import accuracy, accuracy_over_time
from spikezip_hf.conversion.certificate import Certificate, certify
from spikezip_hf.models.modeling_quantization import eval_mode


@torch.no_grad()
def compare_twins(
    ann, qann, snn, batches: Iterable[Mapping[str, torch.Tensor]], steps: Sequence[int], max_steps: int
) -> dict:
    """Accuracy of the three networks, of the SNN after some numbers of steps and at equilibrium, with certificate.

    Where a sample has not reached equilibrium, the last row is called by its number of steps.

    Args:
        ann, qann, snn: classifiers of the same inputs; the last two are twins. `ann` may be None.
        batches: dicts of model inputs with "labels" (B,).
        steps: numbers of steps T to report.
        max_steps: most steps a sample is simulated for.

    Returns:
        dict, ready for JSON. "equilibrium steps" has the number of samples for each T_eq that occurred; "accuracy per
        step" ends with the last step at which a sample settled; "seconds" are those of all batches, by network.

    Raises:
        ValueError: no batches, or a number of steps beyond `max_steps`.
    """
    if max(steps, default=0) > max_steps:
        raise ValueError(f"steps holds {max(steps)}, more than max_steps={max_steps}.")
    labels: list[torch.Tensor] = []
    per_step: list[torch.Tensor] = []
    networks = {name: network for name, network in (("ANN", ann), ("QANN", qann)) if network is not None}
    logits_of: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    certificates: list[Certificate] = []
    spikes, neurons = 0, 0
    seconds = dict.fromkeys([*networks, "SNN"], 0.0)
    for batch in tqdm(batches, desc="simulating", unit="batch"):
        inputs = {key: value.to(snn.device) for key, value in batch.items() if key != "labels"}
        labels.append(batch["labels"].cpu())
        for name, network in networks.items():
            start = time.perf_counter()
            with eval_mode(network):
                logits_of[name].append(network(**inputs).logits.cpu())
            seconds[name] += time.perf_counter() - start
        start = time.perf_counter()
        run = snn.trajectory(**inputs, time_steps=max_steps, output_time_steps=True)
        seconds["SNN"] += time.perf_counter() - start
        per_step.append(run.per_step.cpu())
        certificates.append(certify(qann, snn, inputs, run, max_steps))
        spikes += int(run.spike_counts.sum())
        neurons += int(run.neuron_counts.sum())
    if not labels:
        raise ValueError("batches is empty.")

    truth, expected, logits = torch.cat(labels), torch.cat(logits_of["QANN"]), torch.cat(per_step)
    certificate = Certificate.joined(certificates)
    t_eq = certificate.equilibrium_step.cpu()
    reached = t_eq[t_eq > 0]

    last = int(reached.max()) if len(reached) == len(t_eq) else max_steps

    def row(network: str, steps: int | str, answers: torch.Tensor) -> dict:
        agreement = float((answers.argmax(-1) == expected.argmax(-1)).double().mean())
        return {"network": network, "T": steps, "accuracy": accuracy(answers, truth), "agrees with QANN": agreement}

    return {
        "samples": len(truth),
        "T": max_steps,
        "rows": [
            *(row(name, "-", torch.cat(logits_of[name])) for name in networks),
            *(row("SNN", count, logits[:, count - 1]) for count in steps),
            row("SNN", "equilibrium" if len(reached) == len(t_eq) else max_steps, logits[:, -1]),
        ],
        "at equilibrium": len(reached),
        "equilibrium steps": {str(step): int((t_eq == step).sum()) for step in sorted(set(reached.tolist()))},
        "accuracy per step": [round(value, 6) for value in accuracy_over_time(logits, truth).tolist()][:last],
        "T_eq": {
            "mean": round(float(reached.double().mean()), 2),
            "95th percentile": int(reached.double().quantile(0.95, interpolation="higher")),
            "max": int(reached.max()),
        }
        if len(reached)
        else None,
        "spikes per neuron": spikes / neurons,
        "certificate": str(certificate),
        "exact": certificate.exact,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


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
