"""Passes whose weights are gathered bucket by bucket (ZeRO 3), and updates that wait for the norm of all gradients, by hand."""

from dataclasses import replace

import pytest

from chinchilla_sim.cluster.topology import Backend
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Bucket, Exchange, Pricing, StagePrice
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.simulator.engine import simulate
from tests.simulator.test_engine import LINK, PLAIN, RENDEZVOUS, cables, grid, prices, spans_of

CLIPPING = {Op.F: 1.0, Op.B: 2.0, Op.NORM_GRAD: 1.0, Op.OPTIM: 2.0}


def sharded() -> tuple[Plan, Pricing]:
    """Two replicas of one stage in two equal buckets: a bucket is gathered in 1 s and summed in 3 s; F takes 2 s, B 4 s."""
    plan = replace(grid(1, 2), zero_stage=3, gradient_buckets=2)
    buckets = (Bucket(0.5, 0.5, 4.0),) * 2
    price = StagePrice({Op.F: 2.0, Op.B: 4.0, Op.OPTIM: 1.0}, 0.0, {"weights": 4.0}, 10.0, buckets=buckets)
    weights = Exchange("all_gather", 8.0, 2.0, 4.0, table=((0.0, 0.0), (8.0, 2.0)), orders=((0, 1),))
    gradients = Exchange("reduce_scatter", 8.0, 6.0, 4.0, table=((0.0, 0.0), (8.0, 6.0)), orders=((0, 1),))
    return plan, Pricing(((price, price),), (), (), (gradients,), (weights,))


@pytest.mark.parametrize(
    ("backend", "second_part_s", "sums", "step_s"), [(PLAIN, 6, [(6, 9), (9, 12)], 13), (RENDEZVOUS, 9, [(6, 9), (11, 14)], 15)]
)
def test_weights_are_gathered_ahead_by_hand(backend: Backend, second_part_s: float, sums: list[tuple[float, float]], step_s: float) -> None:
    """The next bucket's weights are asked for before this one's gradients leave; gloo's sums are waited for.

    second         0  1  2  3  4  5  6  7  8  9 10 11 12 13 14
    compute           F0 F0    B0 B0 B0 B0             O            streams
    collective     w0 w1    w1 w0    g1 g1 g1 g0 g0 g0
    compute           F0 F0    B0 B0          B0 B0          O      gloo
    collective     w0 w1    w1 w0    g1 g1 g1       g0 g0 g0
    """
    plan, pricing = sharded()
    timeline = simulate(lower(plan), pricing, cables(2, backend, LINK))
    assert timeline.step_s == step_s
    for rank in (0, 1):
        assert spans_of(timeline, rank, "compute") == [
            ("0F0", 1, 2), ("0F0", 2, 3), ("0B0", 4, 6), ("0B0", second_part_s, second_part_s + 2), ("0OPTIM", step_s - 1, step_s),
        ]  # fmt: skip
        collectives = spans_of(timeline, rank, "collective")
        assert [span[1:] for span in collectives if span[0] == "0UNSHARD"] == [(0, 1), (1, 2), (3, 4), (4, 5)]
        assert [span[1:] for span in collectives if span[0] == "0REDUCE_GRAD"] == sums


def test_updates_wait_for_the_norm_by_hand() -> None:
    """Two stages, one microbatch: the first stage's backward pass ends last, at 13; both norms are added in 3 s behind its own.

    second         0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18
    0 compute      F0                         B0 B0 N           O  O
    1 compute               F0 B0 B0 N                          O  O
    """
    plan = replace(grid(2), clips_gradients=True)
    norm = Exchange("all_reduce", 4.0, 3.0, 4.0, table=((0.0, 3.0),), orders=((0, 1),))
    pricing = replace(prices(plan, seconds=CLIPPING), norm=(norm,))
    cluster = cables(2, PLAIN, LINK)
    timeline = simulate(lower(plan), pricing, cluster)
    last_s = max(end for label, _, end in spans_of(timeline, 0, "compute") if label == "0NORM_GRAD")
    for rank in (0, 1):
        assert spans_of(timeline, rank, "collective") == [(f"{rank}REDUCE_NORM", last_s, last_s + 3)]
        assert spans_of(timeline, rank, "compute")[-1] == (f"{rank}OPTIM", last_s + 3, last_s + 5)
    assert step_lower_bound_s(plan, pricing, cluster) <= timeline.step_s
