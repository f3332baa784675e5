# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""What the compiler made, held to plain torch before its first use: a small case of everything.

Written out, as the references in `models` would ask for the very library that is being checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .deferred import MatrixProduct, Probabilities

if TYPE_CHECKING:
    from .native import Library


def gives_reference(kernels: Library) -> bool:
    """Whether a small case of everything comes out as plain torch has it."""
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((5, 7, 5), (43, 8, 70)) if kernels.has_products else ():
        a = torch.randint(-128, 128, (2, m, 3, k), generator=generator, dtype=torch.int8).transpose(1, 2)
        b = torch.randint(-128, 128, (2, 3, k, n), generator=generator, dtype=torch.int8)
        a[:, :, 32:] = b[:, :, :2] = b[:, :, -1:] = 0  # as at padding
        for right in (b, b.mT.contiguous().mT):
            if not torch.equal(kernels.products(a, right).double(), torch.matmul(a.double(), right.double())):
                return False
    products = multiplies_weights, softens_scores, joins_heads, multiplies_at_bounds
    if kernels.has_products and not all(right(kernels, generator) for right in products):
        return False
    features, bounds = 33, (-8, 7)
    weight, steps = torch.randn(70, features, generator=generator), torch.rand(70, generator=generator) / 20 + 0.01
    exact = torch.floor(weight / steps[:, None] + 0.5).clamp(-127, 127).to(torch.int8).t()
    if not torch.equal(kernels.weight_levels(weight, steps, 127), exact):
        return False
    integers = torch.randint(-20, 20, (6, features), generator=generator, dtype=torch.int32)
    scale, bias, threshold = (torch.rand(features, generator=generator) + 0.1 for _ in range(3))
    values = integers * scale + bias
    if not torch.equal(kernels.values(integers, scale, bias), values):
        return False
    if not torch.equal(kernels.values(integers.to(torch.int8), scale, None), integers * scale):
        return False
    levels, rows = integers.to(torch.int8).view(3, 2, features), torch.tensor([0, 1, 1, 2])  # of two vectors each
    for term, plain in (
        ((integers.view(3, 2, features), scale, bias), values.view(3, 2, features)),
        ((levels, scale, None), (integers * scale).view(3, 2, features)),
    ):
        total = kernels.sum([(*term, rows), (plain, None, None, rows.flip(0))])
        if not torch.equal(total, plain[rows] + plain[rows.flip(0)]):
            return False
    targets = torch.floor(values / threshold + 0.5).clamp(*bounds).to(torch.int8).view(3, 2, 1, features)
    tokens = torch.tensor([[True], [False]])
    targets[:, 1] = 0
    for max_spikes, closed, coarse in ((1, 1, 0), (15, 0, 0), (1, 0, 2), (3, 1, 2)):
        tracer = torch.zeros(2, 1, features, dtype=torch.int8)
        expected: list[torch.Tensor] = []
        for step, target in enumerate(targets):
            before = expected[-1] if expected else tracer
            k = 0 if step < closed else max_spikes
            behind = target - before
            if step < coarse:
                behind = behind.masked_fill(behind.abs() < 2, 0)
            expected.append(before + behind.clamp(-k, k))
        index = torch.arange(6).view(3, 2)
        for current in (integers, values):
            given = current.view(6, 1, features), scale, bias, threshold, bounds, index, tracer.clone(), tokens
            rows, changed, row_of, counts, at_target, undefined = kernels.fire(*given, max_spikes, closed, coarse)
            levels = rows[row_of]
            spikes = torch.stack(expected).diff(dim=0, prepend=tracer[None]).flatten(2).abs().sum(-1)
            settled = (expected[-1] == targets[-1]).flatten(1).all(1)
            moves = spikes > 0
            moves[0] = True
            found = (levels, changed, counts, at_target)
            if undefined or not all(map(torch.equal, found, (torch.stack(expected), moves, spikes, settled))):
                return False
    # More than one block of elements in each of two heads, padding, and steps at which nothing new comes; from 0.
    current = torch.randn(2, 2, 300, features, generator=generator)
    index = torch.tensor([[0], [0], [1], [1]])
    targets = torch.floor(current / threshold + 0.5).clamp(*bounds).to(torch.int8)
    for mask in (None, padding_at_the_ends(300)):
        tracer = torch.full((1, 2, 300, features), 7, dtype=torch.int8)
        rows, _, row_of, counts, *_ = kernels.fire(
            current, None, None, threshold, bounds, index, tracer, mask, 15, 0, fresh=True
        )
        silenced = targets if mask is None else targets * mask[..., None]
        fired = [int(x.abs().sum()) for x in (silenced[0].int(), silenced[1].int() - silenced[0])]
        if row_of[:, 0].tolist() != [0, 0, 1, 1] or not torch.equal(rows, silenced):
            return False
        if counts[:, 0].tolist() != [fired[0], 0, fired[1], 0]:
            return False
        if not torch.equal(tracer, silenced[-1:]):
            return False
    values[0, 0] = torch.nan
    index, tracer = torch.zeros(1, 1), torch.zeros(1, 1, features, dtype=torch.int8)
    return kernels.fire(values[:1], None, None, threshold, bounds, index, tracer, None, 1, 0)[-1]


def multiplies_at_bounds(kernels: Library, _: torch.Generator) -> bool:
    """Whether products are exact of levels and weights at their bounds, where sums on the way are as large as can be.

    AVX2 adds up as many products of bytes in 16 bits as the range of a row's levels leaves room for: rows of one range
    after another, from 0 down and from 0 up. Of events, more change at once than are added in 16 or 32 bits.
    """
    far, many = torch.arange(255, 0, -1)[:, None], torch.arange(300)
    few, low, high = (7 * far + many) % 19 == 0, -far.clamp(max=128), far.clamp(max=127)
    b = torch.full((1, 1, 300, 3), 127, dtype=torch.int8)
    b[..., 1], b[..., ::2, 2] = -128, -128
    for ends in (torch.where(few, low + far, low), torch.where(few, high - far, high)):
        a = ends.to(torch.int8)[None, None]
        if not torch.equal(kernels.products(a, b).double(), torch.matmul(a.double(), b.double())):
            return False
    levels = (many < 140).to(torch.int8).expand(2, -1) * torch.tensor([0, 1, 0], dtype=torch.int8)[:, None, None]
    tokens, ones = torch.ones(1, 2, dtype=torch.bool), torch.ones(2)
    for most, operand_of in (
        (127, lambda weight: kernels.weight_panels(weight, ones, 127)),
        (2**23 - 1, lambda weight: kernels.fixed_point(weight, None)),
    ):
        weight = torch.full((2, 300), float(most))
        weight[1] = -most
        values = (levels.double() @ weight.double().t()).float()
        given = operand_of(weight).times(levels), ones, None
        if not fires_as_values(kernels, given, values, values.std()[None] / 3, (-8, 7), tokens):
            return False
    # Of fixed point more than 256 at once, and lower halves as far from 0 as they can be.
    weight = torch.full((2, 600), 1 + 2**-10)
    weight[1] = torch.arange(600) / 512
    levels = torch.full((2, 600), -128, dtype=torch.int8)
    levels[1, ::2] = 127
    product = kernels.fixed_point(weight, None).times(levels)
    return torch.equal(kernels.linear(product), levels.double() @ weight.double().t())


def multiplies_weights(kernels: Library, generator: torch.Generator) -> bool:
    """Whether small products with weights come out as plain torch has them, by themselves and with neurons.

    The levels are of seven steps: few change in the second, so that it is made of events, and most in the third and
    fourth; all but few go on as they moved in the fifth, and again in the sixth; and in the seventh one would go on
    beyond a byte, at a place between those that tell which way is nearer. There is padding at either end.
    """
    tokens = padding_at_the_ends(35)
    first, other = torch.randint(-128, 128, (2, 35, 70), generator=generator, dtype=torch.int8)
    few = (torch.rand(35, 70, generator=generator) < 0.02) * torch.randint(-3, 4, (35, 70), generator=generator)
    far, move = other.clamp(-100, 100), 4 * torch.randint(0, 2, (35, 70), generator=generator) - 2
    far[4, 0], move[4, 0], few[4, 0] = 121, 2, 0
    on = [far + step * move + few * (step > 1) for step in range(5)]
    levels = torch.stack([x.clamp(-128, 127).to(torch.int8) for x in (first, first + few, *on)])
    weight, scale = (
        torch.randint(-127, 128, (66, 70), generator=generator),
        torch.rand(66, generator=generator) + 0.1,
    )
    bytes_ = kernels.weight_panels(weight * scale[:, None], scale, 127)
    factors = 2.0 ** torch.randint(-3, 3, (70,), generator=generator)  # as powers of two, so that numbers are known
    factors[0] = 1.0
    wide = torch.randint(-(2**20), 2**20, (66, 70), generator=generator)
    wide[:, 0] = 2**23 - 1
    for operand, exact in (
        (bytes_, weight.double()),
        (kernels.fixed_point(wide.float(), None), wide.double()),
        (kernels.fixed_point(wide.float(), factors), wide * factors.double()),
    ):
        product, sums = operand.times(levels), levels.double() @ exact.t()
        if not torch.equal(kernels.linear(product).double(), sums):
            return False
        values = sums.float() * scale + scale
        if not torch.equal(kernels.linear(product, scale, scale), values):
            return False
        if not fires_as_values(kernels, (product, scale, scale), values, values.std()[None] / 3, (-8, 7), tokens):
            return False
    return True


def softens_scores(kernels: Library, generator: torch.Generator) -> bool:
    """Whether the neurons of a small softmax come out as plain torch has them."""
    q = torch.randint(-8, 8, (2, 35, 3, 7), generator=generator, dtype=torch.int8).transpose(1, 2)
    k = torch.randint(-8, 8, (2, 3, 7, 70), generator=generator, dtype=torch.int8)
    table = torch.tensor([2**30 >> distance // 8 for distance in range(256)], dtype=torch.int32)
    keys = padding_at_the_ends(70).expand(2, 1, 1, -1)
    scores = torch.matmul(q.double(), k.double()).masked_fill(~keys, -(2.0**30))
    parts = table[(scores.amax(-1, keepdim=True) - scores).clamp(max=255).long()]
    probabilities = parts.float() * parts.sum(-1, keepdim=True).float().reciprocal()
    softmax = Probabilities(MatrixProduct(kernels, q, k), table, keys, lambda *_: probabilities)
    given = softmax, None, None
    return fires_as_values(kernels, given, probabilities, torch.tensor([0.01]), (0, 15), padding_at_the_ends(35))


def joins_heads(kernels: Library, generator: torch.Generator) -> bool:
    """Whether the neurons of small contexts come out as plain torch has them."""
    probabilities = torch.randint(0, 16, (2, 3, 35, 70), generator=generator, dtype=torch.int8)
    values = torch.randint(-8, 8, (2, 70, 3, 20), generator=generator, dtype=torch.int8).transpose(1, 2)
    values[:, :, :2] = values[:, :, -3:] = 0  # as at padding
    sums, scale = torch.matmul(probabilities.double(), values.double()), torch.tensor([0.01])
    context = sums.transpose(1, 2).flatten(2).float() * scale
    given = MatrixProduct(kernels, probabilities, values).contexts(), scale, None
    return fires_as_values(kernels, given, context, context.std()[None] / 3, (-8, 7), padding_at_the_ends(35))


def fires_as_values(
    kernels: Library,
    given: tuple,
    values: torch.Tensor,
    threshold: torch.Tensor,
    bounds: tuple[int, int],
    tokens: torch.Tensor,
) -> bool:
    """Whether the neurons of a product, given with its scale and bias, are those of its values, and at their levels.

    Args:
        values: (steps, ..., N, features) of one sample.
        tokens: (1, N) bool.
    """
    index, rest = torch.arange(len(values))[:, None], torch.zeros(1, *values.shape[1:], dtype=torch.int8)
    together, alone = (
        kernels.fire(current, scale, bias, threshold, bounds, index, rest.clone(), tokens, 15, 0)
        for current, scale, bias in (given, (values, None, None))
    )
    levels = torch.floor(values / threshold + 0.5).clamp(*bounds).to(torch.int8) * tokens[..., None]
    return torch.equal(together[0], levels) and all(map(torch.equal, together[:-1], alone[:-1]))


def padding_at_the_ends(positions: int) -> torch.Tensor:
    """(1, positions) bool, which of them hold tokens: one within does not, either."""
    tokens = torch.ones(1, positions, dtype=torch.bool)
    tokens[:, :3] = tokens[:, 7] = tokens[:, -2:] = False
    return tokens
