"""The lower bound by hand; that no simulated step beats it is a law in tests/simulator/test_laws.py."""

from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Exchange, Pricing, StagePrice
from chinchilla_sim.planner.space.bound import step_lower_bound_s


def cluster_of(count: int, link: Link) -> Cluster:
    """A cable for every pair."""
    slots = tuple(f"slot{index}" for index in range(count))
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(slots)
    graph.add_edges_from(((a, b) for a in slots for b in slots if a != b), link=link)
    return Cluster(graph, slots, (Device("d", 1.0, 1.0),) * count, Backend("plain"))


def pipeline(stages: int, count: int, schedule: str = "1f1b") -> tuple[Plan, Pricing]:
    """Equal stages: F 1 s, B 2 s, 20 B over a boundary."""
    plan = Plan(
        stages=tuple((f"task{stage}",) for stage in range(stages)),
        placement=tuple((stage,) for stage in range(stages)),
        slots=tuple(range(stages)),
        global_batch_size=count,
        microbatch_count=count,
        schedule=schedule,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
    )
    price = StagePrice({Op.F: 1.0, Op.B: 2.0, Op.OPTIM: 0.0}, 0.0, {}, 0.0)
    boundaries = (20.0,) * (stages - 1)
    return plan, Pricing(((price,),) * stages, boundaries, boundaries, (Exchange("all_reduce"),) * stages)


def test_two_stages_by_hand() -> None:
    """Over 1 s and 10 B/s: 1 + 3 s until stage 1 starts, two microbatches of 3 s there, 3 + 2 s back: 15 s, as simulated."""
    assert step_lower_bound_s(*pipeline(2, 2), cluster_of(2, Link(1.0, 10.0))) == 15


def test_inference_by_hand() -> None:
    """Forward only: 1 + 3 s until stage 1 starts, two microbatches of 1 s, and nothing comes back."""
    assert step_lower_bound_s(*pipeline(2, 2, "forward"), cluster_of(2, Link(1.0, 10.0))) == 6


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from(["gpipe", "1f1b"]))
def test_bound_of_equal_stages_is_the_textbook_step(stages: int, count: int, schedule: str) -> None:
    """With free links it is exact: (m + p - 1) (F + B)."""
    plan, pricing = pipeline(stages, count, schedule)
    assert step_lower_bound_s(plan, pricing, cluster_of(stages, Link(0.0, float("inf")))) == pytest.approx((count + stages - 1) * 3)


def test_ends_and_accumulation_count_by_hand() -> None:
    """One stage, three microbatches: 3 x 3 s, two additions of 0.5 s, then exchange 4 s, packing 1 s and 2 s, optimizer 1 s."""
    plan, pricing = pipeline(1, 3)
    seconds = {**pricing.stages[0][0].action_s, Op.ENCODE_GRAD: 1.0, Op.DECODE_GRAD: 2.0, Op.OPTIM: 1.0}
    price = replace(pricing.stages[0][0], action_s=seconds, accumulation_s=0.5)
    plan = replace(plan, gradient_codecs=("int8",))
    pricing = replace(pricing, stages=((price,),), gradients=(Exchange("all_gather", idle_s=4.0),))
    assert step_lower_bound_s(plan, pricing, cluster_of(1, Link(0.0, 1.0))) == 9 + 1 + 8
