"""Where the kernels find no memory for what they need on the way, they say so; with every allocation in turn."""

import ctypes
from itertools import count

import pytest
import torch

from spikezip_hf.kernels import building, native
from spikezip_hf.models.kernels import exponentials, integer_softmax
from tests.kernels.test_building import needs_compiler

pytestmark = needs_compiler

# Ahead of the source: allocations that fail once so many have been made; -1 for never. All from then on, or one.
FAILING = """
#define _GNU_SOURCE
#include <stdlib.h>
static long left = -1, again;
void allocations_left(long count, long all) { left = count, again = all ? 0 : -1; }
static int fails(void) { return __atomic_load_n(&left, __ATOMIC_SEQ_CST) >= 0 &&
                                __atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST) <= 0 && (left = again, 1); }
static void *failing_malloc(size_t size) { return fails() ? NULL : malloc(size); }
static void *failing_aligned_alloc(size_t to, size_t size) { return fails() ? NULL : aligned_alloc(to, size); }
#define malloc failing_malloc
#define aligned_alloc failing_aligned_alloc
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.h").write_text(FAILING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        compiler = next(filter(None, map(building.shutil.which, ("cc", "gcc", "clang"))))
        return native.Library(ctypes.CDLL(str(building.build(f"{compiler} -include {folder / 'failing.h'}"))))


def neurons(library, current, scale=None):
    tracer = torch.zeros(1, *current.shape[1:], dtype=torch.int8)
    index, threshold = torch.tensor([[0], [1], [2]]), torch.ones(1)
    return library.fire(current, scale, scale, threshold, (-8, 7), index, tracer, None, 15, 0)


def operations():
    """{name: (whether it needs products, what is done with a library)}"""
    floats, scale = torch.randn(3, 40, 70), torch.rand(70) + 0.1
    levels = torch.randint(-8, 8, (3, 40, 70), dtype=torch.int8)
    levels[1] = levels[0]
    levels[1, :, :3] += 1  # few events
    heads = torch.randint(-8, 8, (2, 3, 20, 30), dtype=torch.int8)
    one = torch.ones(1)

    def panels(library):
        return library.weight_panels(torch.randn(70, 70, generator=torch.Generator().manual_seed(0)), scale, 127)

    def wide(library):
        return library.fixed_point(floats[0], scale)

    def probabilities(library):
        product = library.deferred(levels[:, None], levels[:, None].mT)
        return integer_softmax(product, exponentials(one / 100), None)

    def contexts(library):
        return library.deferred(levels[:, None, :, :40], levels[:, None, :, :20]).contexts()

    return {
        "neurons of floats": (False, lambda library: neurons(library, floats)),
        "neurons of integers": (False, lambda library: neurons(library, levels.int(), scale)),
        "neurons of a product": (True, lambda library: neurons(library, panels(library).times(levels), scale)),
        "neurons of a product in fixed point": (
            True,
            lambda library: neurons(library, wide(library).times(levels), scale[:40]),
        ),
        "neurons of a softmax": (True, lambda library: neurons(library, probabilities(library))),
        "neurons of contexts": (True, lambda library: neurons(library, contexts(library), one)),
        "values": (False, lambda library: library.values(levels, scale, scale)),
        "a sum": (False, lambda library: library.sum([(levels, scale, scale, None), (levels, scale, scale, None)])),
        "levels of a weight": (False, lambda library: library.weight_levels(floats[0, :, :40], scale[:40], 127)),
        "panels": (True, lambda library: panels(library).panels),
        "linear": (True, lambda library: library.linear(panels(library).times(levels))),
        "linear in fixed point": (True, lambda library: library.linear(wide(library).times(levels))),
        "values of linear": (True, lambda library: library.linear(panels(library).times(levels), scale, scale)),
        "products": (True, lambda library: library.products(heads, heads.mT)),
        "values of products": (True, lambda library: library.products(heads, heads.mT, one)),
    }


@pytest.mark.parametrize("every", [0, 1])  # only one of them, or all from then on
@pytest.mark.parametrize("name", operations())
def test_each_allocation_may_fail(library, name, every):
    needs_products, operation = operations()[name]
    if needs_products and not library.has_products:
        pytest.skip("this processor multiplies no bytes")
    expected = operation(library)
    try:
        for allocations in count():
            library.functions.allocations_left(allocations, every)
            try:
                found = operation(library)
                break
            except MemoryError:
                continue
    finally:
        library.functions.allocations_left(-1, 0)
    assert allocations > 0, "it allocates nothing"
    pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
