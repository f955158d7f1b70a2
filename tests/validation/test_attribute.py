"""The error of a step by cause: laws on perturbed simulations, and a story of two ranks by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.graph.zoo import mlp
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.simulator.activities import ActivityGraph, Record, Times
from chinchilla_sim.simulator.replay import replay
from chinchilla_sim.timeline import Span, Timeline, Wait
from chinchilla_sim.validation.attribute import CAUSES, Attribution, attribute
from chinchilla_sim.validation.recalibrate import Simulated
from tests.validation.reality import World, as_measured, plan_of, step_s

NODES = {
    "name": "four-nodes",
    "model": {"formula": "mlp", "widths": [784, 512, 256, 10]},
    "job": {"global_batch_size": 64},
    "cluster": {
        "nodes": [{"name": "node", "count": 4, "peak": "100 Gflop/s", "memory": "1 GiB"}],
        "network": {"bandwidth": "1 Gbit/s", "latency": "200 us"},
    },
}
factors = st.floats(0.3, 3.0)


def world() -> World:
    """Four nodes behind a gloo network."""
    scenario = parse_scenario(NODES, "test")
    cluster = build_cluster(scenario.cluster, scenario.job.precision)
    return World(mlp([784, 512, 256, 10], 64), cluster, scenario.job)


WORLD = world()
STEPS = {
    "pipeline": WORLD.simulate(plan_of(WORLD.graph, [2], microbatches=4)),
    "data parallel": WORLD.simulate(plan_of(WORLD.graph, [], replicas=2)),
    "both, packed": WORLD.simulate(
        plan_of(WORLD.graph, [2], 2, 4, gradient_codecs=("int8", "fp16"), activation_codecs=("int8",)),
    ),
}


def shares_of(told: Attribution) -> dict[str, float]:
    """Seconds by cause."""
    return {share.cause: share.error_s for share in told.shares}


def perturbed(simulated: Simulated, categories: set[str], factor: float, other: float) -> Times:
    """The step with other seconds of some kinds of spans, `other` on odd ranks; latencies are part of a transfer."""
    graph, times = simulated.graph, simulated.times
    seconds = [finish - start for start, finish in zip(times.start_s, times.finish_s, strict=True)]
    arcs = {(before, behind): lag_s for before, behind, lag_s in graph.arcs()}
    for record in {(record.first, record.last): record for record in graph.records if record.category in categories}.values():
        for number in range(record.first, record.last + 1):
            scale = other if record.rank % 2 else factor
            seconds[number] *= scale
            for before, behind in list(arcs):
                if behind == number:
                    arcs[before, behind] *= scale
    return replay(graph.retimed(seconds, [(*ends, lag_s) for ends, lag_s in arcs.items()]))


@pytest.mark.parametrize("name", STEPS)
def test_step_against_itself_has_no_error(name: str) -> None:
    """Seen through the recorder's eyes, a step explains itself: no share, no residual."""
    simulated = STEPS[name]
    told = attribute(simulated.graph, simulated.times, as_measured(simulated.graph, simulated.times), step_s(simulated))
    assert told.unmatched == 0
    assert shares_of(told) == pytest.approx(dict.fromkeys(CAUSES, 0.0), abs=1e-12)
    assert told.residual_s == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("cause", "categories"),
    [("computation", {"forward", "backward", "optimizer"}), ("transfer", {"transfer", "collective"}), ("codec", {"codec"})],
)
@settings(max_examples=15)
@given(factor=factors, other=factors)
def test_error_of_one_category_is_its_cause(name: str, cause: str, categories: set[str], factor: float, other: float) -> None:
    """A step whose spans of one category took other times blames that cause for the whole error, and nothing is left."""
    simulated = STEPS[name]
    real = perturbed(simulated, categories, factor, other)
    real_s = max(real.finish_s)
    told = attribute(simulated.graph, simulated.times, as_measured(simulated.graph, real), real_s)
    assert told.error_s == pytest.approx(step_s(simulated) - real_s, abs=1e-12)
    assert shares_of(told)[cause] == pytest.approx(told.error_s, abs=1e-9)
    assert told.residual_s == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=15)
@given(factor=factors, other=factors, median_s=st.floats(1e-4, 1.0))
def test_shares_and_residual_are_the_error(factor: float, other: float, median_s: float) -> None:
    """Whatever was measured, shares and residual add up to simulated less measured."""
    simulated = STEPS["both, packed"]
    real = perturbed(simulated, {"forward", "transfer", "codec"}, factor, other)
    told = attribute(simulated.graph, simulated.times, as_measured(simulated.graph, real), median_s)
    assert sum(shares_of(told).values()) + told.residual_s == pytest.approx(step_s(simulated) - median_s, abs=1e-12)


def two_ranks() -> tuple[ActivityGraph, Times]:
    """Rank 0 computes 2 s and packs for 1 s; the message takes 3 s (1 s latency); rank 1 computes 4 s, then updates for 1 s."""
    graph = ActivityGraph(2, held_bytes=[0.0, 0.0], holdings=[[], []])
    first = graph.add(2.0, 0)
    pack = graph.add(1.0, 0, first)
    flow = graph.add(2.0)
    graph.link(pack, flow, 1.0)
    second = graph.add(4.0, 1)
    graph.link(flow, second)
    update = graph.add(1.0, 1, second)
    graph.records += [
        Record(0, "compute", "forward", "0F0", first, first),
        Record(0, "compute", "codec", "0ENCODE_F0", pack, pack),
        Record(0, "send", "transfer", "0SEND_F0", flow, flow, 8.0),
        Record(1, "receive", "transfer", "1RECV_F0", flow, flow, 8.0),
        Record(1, "compute", "forward", "1F0", second, second),
        Record(1, "compute", "optimizer", "1OPTIM", update, update),
    ]
    return graph, replay(graph)


def test_two_ranks_by_hand() -> None:
    """Each cause has its own seconds of an error of -8.5: computation -2.5, transfer -1, waiting -1.5, fixed cost -3, codec -0.5."""
    graph, times = two_ranks()
    measured = Timeline(
        2,
        (
            Span(0, "compute", "forward", "0F0", 10.0, 13.0),  # 1 s longer
            Span(0, "compute", "codec", "0ENCODE_F0", 15.0, 16.5),  # 2 s late, 0.5 s longer
            Span(0, "send", "transfer", "0SEND_F0", 17.0, 21.0, 8.0),  # 0.5 s late, 1 s longer
            Span(1, "receive", "transfer", "1RECV_F0", 17.0, 21.0, 8.0),
            Span(1, "compute", "forward", "1F0", 22.0, 27.0),  # 1 s late, 1 s longer
            Span(1, "compute", "optimizer", "1OPTIM", 28.0, 29.5),  # 1 s late, 0.5 s longer
        ),
        waits=(Wait(1, 10.0, 21.0, "1RECV_F0"),),
    )
    told = attribute(graph, times, measured, 19.5)
    assert told.simulated_step_s == 11.0 and told.error_s == -8.5
    assert shares_of(told) == {"computation": -2.5, "transfer": -1.0, "waiting": -1.5, "fixed cost": -3.0, "codec": -0.5}
    assert told.residual_s == 0.0 and told.unmatched == 0


def test_a_rank_that_ran_ahead_is_waiting_and_no_residual() -> None:
    """Rank 0 begins 2 s before rank 1 has ended its step: the step of 9 s is simulated as 11, because nobody runs ahead there."""
    graph, times = two_ranks()
    measured = Timeline(
        2,
        (
            Span(0, "compute", "forward", "0F0", 10.0, 12.0),
            Span(0, "compute", "codec", "0ENCODE_F0", 12.0, 13.0),
            Span(0, "send", "transfer", "0SEND_F0", 13.0, 16.0, 8.0),
            Span(1, "receive", "transfer", "1RECV_F0", 13.0, 16.0, 8.0),
            Span(1, "compute", "forward", "1F0", 16.0, 20.0),
            Span(1, "compute", "optimizer", "1OPTIM", 20.0, 21.0),
        ),
        waits=(Wait(1, 12.0, 16.0, "1RECV_F0"),),
        ahead_s=2.0,
    )
    told = attribute(graph, times, measured, 9.0)
    assert shares_of(told) == {"computation": 0.0, "transfer": 0.0, "waiting": 2.0, "fixed cost": 0.0, "codec": 0.0}
    assert told.residual_s == 0.0


def test_message_that_was_found_is_no_transfer_error() -> None:
    """A receiver that looks late finds its message: how long that took is not known, and nobody is blamed but who was late."""
    graph, times = two_ranks()
    measured = Timeline(
        2,
        (
            Span(0, "compute", "forward", "0F0", 0.0, 2.0),
            Span(0, "compute", "codec", "0ENCODE_F0", 2.0, 3.0),
            Span(0, "send", "transfer", "0SEND_F0", 3.0, 9.0, 8.0),
            Span(1, "receive", "transfer", "1RECV_F0", 3.0, 9.0, 8.0),
            Span(1, "compute", "forward", "1F0", 9.0, 13.0),
            Span(1, "compute", "optimizer", "1OPTIM", 13.0, 14.0),
        ),
        waits=(Wait(1, 9.0, 9.0, "1RECV_F0"),),
    )
    told = attribute(graph, times, measured, 14.0)
    assert shares_of(told) == {"computation": 0.0, "transfer": 0.0, "waiting": -3.0, "fixed cost": 0.0, "codec": 0.0}


def test_parts_share_what_was_measured_whole() -> None:
    """A pass that is simulated in two parts of 1 s and 3 s and measured as one of 8 s counts 2 s and 6 s; what is missing is told."""
    graph = ActivityGraph(1, held_bytes=[0.0], holdings=[[]])
    one = graph.add(1.0, 0)
    two = graph.add(3.0, 0, one)
    update = graph.add(1.0, 0, two)
    graph.records += [
        Record(0, "compute", "backward", "0B0", one, one),
        Record(0, "compute", "backward", "0B0", two, two),
        Record(0, "compute", "optimizer", "0OPTIM", update, update),
    ]
    told = attribute(graph, replay(graph), Timeline(1, (Span(0, "compute", "backward", "0B0", 5.0, 13.0),)), 9.0)
    assert shares_of(told)["computation"] == -4.0
    assert told.unmatched == 1 and told.residual_s == 0.0


def test_work_between_passes_that_was_simulated_is_fixed_cost() -> None:
    """What the simulation counts into a pass for the program's own work is compared with the gap before it, not with the pass."""
    graph = ActivityGraph(1, held_bytes=[0.0], holdings=[[]])
    one = graph.add(2.5, 0)
    two = graph.add(3.5, 0, one)
    graph.records += [Record(0, "compute", "forward", "0F0", one, one), Record(0, "compute", "backward", "0B0", two, two)]
    spans = (Span(0, "compute", "forward", "0F0", 0.0, 2.0), Span(0, "compute", "backward", "0B0", 2.5, 6.5))
    told = attribute(graph, replay(graph), Timeline(1, spans), 6.5, between_s=[0.5])
    assert shares_of(told) == {"computation": -1.0, "transfer": 0.0, "waiting": 0.0, "fixed cost": 0.5, "codec": 0.0}


def test_getting_the_batch_that_was_not_simulated_is_fixed_cost() -> None:
    """A rank that first does what the simulation knows nothing of starts late by that: 2 s of fixed cost, no waiting."""
    graph = ActivityGraph(1, held_bytes=[0.0], holdings=[[]])
    one = graph.add(3.0, 0)
    graph.records.append(Record(0, "compute", "forward", "0F0", one, one))
    spans = (Span(0, "compute", "input", "INPUT", 7.0, 9.0), Span(0, "compute", "forward", "0F0", 9.0, 12.0))
    told = attribute(graph, replay(graph), Timeline(1, spans), 5.0)
    assert shares_of(told) == {"computation": 0.0, "transfer": 0.0, "waiting": 0.0, "fixed cost": -2.0, "codec": 0.0}


def test_seconds_that_are_recorded_nowhere_stand_between_what_is_seen() -> None:
    """A rank that needs 1 s for a message before it computes, as simulated and not recorded: starting 3 s late is 2 s of fixed cost."""
    graph = ActivityGraph(1, held_bytes=[0.0], holdings=[[]])
    message = graph.add(1.0, 0)
    one = graph.add(3.0, 0, message)
    graph.records.append(Record(0, "compute", "forward", "0F0", one, one))
    spans = (Span(0, "compute", "input", "INPUT", 7.0, 8.0), Span(0, "compute", "forward", "0F0", 10.0, 13.0))
    told = attribute(graph, replay(graph), Timeline(1, spans), 6.0)
    assert shares_of(told) == {"computation": 0.0, "transfer": 0.0, "waiting": 0.0, "fixed cost": -2.0, "codec": 0.0}
    assert told.residual_s == 0.0
