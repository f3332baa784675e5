"""An `EnergyReport` for readers: tables by kind and by layer, what comes out, and what each number means."""

import re
from dataclasses import asdict
from typing import Any

from spikezip_hf.analysis.energy import PARTS, EnergyReport, energy, fitting_unit, key
from spikezip_hf.analysis.operation_counts import SESA_KINDS, unit

NETWORKS = {
    "ANN": "the ordinary network",
    "QANN": "its quantized twin, which gives the same answers",
    "QANN INT8": "the quantized network in 8-bit integers",
    "SNN": "the spiking network",
}
KIND_MEANS = {
    "input product": "A multiply-add of the patch embedding, whose input is current.",
    "weights": "Spiking: a weight added for a spike, so spikes times fan-out (paper Eq. 3). Dense: a multiply-add.",
    "analog weights": "A multiply-add of a weight and an analog value that changed.",
    "SESA S_A B": "An entry of a tracer added for a spike on the other side (Eq. 4, first product).",
    "SESA A S_B": "The same with sides exchanged (second product).",
    "SESA A B": "An addition of 1 for two spikes that meet (third product).",
    "bias": "An addition, once a sample and output.",
    "residual": "An addition of what changed in a residual branch.",
    "LayerNorm": "An element normalised anew. Spiking: all of them in each step (Eq. 5).",
    "softmax": "The same of a softmax.",
    "other operator": "The same of another operator, such as the tanh of a head.",
    "membrane update": "A neuron compared with its threshold, in each step (Eq. 1). Dense: none.",
    "spike": "A spike fired: membrane reset, tracer moved. Dense: a value quantized.",
}
DEFINITIONS = {
    "samples": "Samples whose operations were counted in the event-driven form, in float64, evenly spread over those "
    "of this report. All that follows is their mean, an inference of one sample.",
    "at equilibrium": "Of these. Elsewhere the spiking network's answer need not be its twin's.",
    "steps": "Time-steps that count: until equilibrium, after which event-driven hardware falls silent; else T.",
    "neurons": "Over all nodes; padding has none.",
    "spikes per neuron": "Spikes of either sign over all steps, by the number of neurons.",
    "energy": "Operations times the energy of one of them (prices below).",
    "QANN INT8": "Levels and weights of 8 bits, as ordinary hardware multiplies them. Where the network simulated has "
    "other weights, this is another network: its operations are known, its accuracy was not measured here.",
    "SNN / this": "Energy of the spiking network by that of this one: above 1 spikes cost more, below 1 they save.",
    "break-even": "Spikes per neuron, over all steps, at which the SNN would take as much as this network, were all "
    "that spikes drive to shrink in proportion. none: what each step does anyway takes more by itself.",
    "break-even of products": "The same with nothing but products counted, as the literature has it.",
    "power": "Paper, Eq. 6: spike activities a step (N_pre + N_post, Eq. A1 to A6) at 0.9 pJ, a step in 1 ms; "
    "attention, operators and membranes are not in it. Of the ANN: multiply-adds at 4.6 pJ in one such step, as in "
    "Table A1. More steps lower power and raise energy, so it says nothing without the number of steps.",
    "not in it": "Routing of spikes, control, leakage; memory traffic but where it is named. Routing is a cost of the "
    "SNN alone.",
}


def account(report: EnergyReport) -> dict[str, Any]:
    """All that is to be said of energy, ready for JSON.

    Returns:
        "says": sentences; "counted": of which samples; "power": watts; "definitions", "networks" and "prices"; and
        "tables" {name: rows}: "energy" (a network a row), "operations" (a kind), "operations_by_layer",
        "operations_by_module". Energies are in joules.
    """
    return {
        "says": conclusion(report),
        "counted": report.operations.summary(),
        "power": {
            "SNN (W)": report.snn.power_w,
            "SNN with attention (W)": report.power_with_sesa_w,
            "ANN in one step (W)": report.ann.power_w,
            "ms a step": 1e3 * report.constants.step_seconds,
        },
        "definitions": DEFINITIONS,
        "networks": {one.network: f"{NETWORKS[one.network]}: {one.arithmetic}" for one in report.networks},
        "prices": asdict(report.constants),
        "tables": {
            "energy": report.table(),
            "operations": kind_table(report),
            "operations_by_layer": layer_table(report),
            "operations_by_module": report.entries(),
        },
    }


def kind_table(report: EnergyReport) -> list[dict[str, Any]]:
    """A row for each kind of operation that occurs: how often in the SNN and in one dense pass, and joules."""
    rows = []
    for kind, counts in report.operations.totals().items():
        repeated = kind in SESA_KINDS[1:]  # a dense network has one product where SESA has three
        row: dict[str, Any] = {"kind": kind, "unit": unit(kind), "SNN": counts["count"]}
        row["dense"] = None if repeated else counts["dense"]
        row |= {f"{one.network} (J)": one.of((kind,)) for one in report.networks}
        rows.append(row | {"means": KIND_MEANS[kind]})
    return rows


def layer_of(module: str, before: str | None) -> str:
    """Where a module is, the last one having been at `before`."""
    found = re.search(r"\blayers?\.(\d+)\b", module)
    if found:
        return f"layer {found[1]}"
    return "before the layers" if before in (None, "before the layers") else "after the layers"


def layer_table(report: EnergyReport) -> list[dict[str, Any]]:
    """A row for each layer: operations of the SNN that cost most, and joules in each network."""
    columns = {
        "additions of weights": ("weights",),
        "additions in attention": SESA_KINDS,
        "elements normalised": ("LayerNorm", "softmax", "other operator"),
        "membrane updates": ("membrane update",),
        "spikes": ("spike",),
    }
    rows: dict[str, dict[str, Any]] = {}
    place = None
    for entry in report.entries():
        place = layer_of(entry["module"], place)
        row = rows.setdefault(place, {"layer": place})
        for name, kinds in columns.items():
            row[name] = row.get(name, 0.0) + entry["count"] * (entry["kind"] in kinds)
        for name in (f"{network} (J)" for network in NETWORKS):
            row[name] = row.get(name, 0.0) + entry[name]
    return list(rows.values())


def conclusion(report: EnergyReport) -> list[str]:
    """What comes out, whichever way it goes; never a comparison without the integer network beside it."""
    ratios = {one.network: report.snn.energy_j / one.energy_j for one in report.networks[:-1]}
    about = report.operations.summary()
    against = [
        f"{times(ratios[one.network])} {NETWORKS[one.network]} ({told(one.energy_j)})"
        for one in (report.qann, report.int8, report.ann)
    ]
    total = report.snn.energy_j
    shares = sorted(((report.snn.of(kinds) / (total or 1.0), part) for part, kinds in PARTS.items()), reverse=True)
    largest = ", ".join(f"{100 * share:.0f} % into {part}" for share, part in shares[:3])
    sentences = [
        f"An inference of the spiking network takes {told(total)}, mean of {about['samples']} samples: "
        f"{'; '.join(against)}.",
        verdict({name: ratio < 1 for name, ratio in ratios.items()}),
        f"It fires {about['spikes per neuron']:.2f} spikes per neuron in {about['steps']:.1f} steps. "
        f"{break_even(report)} Where its energy goes: {largest}.",
    ]
    if not report.memory:
        full = energy(report.operations, report.constants, memory=True)
        named = ", ".join(f"{times(full.snn.energy_j / one.energy_j)} the {one.network}" for one in full.networks[1:3])
        sentences.append(
            f"With memory traffic, each operand fetched anew ({report.constants.memory_pj_per_byte:g} pJ a byte): "
            f"{told(full.snn.energy_j)}, {named}."
        )
    assert report.snn.power_w is not None
    assert report.ann.power_w is not None
    seconds = about["steps"] * report.constants.step_seconds
    sentences.append(
        f"Power as the paper has it (Eq. 6, {1e3 * report.constants.step_seconds:g} ms a step): "
        f"{report.snn.power_w:.3g} W for {1e3 * seconds:.1f} ms, so {told(report.snn.power_w * seconds)}. "
        f"The ordinary network's multiply-adds in one such step are {report.ann.power_w:.3g} W: "
        f"{told(report.ann.power_w * report.constants.step_seconds)}."
    )
    if missing := about["samples"] - about["at equilibrium"]:
        sentences.append(
            f"{missing} of the {about['samples']} samples are not at equilibrium: there the spiking network's answer "
            "need not be its twin's, and more steps would take more energy."
        )
    return sentences


def verdict(saves: dict[str, bool]) -> str:
    """In one sentence, for {network: whether the SNN takes less}."""
    if all(saves.values()):
        return "So by this count spikes save energy, against integer arithmetic too."
    less = [name for name, so in saves.items() if so]
    more = [name for name, so in saves.items() if not so]
    if not less:
        return "So by this count spikes save nothing: each of the dense networks takes less."
    if less == ["ANN"]:
        return (
            "So by this count spikes save energy against floating point alone: quantizing the network, without any "
            "spikes, saves more."
        )
    return (
        f"So by this count spikes save energy against {' and '.join(less)}, and cost more than {' and '.join(more)}."
    )


def break_even(report: EnergyReport) -> str:
    rates = report.break_even()
    some = [f"with the {name} at {rate:.2f}" for name, rate in rates.items() if rate is not None]
    none = [f"the {name}" for name, rate in rates.items() if rate is None]
    said = [f"It would break even {', '.join(some)} spikes per neuron."] if some else []
    if none:
        said.append(
            f"No rate is low enough to break even with {' or '.join(none)}: what each step does, whatever is fired, "
            "takes more by itself."
        )
    return " ".join(said)


def times(ratio: float) -> str:
    """How much the SNN takes, before the name of the other."""
    return f"{digits(ratio)} times that of" if ratio >= 1 else f"{100 * (1 - ratio):.0f} % less than that of"


def told(value_j: float) -> str:
    """Joules in a unit that fits."""
    scale, name = fitting_unit(value_j)
    return f"{digits(value_j / scale)} {name}"


def digits(value: float) -> str:
    """Three digits that count, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def part_table(rows: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The "energy" table as people read it, networks beside one another: (unit, a row for each kind of operation)."""
    scale, name = fitting_unit(max(row["energy_j"] for row in rows))
    parts = [part for part in PARTS if any(row[key(part)] for row in rows)]
    table = [{"": part} | {row["network"]: row[key(part)] / scale for row in rows} for part in parts]
    table.append({"": "total"} | {row["network"]: row["energy_j"] / scale for row in rows})
    table.append({"": "SNN / this"} | {row["network"]: row["snn_energy_over_this"] for row in rows})
    for title, column in (
        ("break-even", "break_even_spikes_per_neuron"),
        ("break-even of products", "break_even_of_products_spikes_per_neuron"),
    ):
        rates = {row["network"]: "none" if row[column] is None else row[column] for row in rows}
        table.append({"": title} | rates | {"SNN": None})
    return name, table
