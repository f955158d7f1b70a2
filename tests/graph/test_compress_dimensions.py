"""Dimensions that must shrink together: products, sums and what freezes them."""

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.graph.compress.dimensions import Dimensions


def test_equal_dimensions_shrink_alike() -> None:
    """What shrinks one leaf shrinks all that are unified with it."""
    dims = Dimensions()
    one, other, alone = dims.new(8), dims.new(8), dims.new(8)
    dims.unify(one, other)
    kept = {dims.find(other): 3}
    assert [dims.shrunk(dimension, kept) for dimension in (one, other, alone)] == [3, 3, 8]


def test_a_reshape_splits_a_leaf_into_factors() -> None:
    """768 = 12 x 64: with 6 of 12 heads gone, 384 are left."""
    dims = Dimensions()
    width = dims.new(768)
    heads, each = dims.regroup([width], [12, 64])
    assert dims.shrunk(width, {dims.find(heads): 6}) == 6 * 64
    assert list(dims.leaves(width)) == [heads, each]


def test_a_concatenation_is_the_sum_of_its_parts() -> None:
    """64 + 32 channels, of which the second lose half, are 80."""
    dims = Dimensions()
    first, second, weight = dims.new(64), dims.new(32), dims.new(96)
    dims.unify(weight, dims.sum([first, second]))
    assert dims.shrunk(weight, {second: 16}) == 80


def test_cutting_a_leaf_makes_it_a_sum() -> None:
    """Queries, keys and values of one fused weight may then differ, until they are made equal."""
    dims = Dimensions()
    fused = dims.new(96)
    parts = dims.cut(fused, [32, 32, 32])
    assert parts is not None and dims.shrunk(fused, {parts[0]: 8}) == 72
    dims.unify(parts[0], parts[1])
    dims.unify(parts[1], parts[2])
    assert dims.shrunk(fused, {dims.find(parts[0]): 8}) == 24


def test_sums_with_other_borders_are_cut_where_either_is() -> None:
    """(4 + 8) equal to (8 + 4): three pieces of 4 on both sides."""
    dims = Dimensions()
    left, right = [dims.new(4), dims.new(8)], [dims.new(8), dims.new(4)]
    one, other = dims.sum(left), dims.sum(right)
    dims.unify(one, other)
    kept = {leaf: 1 for leaf in dims.leaves(one)}
    assert len(kept) == 3 and dims.shrunk(one, kept) == dims.shrunk(other, kept) == 3


def test_what_does_not_fit_is_frozen() -> None:
    """6 x 4 cannot become 8 x 3 without mixing, and unequal lengths are no one dimension."""
    dims = Dimensions()
    six, four = dims.new(6), dims.new(4)
    assert all(dims.is_frozen(part) for part in dims.regroup([six, four], [8, 3]))
    assert dims.is_frozen(six) and dims.is_frozen(four)
    one, other = dims.new(5), dims.new(7)
    dims.unify(one, other)
    assert dims.is_frozen(one) and dims.is_frozen(other)


def test_freezing_goes_through_unification() -> None:
    """A leaf made equal to a frozen product freezes it, and the other way round."""
    dims = Dimensions()
    frozen, width = dims.new(12, frozen=True), dims.new(12)
    dims.regroup([width], [3, 4])
    dims.unify(frozen, width)
    assert all(dims.is_frozen(leaf) for leaf in dims.leaves(width))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_regrouping_keeps_the_number_of_values(sizes: list[int], data: st.DataObject) -> None:
    """However leaves are regrouped and shrunk, both sides have as many values."""
    dims = Dimensions()
    before = [dims.new(size) for size in sizes]
    cut = data.draw(st.integers(0, len(sizes)))
    targets = [prod(sizes[:cut]), prod(sizes[cut:])]
    after = dims.regroup(before, targets)
    leaves = {leaf for dimension in before for leaf in dims.leaves(dimension)}
    kept = {leaf: data.draw(st.integers(1, dims.size(leaf))) for leaf in sorted(leaves)}
    assert prod(dims.shrunk(d, kept) for d in before) == prod(dims.shrunk(d, kept) for d in after)
