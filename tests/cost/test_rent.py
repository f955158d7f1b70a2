"""Spot prices: what interruptions cost, and which offers are worth it."""

from itertools import combinations
from math import exp, inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.cost.failure import daly_interval_s, wall_s_per_work_s
from chinchilla_sim.cost.rent import least_prices, rent
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.goodput import simulate_goodput

HOUR_S = 3600.0


def build(*nodes: dict[str, Any]) -> Cluster:
    """Nodes at a switch."""
    named = [{"name": f"n{index}", "peak": "1 Tflop/s", "memory": "16 GB", **node} for index, node in enumerate(nodes)]
    network = {"bandwidth": "1 GB/s", "latency": "1 ms"}
    return build_cluster(ClusterSpec.model_validate({"nodes": named, "network": network}), "fp32")


def job(checkpoint: str = "30 s", restart: str = "5 min") -> JobSpec:
    """A job that can be interrupted."""
    return JobSpec.model_validate({"global_batch_size": 8, "checkpoint": checkpoint, "restart": restart})


def spot(price: str, between: str, full: str = "2 USD/h", **more: Any) -> dict[str, Any]:
    """A node with two prices."""
    return {"price": full, "spot_price": price, "time_between_interruptions": between, **more}


def test_without_offers_prices_add_up() -> None:
    """Three devices of a node at 6 USD/h: 2 each, and no time is lost."""
    found = rent(build({"devices": 3, "price": "6 USD/h"}), [0, 2], job(), SearchSpec())
    assert (found.usd_per_s * HOUR_S, found.usd_per_work_s, found.on_spot) == (pytest.approx(4.0), found.usd_per_s, ())


def test_two_spot_nodes_are_interrupted_twice_as_often() -> None:
    """By hand: two nodes every 8 h are one every 4 h; Daly's interval and waste of that; a full-price node is paid for lost time too."""
    cluster = build(spot("0.5 USD/h", "8 h", count=2), {"price": "3 USD/h"})
    found = rent(cluster, [0, 1, 2], job(), SearchSpec())
    assert (found.on_spot, found.between_interruptions_s) == (("n0",), pytest.approx(4 * HOUR_S))
    assert found.interval_s == pytest.approx(daly_interval_s(30.0, 4 * HOUR_S))
    waste = wall_s_per_work_s(found.interval_s, 30.0, 300.0, 4 * HOUR_S)
    assert found.usd_per_work_s * HOUR_S == pytest.approx((0.5 + 0.5 + 3.0) * waste)
    assert found.full_usd_per_s * HOUR_S == pytest.approx(7.0)
    # The same interruptions, played by the simulator.
    played = simulate_goodput(1.0, 30.0, 300.0, 4 * HOUR_S, seed=0)
    assert played.simulated == pytest.approx(1 / found.wall_s_per_work_s, rel=0.02)


def test_spot_is_refused_or_forced() -> None:
    """An offer that ends every 10 minutes wastes more than it saves: auto leaves it, always takes it, never takes none."""
    cluster = build(spot("1.9 USD/h", "10 min"))
    auto, always, never = (rent(cluster, [0], job(), SearchSpec(spot=mode)) for mode in ("auto", "always", "never"))
    assert (auto, auto.on_spot) == (never, ())
    assert always.on_spot == ("n0",) and always.usd_per_work_s > 2 * auto.usd_per_work_s
    assert [least_prices(cluster, SearchSpec(spot=mode))[0] * HOUR_S for mode in ("auto", "never")] == pytest.approx([1.9, 2.0])


def test_checkpoints_that_take_no_time_leave_the_restart() -> None:
    """Limit of the formula: W = e^(R/M); and what never restarts in time has no price."""
    assert rent(build(spot("0.1 USD/h", "1 h")), [0], job("0 s", "6 min"), SearchSpec()).wall_s_per_work_s == pytest.approx(exp(0.1))
    assert rent(build(spot("0.1 USD/h", "1 s")), [0], job("0 s", "1 h"), SearchSpec(spot="always")).usd_per_work_s == inf


offers = st.lists(
    st.tuples(st.sampled_from([0.2, 0.9, 1.5, 2.5]), st.sampled_from([0.2, 1.0, 10.0, 100.0]), st.integers(1, 3)), min_size=1, max_size=4
)


@given(offers)
def test_auto_takes_the_best_of_all_subsets(offers: list[tuple[float, float, int]]) -> None:
    """Oracle: every subset of the offers by the formula; nothing costs less than the least prices without interruptions."""
    cluster = build(*(spot(f"{price} USD/h", f"{hours} h", count=count) for price, hours, count in offers))
    slots = range(cluster.rank_count)
    found = rent(cluster, slots, job(), SearchSpec())
    costs = []
    for size in range(len(offers) + 1):
        for chosen in combinations(range(len(offers)), size):
            usd = sum(count * (price if index in chosen else 2.0) for index, (price, _, count) in enumerate(offers))
            rate = sum(offers[index][2] / offers[index][1] for index in chosen) / HOUR_S
            waste = wall_s_per_work_s(daly_interval_s(30.0, 1 / rate), 30.0, 300.0, 1 / rate) if rate else 1.0
            costs.append(usd * waste / HOUR_S)
    assert found.usd_per_work_s == pytest.approx(min(costs))
    assert found.usd_per_work_s >= sum(least_prices(cluster, SearchSpec())) * (1 - 1e-9)


def test_many_offers_are_taken_by_what_they_save_per_interruption() -> None:
    """Nine offers are more than are tried in all subsets: the rare interruptions are taken, the frequent ones left."""
    good, bad = spot("0.5 USD/h", "100 h"), spot("1.9 USD/h", "0.5 h")
    found = rent(build(*(good,) * 5, *(bad,) * 4), range(9), job(), SearchSpec())
    assert found.on_spot == ("n0", "n1", "n2", "n3", "n4")


def test_a_spot_price_needs_a_price_beside_it() -> None:
    """A node without a price would be free without interruptions: refused with a cure."""
    with pytest.raises(ScenarioError, match=r"cluster\.nodes\.0\.price: is not stated, so that spot_price can be compared with nothing"):
        build({"spot_price": "1 USD/h", "time_between_interruptions": "6 h"})
