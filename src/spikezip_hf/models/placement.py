# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Which matrix products of a network see spikes: observed in a forward pass, not declared."""

from dataclasses import dataclass

import torch

from .engines import QuantEngine
from .rows import unwrap

SPIKES, WEIGHTS, ANALOG = "spikes", "weights", "analog"


@dataclass(frozen=True)
class ProductReport:
    """What the products and operators of a network take in.

    Attributes:
        products: {name: (left, right)}, each side "spikes", "weights" (static) or "analog".
        operators: {name: kind} of the non-linear operators other than activation nodes. They act on accumulated
            potentials (paper Eq. 5), so they are analog by nature: Softmax, LayerNorm, and Tanh where a head has one.
            The LayerNorm of a text's embeddings is not among them: it belongs to the input, a static current.
    """

    products: dict[str, tuple[str, str]]
    operators: dict[str, str]

    @property
    def analog(self) -> list[str]:
        """Names of the products with an analog side. The paper's claim is that there are none behind the input."""
        return [name for name, sides in self.products.items() if ANALOG in sides]

    @property
    def operator_counts(self) -> str:
        """How many operators of each kind there are: "6 Softmax, 12 LayerNorm"."""
        kinds = list(self.operators.values())
        return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "none"

    def __str__(self) -> str:
        kinds: dict[tuple[str, str], int] = {}
        for sides in self.products.values():
            kinds[sides] = kinds.get(sides, 0) + 1
        lines = [
            f"{len(self.products)} products: "
            + ", ".join(f"{count} {left} x {right}" for (left, right), count in kinds.items()),
            "analog input: " + (", ".join(self.analog) or "none"),
            f"operators on accumulated potentials: {self.operator_counts}",
        ]
        return "\n".join(lines)


class ProvenanceEngine(QuantEngine):
    """A QuantEngine that follows where the operands of each product come from.

    What a node fires is known again by its memory: views of it (heads, transposes) share that, and anything computed
    from it does not.
    """

    def __init__(self) -> None:
        self.fired: dict[int, torch.Tensor] = {}  # keeps the tensors alive, or their memory would be used again
        self.products: dict[str, tuple[str, str]] = {}
        self.operators: dict[str, str] = {}

    def side(self, x: torch.Tensor) -> str:
        return SPIKES if x.untyped_storage().data_ptr() in self.fired else ANALOG

    def remember(self, spikes: torch.Tensor) -> torch.Tensor:
        self.fired[spikes.untyped_storage().data_ptr()] = spikes
        return spikes

    def encode(self, module, inputs, per_step=False):
        self.products[module.name] = (ANALOG, WEIGHTS)
        return super().encode(module, inputs, per_step)

    def linear(self, module, x):
        self.products[module.name] = (self.side(x), WEIGHTS)
        return super().linear(module, x)

    def matmul(self, product, a, b):
        self.products[product.name] = (self.side(a), self.side(b))
        return super().matmul(product, a, b)

    def pool(self, module, x):
        pooled = super().pool(module, x)
        # Its weights 1/N are static ones, as those of the product behind it are: that one still sees spikes.
        return self.remember(pooled) if self.side(x) == SPIKES else pooled

    def apply(self, operator, x, *others):
        self.operators[operator.name] = type(operator).__name__
        return super().apply(operator, x, *others)

    def first_token(self, x):
        first = super().first_token(x)
        return self.remember(first) if self.side(x) == SPIKES else first

    def rearrange(self, x, function):
        rearranged = super().rearrange(x, function)
        return self.remember(rearranged) if self.side(x) == SPIKES else rearranged

    def fire(self, node, current):
        return self.remember(node(unwrap(self.silence_padding(current))))
