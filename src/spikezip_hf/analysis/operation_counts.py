# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What was counted in a simulation, as numbers and tables. What each kind of operation is: `operations.py`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from spikezip_hf.analysis.counting import Entry

SESA_KINDS = ("SESA S_A B", "SESA A S_B", "SESA A B")
MULTIPLY_ADDS = ("input product", "analog weights")
ADDITIONS = ("weights", *SESA_KINDS, "bias", "residual")
ELEMENTS = ("LayerNorm", "softmax", "other operator")
KINDS = (
    *("input product", "weights", "analog weights", *SESA_KINDS, "bias", "residual", *ELEMENTS),
    *("membrane update", "spike"),
)


def unit(kind: str) -> str:
    """What a count of this kind counts."""
    if kind in MULTIPLY_ADDS:
        return "multiply-adds"
    return "additions" if kind in ADDITIONS else "elements" if kind in ELEMENTS else f"{kind}s"


@dataclass(frozen=True)
class Operations:
    """What `count_operations` found, for each of B samples.

    Attributes:
        entries: one for each module and kind, in the network's order; `Entry.count` and `Entry.dense` are (B,).
        steps: (B,) time-steps that count for a sample: with stop="never" T, else until it was at equilibrium (event-
            driven hardware falls silent then), or confident; T where it never was.
        equilibrium_step: (B,) T_eq, -1 where not proven.
        time_steps: T, the most that were allowed.
        neurons, spikes: (B,) over all nodes.
        levels: of an activation node.
        weight_bits: of quantized weights, else None.
    """

    entries: tuple[Entry, ...]
    steps: torch.Tensor
    equilibrium_step: torch.Tensor
    time_steps: int
    neurons: torch.Tensor
    spikes: torch.Tensor
    levels: int
    weight_bits: int | None

    @property
    def spikes_per_neuron(self) -> float:
        """Over all steps, mean of the samples."""
        return float((self.spikes / self.neurons).mean())

    def sample(self, index: int) -> "Operations":
        """Those of one sample."""
        one = slice(index, index + 1) if index != -1 else slice(-1, None)
        if not len(self.steps[one]):
            raise IndexError(f"index is {index}, and there are {len(self.steps)} samples.")
        return self.pick([self], one)

    @classmethod
    def join(cls, parts: Iterable["Operations"]) -> "Operations":
        """Those of several batches of one network as one.

        Raises:
            ValueError: there are none, or they are of different networks or T.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("parts is empty.")
        shapes = [
            ([(e.module, e.kind, e.integer) for e in part.entries], part.time_steps, part.levels, part.weight_bits)
            for part in parts
        ]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("parts are of different networks or time_steps: count them apart.")
        return cls.pick(parts, slice(None))

    @staticmethod
    def pick(parts: list["Operations"], samples: slice) -> "Operations":
        def cat(tensors) -> torch.Tensor:
            return torch.cat([tensor[samples] for tensor in tensors])

        entries = tuple(
            replace(entry[0], count=cat(e.count for e in entry), dense=cat(e.dense for e in entry))
            for entry in zip(*(part.entries for part in parts))
        )
        return replace(
            parts[0],
            entries=entries,
            steps=cat(part.steps for part in parts),
            equilibrium_step=cat(part.equilibrium_step for part in parts),
            neurons=cat(part.neurons for part in parts),
            spikes=cat(part.spikes for part in parts),
        )

    def table(self) -> list[dict[str, Any]]:
        """A row for each module and kind, means over the samples: for JSON, CSV or `datasets.Dataset.from_list`."""
        return [
            {
                "module": entry.module,
                "kind": entry.kind,
                "unit": unit(entry.kind),
                "count": mean(entry.count),
                "dense": mean(entry.dense),
                "integer": entry.integer,
                "weight_bits": entry.weight_bits,
            }
            for entry in self.entries
        ]

    def totals(self) -> dict[str, dict[str, float]]:
        """{kind: {"count", "dense"}} over all modules, means over the samples, of the kinds that occur.

        "dense" of the three products of SESA is that of one and the same product: count it once.
        """
        found: dict[str, dict[str, float]] = {}
        for kind in KINDS:
            entries = [entry for entry in self.entries if entry.kind == kind]
            if entries:
                found[kind] = {
                    "count": sum(mean(entry.count) for entry in entries),
                    "dense": sum(mean(entry.dense) for entry in entries),
                }
        return found

    def summary(self) -> dict[str, Any]:
        """Samples, T, T_eq, steps, neurons and spikes: means over the samples."""
        reached = self.equilibrium_step[self.equilibrium_step > 0]
        return {
            "samples": len(self.steps),
            "T": self.time_steps,
            "at equilibrium": len(reached),
            "T_eq": mean(reached) if len(reached) else None,
            "steps": mean(self.steps),
            "neurons": mean(self.neurons),
            "spikes": mean(self.spikes),
            "spikes per neuron": self.spikes_per_neuron,
        }

    def __str__(self) -> str:
        about = self.summary()
        t_eq = "-" if about["T_eq"] is None else f"{about['T_eq']:.1f}"
        lines = [
            f"{about['samples']} samples, T = {self.time_steps}; at equilibrium {about['at equilibrium']} of "
            f"{about['samples']}, mean T_eq {t_eq}; means a sample:",
            f"{about['steps']:.1f} steps, {about['neurons']:,.0f} neurons, {about['spikes']:,.0f} spikes "
            f"({about['spikes per neuron']:.2f} a neuron)",
            f"{'kind':<16} {'spiking':>16} {'dense, one pass':>16}",
        ]
        for kind, found in self.totals().items():
            dense = " (above)" if kind in SESA_KINDS[1:] else f"{found['dense']:,.0f}"
            units = f"{unit(kind)} / multiply-adds" if kind in ("weights", *SESA_KINDS) else unit(kind)
            lines.append(f"{kind:<16} {found['count']:>16,.0f} {dense:>16}  {units}")
        return "\n".join(lines)


def mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
