"""Ideals of a graph are all of its sets that contain every producer of their members."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.planner.peers.ideals import list_ideals
from tests.planner.graphs import random_edges


@given(st.integers(1, 7).flatmap(lambda count: st.tuples(st.just(count), random_edges(count))))
def test_all_closed_sets_are_listed_once_and_nested_as_sets_are(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    """Law: the list equals brute force over all subsets; cuts are producers with a consumer outside."""
    count, edges = drawn
    ideals = list_ideals(count, edges, limit=2**count + 1)
    rows = [tuple(bool(x) for x in row) for row in ideals.inside]
    closed = [row for row in product((False, True), repeat=count) if all(row[a] or not row[b] for a, b in edges)]
    assert ideals.complete
    assert sorted(rows) == sorted(closed)
    assert [sum(row) for row in rows] == sorted(sum(row) for row in rows)
    cut = ideals.cut_producers(edges)
    for i, inner in enumerate(rows):
        assert [bool(x) for x in cut[i]] == [any(a == t and inner[a] and not inner[b] for a, b in edges) for t in range(count)]
        for j, outer in enumerate(rows):
            assert ideals.nested[i, j] == (i != j and all(y or not x for x, y in zip(inner, outer, strict=True)))


def test_beyond_the_limit_only_prefixes_of_one_order_remain() -> None:
    """By hand: 2 branches of 3 tasks have 16 ideals; with a limit of 10 the 7 prefixes of an order are left."""
    edges = [(0, 1), (1, 2), (3, 4), (4, 5)]
    assert len(list_ideals(6, edges, limit=16)) == 16
    short = list_ideals(6, edges, limit=10)
    assert not short.complete
    assert short.inside.sum(axis=1).tolist() == list(range(7))
    assert all(row[a] or not row[b] for row in short.inside for a, b in edges)
