# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What an operation costs: constants of a process, and what follows from them for other widths and networks."""

from dataclasses import dataclass, fields

from spikezip_hf.analysis.counting import Entry
from spikezip_hf.analysis.operation_counts import ELEMENTS, SESA_KINDS, mean

FLOAT_BYTES = 4
SIGNIFICAND_BITS = 24  # of an FP32 number, the leading one included


@dataclass(frozen=True)
class EnergyConstants:
    """Energies in picojoule, by default of a 45 nm process at 0.9 V (Horowitz, ISSCC 2014, Figure 1.1.9).

    An INT8 multiply-add of the literature, 0.23 pJ, is `int8_multiply_pj` + `integer_add_pj`. A sum of many products
    needs more than 8 bits: `integer_add_pj=0.1` is the 32-bit addition of that source, for all integer sums, spiking
    or not.

    Attributes:
        fp32_multiply_pj, fp32_add_pj: 4.6 pJ together; 0.9 is the paper's alpha too (its section 4.4).
        int8_multiply_pj: of two 8-bit integers.
        integer_add_pj: of an integer to an accumulator.
        spike_pj: alpha of the paper's Eq. 6, the energy of "1 spike activity".
        step_seconds: what a time-step takes in Eq. 6.
        layernorm_multiplies, layernorm_adds: FP32 operations of LayerNorm for an element: square, times 1/sigma, times
            gain; sum, minus mean, sum of squares, plus shift. What is done once a position is left out.
        softmax_multiplies, softmax_adds: of softmax (and a tanh): maximum, subtraction, exponential as a polynomial of
            degree 4, sum, times 1/sum. An assumption: an exponential has no entry in the source.
        memory_pj_per_byte: of a byte read or written, where memory traffic is asked for: 24.96, as
            SpikingJelly's profilers have it. By far the most uncertain of all: in Horowitz's table a memory of 8 kB
            takes 1.25, DRAM 160 to 330.

    Raises:
        ValueError: a constant is negative or not a number; names it.
    """

    fp32_multiply_pj: float = 3.7
    fp32_add_pj: float = 0.9
    int8_multiply_pj: float = 0.2
    integer_add_pj: float = 0.03
    spike_pj: float = 0.9
    step_seconds: float = 1e-3
    layernorm_multiplies: float = 3
    layernorm_adds: float = 4
    softmax_multiplies: float = 5
    softmax_adds: float = 7
    memory_pj_per_byte: float = 24.96

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be a number of at least 0, got {value!r}.")
        if not self.step_seconds:
            raise ValueError("step_seconds must be above 0: power is energy by time.")

    @property
    def fp32_multiply_add_pj(self) -> float:
        """4.6 by default."""
        return self.fp32_multiply_pj + self.fp32_add_pj

    def multiply_add_pj(self, level_bits: int, other_bits: int | None) -> float:
        """A multiply-add of a level with a weight or another level.

        An array multiplier has a cell for each pair of bits, so its energy is scaled with their number:

            integers of a and b bits:   int8_multiply_pj * a*b / (8*8) + integer_add_pj        (0.23 for 8 x 8)
            a-bit level x FP32 weight:  fp32_multiply_pj * a / 24      + fp32_add_pj           (24-bit significand)

        Both are estimates: the source has 8 and 32 bits, and no products of mixed kind.

        Args:
            level_bits: a.
            other_bits: b; None for FP32.
        """
        if other_bits is None:
            return self.fp32_multiply_pj * min(level_bits / SIGNIFICAND_BITS, 1) + self.fp32_add_pj
        return self.int8_multiply_pj * level_bits * other_bits / 64 + self.integer_add_pj

    def element_pj(self, kind: str) -> float:
        """An element of LayerNorm, of softmax, or of another operator (as softmax)."""
        if kind == "LayerNorm":
            return self.layernorm_multiplies * self.fp32_multiply_pj + self.layernorm_adds * self.fp32_add_pj
        return self.softmax_multiplies * self.fp32_multiply_pj + self.softmax_adds * self.fp32_add_pj


DEFAULT = EnergyConstants()


def level_bits(levels: int) -> int:
    """Bits of a number that has so many levels: 5 for 32."""
    return (levels - 1).bit_length()


class Prices:
    """Of one operation: picojoule, and bytes that it moves, in each of the networks.

    Each method takes an entry and returns (how many operations, pJ of one, bytes of one).
    """

    def __init__(self, constants: EnergyConstants, levels: int):
        self.c = constants
        self.bits = level_bits(levels)

    def snn(self, entry: Entry) -> tuple[float, float, float]:
        c, kind, level = self.c, entry.kind, self.bits / 8
        add = c.integer_add_pj if entry.integer else c.fp32_add_pj
        # A membrane is read and written in each step, a tracer with each spike; X_t, O_{t-1}, O_t of Eq. 5.
        price, moved = {
            "input product": (c.fp32_multiply_add_pj, 2 * FLOAT_BYTES),
            "weights": (add, weight_bytes(entry)),
            "analog weights": (c.fp32_multiply_add_pj, FLOAT_BYTES + weight_bytes(entry)),
            "SESA S_A B": (add, level),
            "SESA A S_B": (add, level),
            "SESA A B": (add, 0),
            "bias": (c.fp32_add_pj, FLOAT_BYTES),
            "residual": (c.fp32_add_pj, 2 * FLOAT_BYTES),
            "membrane update": (c.fp32_add_pj, 2 * FLOAT_BYTES),
            "spike": (c.fp32_add_pj + c.integer_add_pj, 2 * level),
        }.get(kind) or (c.element_pj(kind) + entry.each_step * c.fp32_add_pj, 3 * FLOAT_BYTES)
        return mean(entry.count), price, moved

    def dense(self, entry: Entry, product_pj: float, activation: float, weight: float, quantized: bool):
        """A network that does everything once; `activation` and `weight` are bytes."""
        c, kind = self.c, entry.kind
        if kind in ("membrane update", *SESA_KINDS[1:]):
            return 0.0, 0.0, 0.0  # it has no membrane, and one product where SESA has three
        if kind in ELEMENTS:
            return mean(entry.dense), c.element_pj(kind), 2 * FLOAT_BYTES
        price, moved = {
            "bias": (c.fp32_add_pj, FLOAT_BYTES),
            "residual": (c.fp32_add_pj, 3 * FLOAT_BYTES),
            "spike": (c.fp32_multiply_add_pj if quantized else 0.0, activation),  # its quantizer; what it hands on
        }.get(kind) or (product_pj, activation + (activation if kind in SESA_KINDS else weight))
        return mean(entry.dense), price, moved

    def ann(self, entry: Entry):
        return self.dense(entry, self.c.fp32_multiply_add_pj, FLOAT_BYTES, FLOAT_BYTES, quantized=False)

    def qann(self, entry: Entry):
        if entry.kind in ("input product", "analog weights"):
            return mean(entry.dense), self.c.fp32_multiply_add_pj, FLOAT_BYTES + weight_bytes(entry)
        other = self.bits if entry.kind in SESA_KINDS else entry.weight_bits
        # Without one scale for all of a sum, levels are multiplied as the floating point numbers that they stand for.
        price = self.c.multiply_add_pj(self.bits, other if entry.integer else None)
        return self.dense(entry, price, self.bits / 8, weight_bytes(entry), quantized=True)

    def int8(self, entry: Entry):
        return self.dense(entry, self.c.multiply_add_pj(8, 8), 1, 1, quantized=True)


def weight_bytes(entry: Entry) -> float:
    return FLOAT_BYTES if entry.weight_bits is None else entry.weight_bits / 8
