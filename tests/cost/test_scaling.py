"""The compute-optimal scaling law: closed forms against numeric optima, and laws that hold for any coefficients."""

from math import inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from chinchilla_sim.cost.scaling import (
    ScalingLaw,
    TokenCost,
    best_trades,
    draw_futures,
    find_law,
    law_names,
    range_of,
    trade_at,
)
from chinchilla_sim.errors import ScenarioError

laws = st.builds(
    ScalingLaw,
    st.just("any"),
    st.floats(1.0, 3.0),
    st.floats(50.0, 5000.0),
    st.floats(50.0, 5000.0),
    st.floats(0.2, 0.6),
    st.floats(0.2, 0.6),
)
exponents = st.floats(0.2, 2.0)
budgets = st.floats(1e3, 1e12)
"""Of any unit, where a token costs 1e-9 of it per parameter or so."""


@st.composite
def costs(draw: st.DrawFn) -> TokenCost:
    """Costs of one to six sizes that rise with the size, and ever more so, as on a cluster that large models use fully."""
    ratios = draw(st.lists(st.floats(1.2, 4.0), max_size=5))
    first, exponent, bend = draw(st.floats(1e7, 1e9)), draw(exponents), draw(st.floats(0.0, 0.2))
    sizes = np.cumprod([first, *ratios])
    values = draw(st.floats(1e-4, 1e-2)) * np.exp(exponent * np.log(sizes / first) + bend * np.log(sizes / first) ** 2)
    return TokenCost(tuple(sizes.tolist()), tuple(values.tolist()), draw(st.booleans()))


@given(laws, budgets, exponents)
def test_closed_form_is_the_numeric_optimum(law: ScalingLaw, budget: float, exponent: float) -> None:
    """best_size minimises the loss where a token costs k N^g: no size found numerically is better, and the derivative is 0."""
    factor, best = 1e-9, law.best_size(budget, 1e-9, exponent)

    def loss(logarithm: float) -> float:
        size = float(np.exp(logarithm))
        return law.loss(size, budget / (factor * size**exponent))

    found = minimize_scalar(loss, bounds=(log(best) - 5, log(best) + 5), method="bounded", options={"xatol": 1e-9})
    assert loss(log(best)) <= found.fun * (1 + 1e-12)
    assert found.x == pytest.approx(log(best), abs=1e-3)


@given(laws, st.floats(1e18, 1e26))
def test_six_flop_per_parameter_is_the_formula_of_the_paper(law: ScalingLaw, flop: float) -> None:
    """Hoffmann's equation 4: N = G (C/6)^a, D = (C/6)^b / G."""
    alpha, beta = law.size_exponent, law.token_exponent
    scale, a = (alpha * law.size_factor / (beta * law.token_factor)) ** (1 / (alpha + beta)), beta / (alpha + beta)
    size = law.best_size(flop)
    assert size == pytest.approx(scale * (flop / 6) ** a, rel=1e-9)
    assert flop / 6 / size == pytest.approx((flop / 6) ** (1 - a) / scale, rel=1e-9)


@given(laws, st.floats(1e7, 1e12), st.floats(1e-12, 1e-3), exponents)
def test_least_budget_is_the_inverse(law: ScalingLaw, size: float, factor: float, exponent: float) -> None:
    """The budget whose best size is given has that best size."""
    assert law.best_size(law.least_budget(size, factor, exponent), factor, exponent) == pytest.approx(size, rel=1e-6)


@given(laws, costs(), budgets, st.floats(1.0, 100.0))
def test_more_budget_never_raises_the_loss(law: ScalingLaw, cost: TokenCost, budget: float, times: float) -> None:
    """Nor does it shrink the model; a space without an upper bound is no worse."""
    less, more = best_trades([law, law], cost, [budget, times * budget])
    assert more.loss <= less.loss * (1 + 1e-12) and more.parameters >= less.parameters * (1 - 1e-9)
    free = TokenCost(cost.sizes, cost.costs, bounded=False)
    assert best_trades([law], free, [budget])[0].loss <= less.loss * (1 + 1e-12)


@given(laws, costs(), budgets)
def test_no_size_is_better_than_the_best(law: ScalingLaw, cost: TokenCost, budget: float) -> None:
    """Over a fine grid of sizes that may be trained; what the best trade says of itself is what the law says of its size."""
    (best,) = best_trades([law], cost, [budget])
    most = cost.sizes[-1] * (1 if cost.bounded else 100)
    for size in np.geomspace(cost.sizes[0] / 100, most, 200).tolist():
        assert trade_at(law, cost.cost(size), budget, size).loss >= best.loss * (1 - 1e-12)
    assert best.parameters <= most * (1 + 1e-9)
    assert best.loss == trade_at(law, cost.cost(best.parameters), budget, best.parameters).loss


@given(laws, st.floats(1e18, 1e26))
def test_bisection_is_the_closed_form_where_there_is_one(law: ScalingLaw, flop: float) -> None:
    """A cluster on which a token costs 6 flop per parameter, known at two sizes that are far from the best."""
    best = law.best_size(flop)
    cost = TokenCost((best / 90, best / 30), (best / 15, best / 5))
    (found,) = best_trades([law], cost, [flop])
    assert found.parameters == pytest.approx(best, rel=1e-6)
    assert found.tokens == pytest.approx(flop / 6 / best, rel=1e-6)


@given(costs())
def test_costs_are_met_where_they_are_known(cost: TokenCost) -> None:
    """A parabola of logarithms goes through points of one, rises between and beyond them; its slope is its derivative."""
    assert cost.misfit < 1e-6
    ends = cost.sizes[0] / 10, cost.sizes[-1] * 10
    grid = np.geomspace(*ends, 50).tolist()
    values = [cost.cost(size) for size in grid]
    assert values == sorted(values)
    for size in grid[1:-1]:
        slope = log(cost.cost(size * 1.0001) / cost.cost(size / 1.0001)) / log(1.0001**2)
        assert cost.exponent(size) == pytest.approx(slope, abs=1e-3)


def test_by_hand() -> None:
    """Symmetrical exponents: half of the budget's logarithm each; a machine on which size is half as dear trains larger models."""
    law = ScalingLaw("by hand", 1.0, 1.0, 1.0, 0.5, 0.5)
    assert law.loss(100, 10_000) == pytest.approx(1.0 + 0.1 + 0.01)
    assert law.best_size(6e4) == pytest.approx(100.0)
    assert law.best_size(1e4, 1.0, 0.5) == pytest.approx((2.0 * 100.0) ** (1 / 0.75))
    assert law.loss(1.0, 0.0) == inf


def test_a_bounded_cluster_trains_its_largest_model_longer() -> None:
    """Beyond the largest size that fits nothing is offered, whatever the budget."""
    law, sizes = find_law("besiroglu-2024"), ((1e9, 2e9), (1.0, 2.0))
    assert best_trades([law], TokenCost(*sizes, bounded=True), [1e14])[0].parameters == pytest.approx(2e9)
    assert best_trades([law], TokenCost(*sizes), [1e14])[0].parameters > 1e10


def test_refit_has_twenty_tokens_per_parameter_where_it_was_fitted() -> None:
    """Besiroglu 2024: about 20 around the data's budgets; Hoffmann's printed coefficients ask for three times as many at Chinchilla's."""
    flop = 5.76e23
    refit, printed = (find_law(name).best_size(flop) for name in ("besiroglu-2024", "hoffmann-2022-rounded"))
    assert 18 <= flop / 6 / refit**2 <= 20
    assert flop / 6 / printed**2 > 60


def test_draws_have_the_published_intervals() -> None:
    """Each coefficient's 95 % interval is as wide as the published one; the best size is uncertain by a third, not by ten times."""
    law = find_law("besiroglu-2024")
    draws = law.draws(20_000)
    assert draws == law.draws(20_000)
    for values, low, high in (
        ([one.floor for one in draws], 1.769, 1.871),
        ([one.size_factor for one in draws], 285.214, 743.626),
        ([one.token_factor for one in draws], 1042.357, 5810.344),
        ([one.size_exponent for one in draws], 0.317, 0.373),
        ([one.token_exponent for one in draws], 0.331, 0.415),
    ):
        found = np.quantile(values, (0.025, 0.975))
        assert log(found[1] / found[0]) == pytest.approx(log(high / low), rel=0.06)
    shares = [one.token_exponent / (one.size_exponent + one.token_exponent) for one in draws]
    assert np.std(shares) == pytest.approx(0.020, abs=0.002)  # published: +-0.020
    sizes = range_of([one.best_size(1e22) for one in draws[:2000]])
    assert 1.05 < sizes.p95 / sizes.p5 < 1.8


def test_laws_without_uncertainty_say_so() -> None:
    """Then only the simulated step makes the range."""
    law = find_law("hoffmann-2022")
    assert law.draws(3) == (law, law, law)
    futures = draw_futures(law, 0.5, 2.0, 4000, seed=0)
    assert np.quantile(futures.cost_factors, (0.05, 0.5, 0.95)).tolist() == pytest.approx([0.5, 1.0, 2.0], rel=0.05)
    assert len(set(futures.laws)) == 1


def test_unknown_laws_are_refused() -> None:
    """With the known ones as the cure."""
    with pytest.raises(ScenarioError, match="--law: 'kaplan' is not known; write one of besiroglu-2024, hoffmann-2022"):
        find_law("kaplan")
    assert len(law_names()) == 3
