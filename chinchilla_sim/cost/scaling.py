"""Which model size to train on how many tokens: the compute-optimal scaling law (Hoffmann et al. 2022), on a real cluster.

The loss after training N parameters on D tokens, each seen once (Hoffmann 2022, equation 2; coefficients in scaling_laws.toml):

    L(N, D) = E + A / N^alpha + B / D^beta                                          ScalingLaw.loss

Where a token costs t(N) = k N^g of a budget T (flop, seconds or USD), D = T / t(N) and the best size has a closed form:

    N = [alpha A / (g beta B) (T / k)^beta]^(1 / (alpha + g beta))                  ScalingLaw.best_size

With k = 6 flop and g = 1 this is Hoffmann's equation 4: N = G (C/6)^a, D = (C/6)^b / G, a = beta / (alpha + beta), b = 1 - a,
G = (alpha A / (beta B))^(1 / (alpha + beta)). A simulated cluster has no one k and g: large models use it better, until they must be
split. There ln t is a parabola in ln N through the simulated sizes (least squares), and the best size is where more parameters would
win as much as their tokens lose:

    alpha A / N^alpha = g(N) beta B / D^beta,   g = d ln t / d ln N,   D = T / t(N)     best_trades, by bisection

N counts all parameters with the embedding, as Hoffmann's table A9 and fits do (Pearce & Song 2024).

The coefficients are uncertain together: (ln E, ln A, ln B, alpha, beta) are normal with the correlations of the table, drawn by
`ScalingLaw.draws`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from math import exp, inf, log
from typing import TYPE_CHECKING, Any

from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DEFAULT_LAW = "besiroglu-2024"
FLOP_PER_PARAMETER = 6.0
"""Of training, per parameter and token: 2 forward, 4 backward (Kaplan 2020, section 2.1)."""
REACH = 100.0
HALVINGS = 60


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """E, A, B, alpha and beta of the law; without `deviations` nothing is known about how uncertain they are.

    `deviations` are standard deviations of (ln E, ln A, ln B, alpha, beta), `correlations` those between them.
    """

    name: str
    floor: float
    size_factor: float
    token_factor: float
    size_exponent: float
    token_exponent: float
    source: str = ""
    deviations: tuple[float, ...] = ()
    correlations: tuple[tuple[float, ...], ...] = ()
    smallest: float = 0.0
    largest: float = inf
    """Parameters of the smallest and largest model that the law was fitted to."""
    most_flop: float = inf
    """Training flop of the longest of those runs."""

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token; infinite without any token."""
        if tokens <= 0:
            return inf
        return float(self.floor + self.size_factor / parameters**self.size_exponent + self.token_factor / tokens**self.token_exponent)

    def best_size(self, budget: float, factor: float = FLOP_PER_PARAMETER, exponent: float = 1.0) -> float:
        """Parameters with the least loss where a token costs factor * parameters^exponent of the budget.

        >>> f"{find_law('hoffmann-2022').best_size(5.76e23):.3g}"  # approach 3 at the budget of Gopher: 40 B (table A3)
        '4.04e+10'
        """
        alpha, beta = self.size_exponent, self.token_exponent
        ratio = log(alpha * self.size_factor / (exponent * beta * self.token_factor)) + beta * log(budget / factor)
        return float(exp(ratio / (alpha + exponent * beta)))

    def least_budget(self, parameters: float, factor: float = FLOP_PER_PARAMETER, exponent: float = 1.0) -> float:
        """The budget whose best size this is: the inverse of `best_size`."""
        alpha, beta = self.size_exponent, self.token_exponent
        ratio = exponent * beta * self.token_factor / (alpha * self.size_factor)
        return float(factor * (ratio * parameters ** (alpha + exponent * beta)) ** (1.0 / beta))

    def draws(self, count: int, seed: int = 0) -> tuple[ScalingLaw, ...]:
        """Laws drawn from the coefficients' joint distribution; the law itself `count` times where that is not known."""
        if not self.deviations:
            return (self,) * count
        import numpy as np

        roots, axes = np.linalg.eigh(np.array(self.correlations))
        shape = axes * np.sqrt(np.maximum(roots, 0.0)) * np.array(self.deviations)[:, None]
        # The shape turns with the signs of eigenvectors, which no library promises: the largest part of each is made positive.
        shape *= np.sign(shape[np.abs(shape).argmax(axis=0), range(len(roots))])
        drawn = np.random.default_rng(seed).standard_normal((count, len(roots))) @ shape.T
        return tuple(self._moved(*row) for row in drawn.tolist())

    def _moved(self, floor: float, size: float, token: float, alpha: float, beta: float) -> ScalingLaw:
        return ScalingLaw(
            self.name,
            self.floor * exp(floor),
            self.size_factor * exp(size),
            self.token_factor * exp(token),
            self.size_exponent + alpha,
            self.token_exponent + beta,
        )


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(files("chinchilla_sim.cost").joinpath("scaling_laws.toml").read_text())


def law_names() -> list[str]:
    """Names that `--law` accepts."""
    return sorted(_tables())


def find_law(name: str) -> ScalingLaw:
    """A law of scaling_laws.toml; an unknown name is a ScenarioError that lists the known ones."""
    if name not in law_names():
        raise ScenarioError([Mistake("--law", f"{name!r} is not known", f"write one of {', '.join(law_names())}")])
    entry = _tables()[name]
    return ScalingLaw(
        name=name,
        floor=float(entry["E"]),
        size_factor=float(entry["A"]),
        token_factor=float(entry["B"]),
        size_exponent=float(entry["alpha"]),
        token_exponent=float(entry["beta"]),
        source=f"{entry['source']} ({entry['date']})",
        deviations=tuple(map(float, entry["deviations"].values())) if "deviations" in entry else (),
        correlations=tuple(tuple(map(float, row)) for row in entry.get("correlations", ())),
        smallest=float(entry["smallest"]),
        largest=float(entry["largest"]),
        most_flop=float(entry["most_flop"]),
    )


@dataclass(frozen=True, slots=True)
class Trade:
    """A size, the tokens that the budget has for it, and the loss that the law expects."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class TokenCost:
    """What a token costs by model size, in the unit of the budget: smooth through some sizes (ascending) whose `costs` are known.

    ln cost is a parabola in ln size; of two sizes a line, and one alone has a token cost as its size. Beyond the ends it goes on straight.
    Where it is `bounded`, no model larger than the last size can be trained.
    """

    sizes: tuple[float, ...]
    costs: tuple[float, ...]
    bounded: bool = False

    @cached_property
    def _curve(self) -> tuple[float, ...]:
        """Coefficients over ln(size / the first size), the highest power first."""
        import numpy as np

        if len(self.sizes) == 1:
            return (1.0, log(self.costs[0]))
        places = np.log(np.array(self.sizes) / self.sizes[0])
        fitted = np.polyfit(places, np.log(self.costs), min(2, len(self.sizes) - 1))
        return tuple(float(value) for value in fitted)

    def cost(self, parameters: float) -> float:
        """What a token costs at any size."""
        import numpy as np

        return float(np.exp(self.logs(np.array(log(parameters)))[0]))

    def exponent(self, parameters: float) -> float:
        """The power of the size with which it grows there."""
        import numpy as np

        return float(self.logs(np.array(log(parameters)))[1])

    def logs(self, log_sizes: Floats) -> tuple[Floats, Floats]:
        """ln cost and its slope at logarithms of sizes."""
        import numpy as np

        places = log_sizes - log(self.sizes[0])
        inside = np.clip(places, 0.0, log(self.sizes[-1] / self.sizes[0]))
        slope: Floats = np.asarray(np.polyval(np.polyder(np.array(self._curve)), inside), np.float64)
        return np.polyval(self._curve, inside) + slope * (places - inside), slope

    @property
    def misfit(self) -> float:
        """By how much the curve misses the worst of the known costs, as a share."""
        return max(abs(self.cost(size) / cost - 1) for size, cost in zip(self.sizes, self.costs, strict=True))


def trade_at(law: ScalingLaw, token_cost: float, budget: float, parameters: float) -> Trade:
    """The budget spent on one size, of which a token costs so much."""
    tokens = budget / token_cost
    return Trade(parameters, tokens, law.loss(parameters, tokens))


def best_trades(laws: Sequence[ScalingLaw], cost: TokenCost, budgets: Sequence[float]) -> list[Trade]:
    """For each law and its budget the size with the least loss, from REACH times less than the first known size to REACH times the last.

    >>> law = ScalingLaw("by hand", 1.0, 1.0, 1.0, 0.5, 0.5)  # symmetrical: half of the (logarithmic) budget each
    >>> (found,) = best_trades([law], TokenCost((1.0, 4.0), (1.0, 4.0)), [1e4])
    >>> round(found.parameters, 6), round(found.tokens, 6), round(found.loss, 6)
    (100.0, 100.0, 1.2)
    """
    import numpy as np

    alpha, beta = np.array([law.size_exponent for law in laws]), np.array([law.token_exponent for law in laws])
    size_pull = alpha * np.array([law.size_factor for law in laws])
    token_pull = beta * np.array([law.token_factor for law in laws])
    log_budgets = np.log(np.array(budgets))
    low = np.full(len(laws), log(cost.sizes[0] / REACH))
    high = np.full(len(laws), log(cost.sizes[-1] * (1.0 if cost.bounded else REACH)))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        log_cost, exponent = cost.logs(middle)
        larger = size_pull * np.exp(-alpha * middle) > exponent * token_pull * np.exp(beta * (log_cost - log_budgets))
        low, high = np.where(larger, middle, low), np.where(larger, high, middle)
    sizes = np.exp(high).tolist()
    return [trade_at(law, cost.cost(size), budget, size) for law, budget, size in zip(laws, budgets, sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class Range:
    """The middle nine tenths of what may be: p5, p50 and p95."""

    p5: float
    p50: float
    p95: float


def range_of(values: Sequence[float]) -> Range:
    """Quantiles of draws.

    >>> range_of([1.0, 2.0, 3.0])
    Range(p5=1.1, p50=2.0, p95=2.9)
    """
    import numpy as np

    low, middle, high = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
    return Range(low, middle, high)


@dataclass(frozen=True, slots=True)
class Futures:
    """Laws and true costs of a token (over simulated ones) as they may be, drawn together."""

    laws: tuple[ScalingLaw, ...]
    cost_factors: tuple[float, ...]

    def best(self, cost: TokenCost, budget: float) -> list[Trade]:
        """The best trade in each."""
        return best_trades(self.laws, cost, [budget / factor for factor in self.cost_factors])

    def at(self, token_cost: float, budget: float, parameters: float) -> list[Trade]:
        """What becomes in each of one size, of which a token is to cost so much."""
        both = zip(self.laws, self.cost_factors, strict=True)
        return [trade_at(law, token_cost * factor, budget, parameters) for law, factor in both]


def draw_futures(law: ScalingLaw, p5: float, p95: float, count: int, seed: int) -> Futures:
    """Draws of the law, and of the factor by which a token costs more than simulated, whose p5 and p95 are known and whose median is 1.

    The factor is log-normal to either side of 1, one for all sizes: what a simulator gets wrong about a cluster it gets wrong for all.
    """
    import numpy as np

    z95 = 1.6448536269514722
    drawn = np.random.default_rng([seed, 1]).standard_normal(count).tolist()
    factors = tuple(exp(-z / z95 * log(p5)) if z < 0 else exp(z / z95 * log(p95)) for z in drawn)
    return Futures(law.draws(count, seed), factors)
