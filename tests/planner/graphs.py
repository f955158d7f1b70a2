"""Small random graphs for tests of solvers."""

from itertools import combinations

from hypothesis import strategies as st


def random_edges(count: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Some of the pairs (earlier, later) of so many tasks."""
    pairs = list(combinations(range(count), 2))
    return st.lists(st.sampled_from(pairs), unique=True, max_size=8) if pairs else st.just([])
