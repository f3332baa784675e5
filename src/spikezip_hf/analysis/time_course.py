"""How the answers of a spiking network come about in time: what follows from a `Recording`, as numbers and tables.

The paper draws accuracy against time-steps (Figure 5) and says that "there exists a specific time-step called T_up,
beyond which the model's accuracy increases drastically" (the text on Figure 5), without a rule to find it. The rule
here is `half_way`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from spikezip_hf.analysis.accuracy import accuracy_over_time
from spikezip_hf.analysis.recording import Recording
from spikezip_hf.analysis.twins import certificate_of

WITHIN = 0.001  # 0.1 percentage points

# What each number of `time_course` and of the tables means, for people who read a report and not this file.
DEFINITIONS = {
    "samples": "Samples simulated.",
    "T": "Most time-steps that a sample was given. A sample that has settled takes no more.",
    "certificate": "Exact: every sample reached equilibrium with every level of every neuron, and every logit, equal "
    "to the quantized network's, bit for bit. Checked in this run.",
    "QANN accuracy": "Share of the samples whose label is the quantized network's answer.",
    "final accuracy": "Share of the samples whose label has the largest logit after the last step.",
    "final agreement": "Share of the samples for which that is the quantized network's answer.",
    "chance": "1 / number of classes.",
    "T_up": "First T at which accuracy is at least half way from chance to its final value. The paper (on Figure 5) "
    "calls so the step beyond which accuracy rises drastically, and gives no rule; this one is ours.",
    "T within 0.1 point": "First T from which on accuracy is never further than 0.1 percentage points from its final "
    "value.",
    "T of final answers": "First T from which on every sample has its final answer.",
    "at equilibrium": "Samples proven to be at equilibrium: the last step was the quantized network's forward pass.",
    "T_eq": "First step, from 1, after which nothing moves any more in a sample: no neuron fires, no input arrives. "
    "Of samples at equilibrium only.",
    "spikes per neuron": "All spikes of either sign until equilibrium (or T), over all neurons of all nodes. A graded "
    "spike of size m counts m.",
    "lower bound": "Sum of |final level| over all neurons, by their number: a neuron that ends at level n has fired "
    "at least |n| times. What is fired beyond that is taken back later.",
    "needless spikes": "Share of the spikes beyond the lower bound.",
}


def half_way(curve: Sequence[float], chance: float) -> int | None:
    """T_up: first T, from 1, with accuracy >= chance + (final accuracy - chance) / 2; None if it ends no better.

    Args:
        curve: accuracy after steps 1 to T, 0 to 1.
    """
    final = curve[-1]
    if final <= chance:
        return None
    return next(step for step, value in enumerate(curve, 1) if value >= (final + chance) / 2 - 1e-12)


def settles(curve: Sequence[float], within: float = WITHIN) -> int:
    """First T, from 1, from which on the curve is never further than `within` from its last value."""
    beyond = [step for step, value in enumerate(curve, 1) if abs(value - curve[-1]) > within + 1e-12]
    return beyond[-1] + 1 if beyond else 1


def time_course(recording: Recording) -> dict[str, Any]:
    """Accuracy and agreement over time, T_up, T_eq and spikes, ready for JSON.

    Returns:
        Entries named as in `DEFINITIONS`; those of accuracy are None without labels. Besides "accuracy per step" and
        "agreement per step" (shares after steps 1 to T), and "equilibrium steps", {T_eq: samples}.
    """
    logits, t_eq = recording.logits_per_step, recording.equilibrium_step
    agreement = accuracy_over_time(logits, recording.expected).tolist()
    accuracy: list[float] | None = None
    right = None
    if recording.labels is not None:
        accuracy = accuracy_over_time(logits, recording.labels).tolist()
        right = share(recording.expected == recording.labels)
    changing = recording.predictions != recording.predictions[:, -1:]
    reached = t_eq[t_eq > 0]
    chance = 1 / logits.shape[-1]
    fired, least, neurons = (int(x.sum()) for x in (recording.spikes, recording.final_levels, recording.neurons))
    return {
        "samples": len(recording),
        "T": recording.time_steps,
        "certificate": certificate_of(t_eq, recording.exact, recording.time_steps),
        "QANN accuracy": right,
        "final accuracy": accuracy and accuracy[-1],
        "final agreement": agreement[-1],
        "chance": chance,
        "T_up": accuracy and half_way(accuracy, chance),
        "T within 0.1 point": accuracy and settles(accuracy),
        "T of final answers": settles((~changing).double().mean(0).tolist(), 0.0),
        "at equilibrium": len(reached),
        "T_eq": distribution(reached),
        "equilibrium steps": {str(step): int((t_eq == step).sum()) for step in reached.unique().tolist()},
        "spikes per neuron": fired / neurons,
        "lower bound": least / neurons,
        "needless spikes": 1 - least / fired if fired else 0.0,
        "accuracy per step": accuracy,
        "agreement per step": agreement,
    }


def share(is_so: torch.Tensor) -> float:
    return float(is_so.double().mean())


def distribution(steps: torch.Tensor) -> dict[str, float] | None:
    """Of the T_eq that were reached; None if none was."""
    if not len(steps):
        return None
    exact = steps.double()
    return {
        "min": int(steps.min()),
        "mean": round(float(exact.mean()), 2),
        "median": int(exact.quantile(0.5, interpolation="lower")),
        "95th percentile": int(exact.quantile(0.95, interpolation="higher")),
        "max": int(steps.max()),
    }


def reported_steps(last: int) -> list[int]:
    """Some of the steps 1 to `last` to show: the powers of two, the threes between them, and the last."""
    some = {step for power in range(20) for step in (2**power, 3 * 2**power) if step < last}
    return [*sorted(some), last]


def step_table(recording: Recording) -> list[dict[str, Any]]:
    """A row for each step: accuracy, agreement, spikes per neuron so far and in the step, samples settled by then."""
    course = time_course(recording)
    neurons = int(recording.neurons.sum())
    spikes = recording.spikes.sum((0, 2), dtype=torch.int64)
    t_eq = recording.equilibrium_step
    return [
        {
            "T": step + 1,
            "accuracy": course["accuracy per step"] and course["accuracy per step"][step],
            "agreement": course["agreement per step"][step],
            "spikes per neuron": int(spikes[: step + 1].sum()) / neurons,
            "firing rate": int(spikes[step]) / neurons,
            "share at equilibrium": share((t_eq > 0) & (t_eq <= step + 1)),
        }
        for step in range(len(spikes))
    ]


def mean(counts: torch.Tensor) -> int | float:
    """Mean number of neurons of a sample: the same for all images, but not for all texts."""
    exact = float(counts.double().mean())
    return int(exact) if exact.is_integer() else round(exact, 1)


def node_table(recording: Recording) -> list[dict[str, Any]]:
    """A row for each node: neurons of a sample, spikes per neuron and their lower bound, when it fires."""
    rates, rows = recording.mean_firing_rate(), []
    for number, name in enumerate(recording.node_names):
        neurons, rate = int(recording.neurons[:, number].sum()), rates[:, number]
        fires = rate.nonzero().flatten()
        rows.append(
            {
                "node": name,
                "neurons": mean(recording.neurons[:, number]),
                "spikes per neuron": int(recording.spikes[:, :, number].sum()) / neurons,
                "lower bound": int(recording.final_levels[:, number].sum()) / neurons,
                "peak firing rate": float(rate.max()),
                "first spike at T": int(fires[0]) + 1 if len(fires) else None,
                "peak at T": int(rate.argmax()) + 1 if len(fires) else None,
                "last spike at T": int(fires[-1]) + 1 if len(fires) else None,
            }
        )
    return rows


def sample_table(recording: Recording, index: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """A row for each sample: what it is, what is said of it, and when.

    Args:
        index: of the samples in their data set; by default they are numbered.
    """
    said = recording.predictions
    changes = said != said[:, -1:]
    # One more than the last step with another answer.
    lasting = torch.where(changes, torch.arange(1, said.shape[1] + 1), 0).amax(1) + 1
    columns: dict[str, torch.Tensor] = {"index": torch.arange(len(said)) if index is None else torch.tensor(index)}
    if recording.labels is not None:
        columns["label"] = recording.labels
    columns |= {
        "prediction": said[:, -1],
        "QANN prediction": recording.expected,
        "final answer from T": lasting,
        "T_eq": recording.equilibrium_step,
        "exact": recording.exact,
        "spikes per neuron": recording.spikes.sum((1, 2), dtype=torch.int64) / recording.neurons.sum(1).double(),
        "lower bound": recording.final_levels.sum(1) / recording.neurons.sum(1).double(),
    }
    return [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]


def anytime_table(recording: Recording, index: Sequence[int] | None = None, names: Sequence[str] | None = None):
    """What would be answered if each sample were stopped after each step: a `datasets.Dataset`, a row for each.

    Args:
        index: of the samples in their data set; by default they are numbered.
        names: of the classes.

    Returns:
        "index", "T", "label" (if there are labels), "prediction", "score" (its softmax probability), "margin" (its
        lead in logits), "agrees" (with the quantized network), "settled" (at equilibrium by then), "spikes" (so far).
    """
    try:
        from datasets import ClassLabel, Dataset, Features, Value
    except ImportError as error:
        raise ImportError("Tables of samples need datasets: pip install 'spikezip-hf[train]'.") from error
    count, steps, _ = recording.logits_per_step.shape
    whole = Value("int64")
    of_class = whole if names is None else ClassLabel(names=list(names))
    step = torch.arange(1, steps + 1).expand(count, -1)
    t_eq = recording.equilibrium_step[:, None]
    rows = torch.arange(count) if index is None else torch.tensor(index)
    best = recording.logits_per_step.topk(min(2, recording.logits_per_step.shape[-1]), -1).values
    columns = {"index": (rows[:, None].expand(-1, steps), whole), "T": (step, whole)}
    if recording.labels is not None:
        columns["label"] = (recording.labels[:, None].expand(-1, steps), of_class)
    columns |= {
        "prediction": (recording.predictions, of_class),
        "score": (recording.logits_per_step.softmax(-1).amax(-1), Value("float32")),
        "margin": (best[..., 0] - best[..., -1], Value("float32")),
        "agrees": (recording.predictions == recording.expected[:, None], Value("bool")),
        "settled": ((t_eq > 0) & (step >= t_eq), Value("bool")),
        "spikes": (recording.spikes.sum(-1, dtype=torch.int64).cumsum(1), whole),
    }
    return Dataset.from_dict(
        {name: values.flatten().numpy() for name, (values, _) in columns.items()},
        features=Features({name: kind for name, (_, kind) in columns.items()}),
    )
