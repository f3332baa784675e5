# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Energy of an inference: of the spiking network beside the quantized and the ordinary one, never of one alone.

Whether spikes save energy depends on what they are held against (Davidson & Furber 2021, Frontiers in Neuroscience 15;
arXiv:2409.08290). So one `EnergyReport` holds four rows, priced from the operations of one count (`operations.py`):

| row       | is                                              | its products                                       |
|-----------|-------------------------------------------------|----------------------------------------------------|
| ANN       | the ordinary network                            | FP32 multiply-adds                                 |
| QANN      | the quantized twin, matched to the bit          | levels x weights, levels x levels, of their widths |
| QANN INT8 | the same with 8-bit levels *and* weights        | INT8 multiply-adds, as ordinary hardware has them  |
| SNN       | the spiking twin, over the steps that it took   | additions: FP32, or integer where QANN's are       |

With `weight_bits=8` QANN is an integer network, and the SNN adds integers too. Else weights are FP32 in both, and QANN
INT8 is another network than the one simulated: what one would run instead on hardware of today.

What is no product costs the same FP32 operations in all: additions of bias and residuals, LayerNorm and softmax, which
the SNN does anew in each step, plus the subtraction of Eq. 5. The patch embedding has analog input in ANN, QANN and
SNN: FP32. A neuron's update is an FP32 comparison in each step, a spike an FP32 subtraction (reset) and an integer
addition (tracer), a quantizer an FP32 multiply-add; the ReLU of the ANN is free. Control, routing of spikes, leakage,
and memory unless it is asked for, are in no row, and routing is a cost of the SNN alone.

Memory, if asked for: nothing is used twice, each operation fetches its operands anew; accumulators are registers. A
dense network can use weights again much more than an event-driven one, so this flatters the SNN.
"""

from dataclasses import dataclass
from typing import Any

from spikezip_hf.analysis.energy_prices import DEFAULT, EnergyConstants, Prices, level_bits
from spikezip_hf.analysis.operation_counts import SESA_KINDS, Operations
from spikezip_hf.analysis.paper_power import paper_power_w

# What the lines of a report sum up.
PARTS = {
    "input": ("input product",),
    "weights": ("weights", "analog weights"),
    "attention": SESA_KINDS,
    "bias and residual": ("bias", "residual"),
    "LayerNorm": ("LayerNorm",),
    "softmax and tanh": ("softmax", "other operator"),
    "neurons": ("membrane update", "spike"),
}
SPIKE_DRIVEN = ("weights", "analog weights", *SESA_KINDS, "residual", "spike")


@dataclass(frozen=True)
class NetworkEnergy:
    """Energy of an inference of one network, mean of the samples.

    Attributes:
        network, arithmetic: which one, and what its products multiply or add.
        compute_j, memory_j: {kind of operation: joules}; the latter is empty unless memory was asked for.
        power_w: as the paper's Eq. 6 and Table A1 have it, 1 ms a step or dense pass; without SESA.
    """

    network: str
    arithmetic: str
    compute_j: dict[str, float]
    memory_j: dict[str, float]
    power_w: float | None = None

    @property
    def energy_j(self) -> float:
        return self.of(tuple(self.compute_j))

    def of(self, kinds: tuple[str, ...]) -> float:
        """Joules of these kinds of operation."""
        return sum(found.get(kind, 0.0) for found in (self.compute_j, self.memory_j) for kind in kinds)


@dataclass(frozen=True)
class EnergyReport:
    """Four networks and what follows from them; `str()` is a table.

    Attributes:
        ann, qann, int8, snn: see the module.
        operations: what was priced.
        power_with_sesa_w: the paper's Eq. 6 with SESA's additions among the pre-synaptic spikes.
        memory: whether memory traffic is in it.
    """

    ann: NetworkEnergy
    qann: NetworkEnergy
    int8: NetworkEnergy
    snn: NetworkEnergy
    operations: Operations
    constants: EnergyConstants
    power_with_sesa_w: float
    memory: bool

    @property
    def networks(self) -> tuple[NetworkEnergy, ...]:
        return self.ann, self.qann, self.int8, self.snn

    def break_even(self, products_only: bool = False) -> dict[str, float | None]:
        """{network: spikes per neuron, over all steps, at which the SNN takes as much energy as that network}.

        Were there fewer spikes, what they drive would shrink in proportion: additions, resets, residuals. The rest
        (patch embedding, bias, LayerNorm, softmax and membranes of each step) stays. None where that alone takes
        more than the other network, so that no rate is low enough with so many steps.

        Args:
            products_only: of products alone, which is how the literature has it.
        """
        products = (*PARTS["weights"], *PARTS["attention"])
        kinds = products if products_only else tuple(self.snn.compute_j)
        driven = tuple(kind for kind in kinds if kind in SPIKE_DRIVEN)
        driven_j, fixed_j = self.snn.of(driven), self.snn.of(tuple(kind for kind in kinds if kind not in driven))
        rates: dict[str, float | None] = {}
        for other in self.networks[:-1]:
            left = other.of(kinds) - fixed_j
            possible = left > 0 and driven_j > 0
            rates[other.network] = self.operations.spikes_per_neuron * left / driven_j if possible else None
        return rates

    def table(self) -> list[dict[str, Any]]:
        """A row for each network; "snn_energy_over_this" below 1 is a saving of the SNN against that one."""
        rates, products = self.break_even(), self.break_even(products_only=True)
        rows = []
        for one in self.networks:
            row: dict[str, Any] = {"network": one.network, "arithmetic": one.arithmetic, "energy_j": one.energy_j}
            row |= {key(part): one.of(kinds) for part, kinds in PARTS.items()}
            row["memory_j"] = sum(one.memory_j.values()) if self.memory else None
            row["snn_energy_over_this"] = self.snn.energy_j / one.energy_j
            row["break_even_spikes_per_neuron"] = rates.get(one.network)
            row["break_even_of_products_spikes_per_neuron"] = products.get(one.network)
            row["paper_power_w"] = one.power_w
            rows.append(row)
        return rows

    def entries(self) -> list[dict[str, Any]]:
        """A row for each module and kind: its counts, and joules in each network. Columns add up to `table`'s."""
        prices = Prices(self.constants, self.operations.levels)
        found = []
        for row, entry in zip(self.operations.table(), self.operations.entries):
            for one, price in zip(self.networks, (prices.ann, prices.qann, prices.int8, prices.snn)):
                row |= {f"{one.network} (J)": sum(joules(price(entry), self.constants, self.memory))}
            found.append(row)
        return found

    def __str__(self) -> str:
        about, rows = self.operations.summary(), self.table()
        scale, unit = fitting_unit(max(row["energy_j"] for row in rows))
        reached = f"{about['at equilibrium']} of {about['samples']} samples at equilibrium"
        lines = [
            f"Energy of an inference ({unit}), mean of {about['samples']} samples: T = {about['T']}, {reached}, "
            f"{about['steps']:.1f} steps, {about['spikes per neuron']:.2f} spikes per neuron",
            "".join([f"{'':<22}", *(f"{row['network']:>12}" for row in rows)]),
        ]

        def line(name: str, values) -> None:
            lines.append(f"{name:<22}" + "".join(f"{value:>12}" for value in values))

        for part in PARTS:
            line(part, (f"{row[key(part)] / scale:,.3f}" for row in rows))
        line("total", (f"{row['energy_j'] / scale:,.3f}" for row in rows))
        if self.memory:
            line("  of it memory", (f"{row['memory_j'] / scale:,.3f}" for row in rows))
        line("SNN / this", (f"{row['snn_energy_over_this']:.2f}" for row in rows))
        for name, rates in (("break-even spikes", self.break_even()), ("  products alone", self.break_even(True))):
            line(name, ("none" if rate is None else f"{rate:.2f}" for rate in rates.values()))
        lines.append("Break-even: spikes per neuron at which the SNN takes as much; none: the rest alone takes more.")
        lines += [f"{one.network}: {one.arithmetic}" for one in self.networks]
        if about["at equilibrium"] < about["samples"]:
            lines.append("Not all samples are at equilibrium: there the SNN's answer is not the QANN's.")
        lines += [
            f"Power as in the paper (Eq. 6, {1e3 * self.constants.step_seconds:g} ms a step): SNN "
            f"{self.snn.power_w:.3g} W ({self.power_with_sesa_w:.3g} W with SESA), ANN, in one step, "
            f"{self.ann.power_w:.3g} W.",
            "More steps can mean less power and more energy: compare power only at equal numbers of steps.",
            f"Prices: {'45 nm, Horowitz 2014' if self.constants == DEFAULT else 'given'}. Not in it: spike routing, "
            f"control, leakage{'.' if self.memory else ', memory traffic.'}",
        ]
        return "\n".join(lines)


def key(part: str) -> str:
    """Name of a part's column."""
    return part.lower().replace(" ", "_") + "_j"


def joules(price: tuple[float, float, float], constants: EnergyConstants, memory: bool) -> tuple[float, float]:
    """Computing, and memory traffic if it is asked for, of what a method of `Prices` returned."""
    times, pj, moved = price
    return times * pj * 1e-12, times * moved * constants.memory_pj_per_byte * 1e-12 if memory else 0.0


UNITS = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"), (1e-12, "pJ"))


def fitting_unit(largest_j: float) -> tuple[float, str]:
    """(joules, name) of the unit in which the largest of some energies is at least 1; else the smallest unit."""
    return next((unit for unit in UNITS if largest_j >= unit[0]), UNITS[-1])


def energy(operations: Operations, constants: EnergyConstants = DEFAULT, *, memory: bool = False) -> EnergyReport:
    """What the counted operations take, beside the same network quantized and ordinary.

    Args:
        operations: of `count_operations`, or several of them joined.
        constants: the prices.
        memory: add memory traffic, bytes times `memory_pj_per_byte`.

    Raises:
        TypeError: `operations` is something else.
    """
    if not isinstance(operations, Operations):
        raise TypeError(
            f"operations is a {type(operations).__name__}: give what count_operations(snn, inputs) returns."
        )
    prices, bits = Prices(constants, operations.levels), level_bits(operations.levels)
    weights = "FP32" if operations.weight_bits is None else f"{operations.weight_bits}-bit"

    def arithmetic(kinds: tuple[str, ...], integer: str, floating: str) -> str:
        found = {entry.integer for entry in operations.entries if entry.kind in kinds}
        return floating if found == {False} else integer if found == {True} else f"{integer} or {floating}"

    products = arithmetic(PARTS["weights"], f"{bits}-bit x {weights}", f"{bits}-bit x FP32")
    attention = arithmetic(SESA_KINDS, f"{bits}-bit x {bits}-bit", f"{bits}-bit x FP32")
    additions = arithmetic(PARTS["weights"], "integer", "FP32"), arithmetic(SESA_KINDS, "integer", "FP32")

    def network(name: str, arithmetic: str, price, power: float | None = None) -> NetworkEnergy:
        compute: dict[str, float] = {}
        traffic: dict[str, float] = {}
        for entry in operations.entries:
            computed, moved = joules(price(entry), constants, memory)
            compute[entry.kind] = compute.get(entry.kind, 0.0) + computed
            if memory:
                traffic[entry.kind] = traffic.get(entry.kind, 0.0) + moved
        return NetworkEnergy(name, arithmetic, compute, traffic, power)

    kinds = ("input product", "weights", "analog weights", SESA_KINDS[0])
    totals = operations.totals()
    multiply_adds = sum(totals[kind]["dense"] for kind in kinds if kind in totals)
    ann_w = multiply_adds * constants.fp32_multiply_add_pj * 1e-12 / constants.step_seconds
    snn_w = paper_power_w(operations, constants)
    return EnergyReport(
        ann=network("ANN", "FP32 multiply-adds", prices.ann, ann_w),
        qann=network("QANN", f"{products} multiply-adds, in attention {attention}", prices.qann),
        int8=network("QANN INT8", "8-bit x 8-bit multiply-adds", prices.int8),
        snn=network("SNN", "additions: {}, in attention {}".format(*additions), prices.snn, snn_w),
        operations=operations,
        constants=constants,
        power_with_sesa_w=paper_power_w(operations, constants, sesa=True),
        memory=memory,
    )
