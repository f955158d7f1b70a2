"""Sizes of a family: counts are those of the graphs, shapes are about those that were published."""

from itertools import pairwise

import pytest

from chinchilla_sim.graph.zoo import FORMULAS
from chinchilla_sim.graph.zoo.ladder import WIDEST, Ladder, common_options, layers_of, width_of

PUBLISHED = [
    *((12, 768), (24, 1024), (24, 1536), (24, 2048), (32, 2560), (32, 4096), (40, 5120), (96, 12288)),  # Brown 2020, table 2.1
    *((32, 4096), (40, 5120), (60, 6656), (80, 8192)),  # Touvron 2023, table 2
    (80, 8192),  # Hoffmann 2022, table 4
]


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("rung", [0, 3, 6])
def test_counts_are_those_of_the_graph(family: str, rung: int) -> None:
    """Parameters counted from two small graphs are those of the whole one; without embeddings they are 12 layers width^2 or so."""
    size = Ladder(family, {"tokens": 64, "vocabulary": 1000}).size(rung)
    assert FORMULAS[family](batch_size=2, **size.options).parameter_count == size.parameters
    layers, width = size.options["layers"], size.options["width"]
    assert size.inner_parameters == pytest.approx(12 * layers * width**2, rel=0.10)
    outer = size.parameters - size.inner_parameters
    assert outer == width * (1000 + 64 if family == "gpt" else 2 * 1000)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_sizes_rise_and_divide_well(family: str) -> None:
    """Every rung is larger than the one before, by less than twice; depth in fours, heads of 64 or 128, whole inner widths."""
    ladder = Ladder(family, {})
    sizes = [ladder.size(rung) for rung in range(WIDEST + 1)]
    ratios = [after.parameters / before.parameters for before, after in pairwise(sizes)]
    assert min(ratios) > 1 and max(ratios) < 2
    for size in sizes:
        options = size.options
        assert options["layers"] % 4 == 0 and options["width"] / options["heads"] in (64, 128)
    assert sizes[0].parameters < 61e6 and sizes[-1].parameters > 2e12
    assert [ladder.rung_near(size.parameters) for size in sizes] == list(range(WIDEST + 1))


def test_depths_are_about_the_published_ones() -> None:
    """Within 0.7 and 1.65 times for every published width; Llama's inner widths are met."""
    for layers, width in PUBLISHED:
        assert 0.7 <= layers / layers_of(width) <= 1.65
    ladder = Ladder("llama", {})
    inner = {size.options["width"]: size.options["inner_width"] for size in map(ladder.size, range(WIDEST + 1))}
    assert [inner[width] for width in (4096, 5120, 8192)] == [11008, 13824, 22016]


def test_a_size_near_any_count_is_near() -> None:
    """Deeper or flatter than its rung, within an eighth of what was asked."""
    ladder = Ladder("gpt", {})
    for parameters in (1e8, 7e8, 1.7e9, 5.8e9, 4e10, 1.1e11):
        assert ladder.size_near(parameters).parameters == pytest.approx(parameters, rel=0.125)
    assert ladder.size_near(1.0).options["layers"] == 4
    assert width_of(0) == ladder.size_near(1.0).options["width"]


def test_tokens_of_a_sample_are_the_scenarios() -> None:
    """Options that are no size are kept, others are not; without any the formula's own hold."""
    assert common_options("gpt", {"layers": 3, "width": 8, "tokens": 2048, "vocabulary": 100}) == {"tokens": 2048, "vocabulary": 100}
    assert Ladder("gpt", {"tokens": 2048}).tokens == 2048
    assert (Ladder("gpt", {}).tokens, Ladder("llama", {}).tokens) == (1024, 4096)
