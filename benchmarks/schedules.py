"""Spikes against time: what each firing schedule costs a trained network, at exactly the same final logits.

    .venv/bin/python benchmarks/schedules.py outputs/sst2_bert/snn_32 --data sst2 --figure outputs/schedules.png

For each schedule: T_eq, the first step from which on every answer is the final one, spikes per neuron against the
lower bound (the sum of final levels), joules of an inference (counted by the event-driven form), and how many steps a
sample takes when consecutive samples are pipelined: the longest time that a node is busy with one, from where its gate
opens to its last spike. (That takes membranes twice, one for each of two samples.) Graded spikes, k > 1, are a family
of their own: a spike of size m counts m. Prints JSON.
"""

import argparse
import json

import torch
from transformers.utils import logging

from spikezip_hf.analysis.energy import PARTS, energy
from spikezip_hf.analysis.operations import count_operations
from spikezip_hf.analysis.recording import Recording, record
from spikezip_hf.analysis.time_course import time_course
from spikezip_hf.loading import is_text, load_network
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel
from spikezip_hf.recipes.evaluate import by_length
from spikezip_hf.recipes.inputs import DataArguments, load_data, model_inputs, reported_split
from spikezip_hf.training.snn_evaluation import evenly_spread

logging.disable_progress_bar()
T = 4096  # more than any of them takes
PACES = (
    (0.5, 10, 0.9),
    (0.8, 12, 1.0),
    (0.9, 12, 1.1),
    (0.9, 14, 1.2),
    (1.0, 16, 1.3),
    (1.2, 20, 1.7),
    (1.5, 24, 2.0),
)


def schedules(levels: int) -> dict[str, dict]:
    """What is measured: fields of the config, and how to make a schedule that is made for a network."""
    found: dict[str, dict] = {"synchronous (the paper)": {}}
    for window in (levels // 8, levels // 4, levels // 2):
        found[f"layerwise, window {window}"] = {"firing_schedule": "layerwise", "firing_window": window}
    for coverage in (0.5, 0.6, 0.8, 0.95):
        found[f"nodewise, coverage {coverage}"] = {"made": "nodewise", "coverage": coverage}
    for opening, start, pace in PACES:
        settings = {"opening_pace": opening, "fine_start": start / 32, "fine_pace": pace}
        found[f"coarse to fine, {opening}, {start}, {pace}"] = {"made": "coarse_to_fine", **settings}
    for k in (2, 4):
        found[f"synchronous, k = {k}"] = {"max_spikes_per_step": k}
    return found


def scheduled(qann, spike_class: type[SpikePreTrainedModel], calibration: list[dict], made=None, **settings):
    """The spiking twin with a schedule."""
    if made is None:
        return spike_class.from_quantized(qann, time_steps=T, **settings)
    return spike_class.from_quantized(qann, time_steps=T).calibrate_schedule(calibration, made, **settings)


def pipelined_steps(snn: SpikePreTrainedModel, recording: Recording) -> float:
    """Steps a sample when one follows the other: the longest that a node is busy with one; a mean over samples."""
    steps = torch.arange(1, recording.spikes.shape[1] + 1)[:, None]
    last = torch.where(recording.spikes > 0, steps, 0).amax(1)  # (N, nodes)
    opens = torch.tensor([snn.config.first_firing_step(node) for node in snn.nodes])
    return float((last - opens + 1).clamp_min(0).amax(1).double().mean())


def measure(snn, batches: list[dict], energy_batch: dict | None) -> dict:
    recording = record(snn, batches)
    course = time_course(recording)
    settled = recording.equilibrium_step.double()
    answer = {
        "exact": f"{int(recording.exact.sum())} of {len(recording)}",
        "T_eq": round(float(settled.mean()), 1),
        "T_eq, largest": int(settled.max()),
        "T of final answers": course["T of final answers"],
        "spikes per neuron": round(course["spikes per neuron"], 3),
        "spikes / lower bound": round(course["spikes per neuron"] / course["lower bound"], 3),
        "steps a sample, pipelined": round(pipelined_steps(snn, recording), 1),
    }
    if energy_batch is not None:
        found = energy(count_operations(snn, energy_batch))
        names = {"FP32 ANN": found.ann, "QANN": found.qann, "QANN INT8": found.int8, "SNN": found.snn}
        products = (*PARTS["weights"], *PARTS["attention"])
        answer["microjoules an inference"] = {name: round(1e6 * one.energy_j, 2) for name, one in names.items()}
        answer["of these, products"] = {name: round(1e6 * one.of(products), 2) for name, one in names.items()}
    return answer


def draw(found: dict[str, dict], path: str) -> None:
    """Spikes against T_eq, both as multiples: of the lower bound and of the paper's schedule."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paper = found["synchronous (the paper)"]["T_eq"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    families = {"synchronous": "o", "layerwise": "s-", "nodewise": "^--", "coarse": "D-."}
    for (family, style), gray in zip(families.items(), ("0.0", "0.55", "0.35", "0.0"), strict=True):
        rows = [row for name, row in found.items() if name.startswith(family)]
        x = [row["T_eq"] / paper for row in rows]
        axes.plot(x, [row["spikes / lower bound"] for row in rows], style, color=gray, label=FAMILIES[family])
    for name, row in found.items():
        if "k =" in name:
            axes.annotate(name.split(", ")[1], (row["T_eq"] / paper, row["spikes / lower bound"]), (6, 4), **NOTE)
    axes.axhline(2, color="0.6", linewidth=0.8)
    axes.axvline(1.5, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 1, 1.5, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.annotate("aim: below and left of the lines", (0.23, 2), (0, -12), **NOTE)
    axes.set(xlabel="T_eq / T_eq of the paper's schedule", ylabel="spikes / lower bound", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


FAMILIES = {
    "synchronous": "synchronous (the paper), and k > 1",
    "layerwise": "layerwise",
    "nodewise": "nodewise",
    "coarse": "coarse to fine",
}
NOTE = {"textcoords": "offset points", "fontsize": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a trained Spike or Quant model")
    parser.add_argument("--data", required=True, help="folder of its data, or the name of one inside SPIKEZIP_DATA")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--energy-samples", type=int, default=2, help="samples to count operations of; 0 for none")
    parser.add_argument("--only", default="", help="schedules whose name starts so")
    parser.add_argument("--figure", help="file for a picture of spikes against T_eq")
    options = parser.parse_args()

    network, processor = load_network(options.checkpoint)
    qann = network.to_quantized() if isinstance(network, SpikePreTrainedModel) else network
    arguments = DataArguments(local_name=options.data)
    of_text = is_text(network.config.model_type)
    splits = load_data(arguments, is_text=of_text)
    inputs, collate = model_inputs(splits, processor, arguments, of_text)

    def batches(rows) -> list[dict]:
        order = by_length(rows)
        starts = range(0, len(order), options.batch_size)
        return [dict(collate([rows[row] for row in order[start : start + options.batch_size]])) for start in starts]

    split = reported_split(splits)
    test = batches(evenly_spread(inputs[split], options.samples))
    calibration = batches(evenly_spread(inputs["train"], 64))
    few = evenly_spread(inputs[split], options.energy_samples) if options.energy_samples else None
    energy_batch = None if few is None else dict(collate([few[row] for row in range(len(few))]))
    spike_class = type(network) if isinstance(network, SpikePreTrainedModel) else None
    assert spike_class is not None, "name the spiking twin"

    found = {}
    for name, settings in schedules(network.config.quantization_levels).items():
        if name.startswith(options.only):
            snn = scheduled(qann, spike_class, calibration, **settings)
            found[name] = measure(snn, test, energy_batch)
            print(json.dumps({name: found[name]}), flush=True)
    report = {"data": options.data, "split": split, "samples": options.samples, "schedules": found}
    print(json.dumps(report, indent=1))
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
