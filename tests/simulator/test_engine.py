"""Two-rank stories whose numbers fit in a drawing, the bubble of the textbooks, and programs that cannot end."""

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.topology import Backend, Cluster, Device, Link
from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.action import Op, parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Bucket, Exchange, Pricing, StagePrice
from chinchilla_sim.planner.program import Program, lower
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline

PLAIN, RENDEZVOUS = Backend("plain"), Backend("like-gloo", rendezvous=True)
SECONDS = {Op.F: 1.0, Op.B: 2.0, Op.OPTIM: 0.0}


def cables(rank_count: int, backend: Backend, link: Link) -> Cluster:
    """Ranks joined by one cable for every pair."""
    slots = tuple(f"slot{rank}" for rank in range(rank_count))
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(slots)
    graph.add_edges_from(((a, b) for a in slots for b in slots if a != b), link=link)
    return Cluster(graph, slots, (Device("d", 1.0, 1.0),) * rank_count, backend)


def grid(stages: int, replicas: int = 1, count: int = 1, schedule: str = "1f1b", codec: str = "none", ahead: int = 8) -> Plan:
    """A plan of one task per stage; rank = stage * replicas + replica."""
    return Plan(
        stages=tuple((f"task{stage}",) for stage in range(stages)),
        placement=tuple(tuple(stage * replicas + replica for replica in range(replicas)) for stage in range(stages)),
        slots=tuple(range(stages * replicas)),
        global_batch_size=count * replicas,
        microbatch_count=count,
        schedule=schedule,
        gradient_codecs=(codec,) * stages,
        activation_codecs=(codec,) * (stages - 1),
        receives_in_flight=ahead,
    )


def prices(plan: Plan, message_bytes: float = 20.0, seconds: Mapping[Op, float] = SECONDS, collective_s: float = 0.0) -> Pricing:
    """Every stage alike: F 1 s, B 2 s, 20 B over a boundary, 100 B held and 10 B saved per microbatch."""
    boundaries = (message_bytes,) * (plan.pipeline_parallel_degree - 1)
    price = StagePrice(dict(seconds), 0.0, held_parts={"weights": 100.0}, saved_bytes=10.0)
    replicas = plan.data_parallel_degree
    stages = plan.pipeline_parallel_degree
    exchanges = tuple(
        Exchange("all_reduce", 8.0, collective_s, 7.0, table=((0.0, collective_s),), orders=(plan.placement[s],)) for s in range(stages)
    )
    return Pricing(((price,) * replicas,) * stages, boundaries, boundaries, exchanges)


def spans_of(timeline: Timeline, rank: int, *streams: str) -> list[tuple[str, float, float]]:
    """Label, start and end of a rank's spans."""
    return [(span.label, span.start_s, span.end_s) for span in timeline.spans_of(rank, *streams)]  # type: ignore[arg-type]


def typed(plan: Plan, *rows: str) -> Program:
    """A program typed by hand."""
    return Program(plan, tuple(tuple(parse_action(text) for text in row.split()) for row in rows))


LINK = Link(latency_s=1.0, bandwidth_bytes_per_s=10.0)


def test_two_stage_pipeline_by_hand() -> None:
    """One cable of 1 s and 10 B/s, messages of 20 B (2 s): two microbatches of 1F1B.

    second         0  1  2  3  4  5  6  7  8  9 10 11 12 13 14
    0 compute      F0 F1                         B0 B0    B1 B1
    0->1 bytes           m0 m0 m1 m1
    1 compute                  F0 B0 B0 F1 B1 B1
    1->0 bytes                             b0 b0    b1 b1
    """
    plan = grid(2, count=2)
    timeline = simulate(lower(plan), prices(plan), cables(2, PLAIN, LINK))
    assert spans_of(timeline, 0, "compute") == [("0F0", 0, 1), ("0F1", 1, 2), ("0B0", 10, 12), ("0B1", 13, 15), ("0OPTIM", 15, 15)]
    assert spans_of(timeline, 1, "compute") == [("1F0", 4, 5), ("1B0", 5, 7), ("1F1", 7, 8), ("1B1", 8, 10), ("1OPTIM", 10, 10)]
    assert spans_of(timeline, 0, "send") == [("0SEND_F0", 2, 4), ("0SEND_F1", 4, 6)]
    assert spans_of(timeline, 1, "receive") == [("1RECV_F0", 2, 4), ("1RECV_F1", 4, 6)]
    assert spans_of(timeline, 1, "send") == [("1SEND_B0", 8, 10), ("1SEND_B1", 11, 13)]
    assert timeline.step_s == 15
    assert timeline.bubble_fraction == pytest.approx(1 - 12 / 30)
    assert [timeline.exposed_communication_s(rank) for rank in (0, 1)] == [2 + 1, 2]


@pytest.mark.parametrize(("program", "first_byte_s", "starts_s"), [("1RECV_F0 1OPTIM 1F0", 2, 5), ("1OPTIM 1RECV_F0 1F0", 7, 9)])
def test_rendezvous_by_hand(program: str, first_byte_s: float, starts_s: float) -> None:
    """A receive posted early costs one latency; posted late, at second 5, a whole round trip after the data was ready.

    Rank 0 sends at second 1 over a cable of 1 s and 10 B/s. With the receive posted at 0 the "ready" is there at 1, bytes
    move from 2 to 4, and F waits only for the 5 s that rank 1 is busy. Posted at 5: "ready" at 6, bytes from 7 to 9.
    """
    plan = grid(2)
    timeline = simulate(typed(plan, "0F0 0SEND_F0", program), prices(plan, seconds={**SECONDS, Op.OPTIM: 5.0}), cables(2, RENDEZVOUS, LINK))
    assert spans_of(timeline, 1, "receive") == [("1RECV_F0", first_byte_s, first_byte_s + 2)]
    assert spans_of(timeline, 1, "compute") == [("1OPTIM", 0, 5), ("1F0", starts_s, starts_s + 1)]


def test_plain_messages_do_not_wait_for_their_receiver_by_hand() -> None:
    """Without rendezvous a late receive costs nothing: the bytes are there."""
    plan = grid(2)
    timeline = simulate(
        typed(plan, "0F0 0SEND_F0", "1OPTIM 1RECV_F0 1F0"), prices(plan, seconds={**SECONDS, Op.OPTIM: 5.0}), cables(2, PLAIN, LINK)
    )
    assert spans_of(timeline, 1, "compute")[-1] == ("1F0", 5, 6)


def test_headers_travel_but_are_no_payload_by_hand() -> None:
    """A header factor of 1.5 makes 20 B take 3 s; the timeline counts 20 B on both sides."""
    plan = grid(2, schedule="forward")
    timeline = simulate(lower(plan), prices(plan), cables(2, Backend("fat", header_factor=1.5), LINK))
    assert spans_of(timeline, 1, "receive") == [("1RECV_F0", 2, 5)]
    assert {span.moved_bytes for span in timeline.spans_of(0, "send") + timeline.spans_of(1, "receive")} == {20.0}


def test_gradient_exchange_by_hand() -> None:
    """Two replicas with int8 gradients: pack 1 s, exchange 3 s, unpack 2 s, update 0.5 s, after F and B.

    second       0  1  2  3  4  5  6  7  8  9
    compute      F  B  B  E           D  D  O
    collective               C  C  C
    """
    plan = grid(1, replicas=2, codec="int8")
    seconds = {**SECONDS, Op.ENCODE_GRAD: 1.0, Op.DECODE_GRAD: 2.0, Op.OPTIM: 0.5}
    timeline = simulate(lower(plan), prices(plan, seconds=seconds, collective_s=3.0), cables(2, PLAIN, LINK))
    for rank in (0, 1):
        assert spans_of(timeline, rank) == [
            ("0F0", 0, 1), ("0B0", 1, 3), ("0ENCODE_GRAD", 3, 4), ("0REDUCE_GRAD", 4, 7), ("0DECODE_GRAD", 7, 9), ("0OPTIM", 9, 9.5),
        ]  # fmt: skip
        assert timeline.sent_bytes(rank) == 7
        assert timeline.exposed_communication_s(rank) == 3


def low_rank_prices(plan: Plan) -> Pricing:
    """Pack 1 s; two rounds of 2 s (whatever their bytes); unpack 3 s, of which the second round waits for 1 s."""
    seconds = {**SECONDS, Op.ENCODE_GRAD: 1.0, Op.DECODE_GRAD: 3.0, Op.OPTIM: 0.5}
    halves = (Bucket(0.5, 0.5, 40.0),) * 2 if plan.gradient_buckets == 2 else ()
    price = replace(prices(plan, seconds=seconds).stages[0][0], between_rounds_s=1.0, buckets=halves)
    exchange = Exchange("all_reduce", 8.0, 4.0, 8.0, rounds=2, table=((0.0, 2.0),), orders=(plan.placement[0],))
    return Pricing(((price, price),), (), (), (exchange,))


def test_second_round_starts_where_its_rank_has_unpacked_the_first_by_hand() -> None:
    """Two replicas with low-rank gradients: P travels, is made orthonormal (1 s), Q travels, and the result is unpacked.

    second       0  1  2  3  4  5  6  7  8  9 10 11
    compute      F  B  B  E        D        D  D  O
    collective               P  P     Q  Q
    """
    plan = grid(1, replicas=2, codec="low-rank")
    pricing, cluster = low_rank_prices(plan), cables(2, PLAIN, LINK)
    timeline = simulate(lower(plan), pricing, cluster)
    for rank in (0, 1):
        assert spans_of(timeline, rank, "collective") == [("0REDUCE_GRAD", 4, 6), ("0REDUCE_GRAD", 7, 9)]
        assert spans_of(timeline, rank, "compute")[2:] == [
            ("0ENCODE_GRAD", 3, 4), ("0DECODE_GRAD", 6, 7), ("0DECODE_GRAD", 9, 11), ("0OPTIM", 11, 11.5),
        ]  # fmt: skip
        assert timeline.sent_bytes(rank) == 8
    assert step_lower_bound_s(plan, pricing, cluster) == timeline.step_s


def test_second_rounds_of_buckets_travel_together_by_hand() -> None:
    """In two buckets: every second round is issued before the first result is unpacked, behind all first rounds.

    half second  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23
    compute      B  B  E  B  B  E     D           D           D  D        D  D  O
    collective            P  P  P  P  p  p  p  p  Q  Q  Q  Q  q  q  q  q
    """
    plan = replace(grid(1, replicas=2, codec="low-rank"), gradient_buckets=2)
    timeline = simulate(lower(plan), low_rank_prices(plan), cables(2, PLAIN, LINK))
    for rank in (0, 1):
        ends = [(start, end) for _, start, end in spans_of(timeline, rank, "collective")]
        assert ends == [(2.5, 4.5), (4.5, 6.5), (6.5, 8.5), (8.5, 10.5)]
        unpacking = [(start, end) for label, start, end in spans_of(timeline, rank, "compute") if label == "0DECODE_GRAD"]
        assert unpacking == [(4.5, 5), (6.5, 7), (8.5, 9.5), (10.5, 11.5)]
        assert timeline.sent_bytes(rank) == 8


def test_shared_weights_are_summed_when_the_last_stage_is_through_by_hand() -> None:
    """The two-stage pipeline above, whose stages share 20 B of weights: two rounds of 10 B, 1 s of latency and 1 s of bytes each.

    second         10 11 12 13 14 15 16 17 18 19
    0 compute      B0 B0    B1 B1                O
    1 compute                                    O
    both cables                      r0    r1
    """
    plan = replace(grid(2, count=2), shared_stages=((0, 1),))
    shared = Exchange("all_reduce", 20.0, idle_s=4.0, sent_bytes=20.0, orders=((0, 1),))
    pricing, cluster = replace(prices(plan), shared=((shared,),)), cables(2, PLAIN, LINK)
    timeline = simulate(lower(plan), pricing, cluster, causes=True)
    for rank in (0, 1):
        assert spans_of(timeline, rank, "collective") == [(f"{rank}REDUCE_SHARED0", 15, 19)]
        assert spans_of(timeline, rank, "compute")[-1] == (f"{rank}OPTIM", 19, 19)
    assert step_lower_bound_s(plan, pricing, cluster) == timeline.step_s == 19
    assert any("1OPTIM waits for 1REDUCE_SHARED0" in wait.cause or "0REDUCE_SHARED0" in wait.cause for wait in timeline.waits)


def test_collective_waits_for_the_slower_replica_by_hand() -> None:
    """A replica that is done at second 3 waits until the other joins at second 6."""
    plan = grid(1, replicas=2)
    pricing = prices(plan, seconds={**SECONDS, Op.ENCODE_GRAD: 0.0}, collective_s=1.0)
    first, second = pricing.stages[0]
    slow = replace(second, action_s={**second.action_s, Op.F: 4.0})
    timeline = simulate(lower(plan), replace(pricing, stages=((first, slow),)), cables(2, PLAIN, LINK))
    assert [spans_of(timeline, rank, "collective") for rank in (0, 1)] == [[("0REDUCE_GRAD", 6, 7)]] * 2


def test_later_microbatches_accumulate_by_hand() -> None:
    """The first backward pass takes B, each later one B and the addition of its gradients."""
    plan = grid(1, count=3, schedule="gpipe")
    pricing = prices(plan)
    pricing = replace(pricing, stages=((replace(pricing.stages[0][0], accumulation_s=0.5),),))
    timeline = simulate(lower(plan), pricing, cables(1, PLAIN, LINK))
    assert spans_of(timeline, 0)[3:] == [("0B0", 3, 5), ("0B1", 5, 7.5), ("0B2", 7.5, 10), ("0OPTIM", 10, 10)]


@pytest.mark.parametrize(("schedule", "peaks"), [("gpipe", [140, 140]), ("1f1b", [120, 110])])
def test_memory_over_time_by_hand(schedule: str, peaks: list[float]) -> None:
    """100 B held, 10 B per microbatch in flight: four of them in GPipe, two and one in 1F1B of two stages; 100 B at the end."""
    plan = grid(2, count=4, schedule=schedule)
    timeline = simulate(lower(plan), prices(plan), cables(2, PLAIN, LINK))
    assert [timeline.peak_memory_bytes(rank) for rank in (0, 1)] == peaks
    assert [[m.held_bytes for m in timeline.memory if m.rank == rank][-1] for rank in (0, 1)] == [100, 100]


FREE = Link(latency_s=0.0, bandwidth_bytes_per_s=float("inf"))


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from(["gpipe", "1f1b"]), st.sampled_from([PLAIN, RENDEZVOUS]))
def test_bubble_of_equal_stages(stages: int, count: int, schedule: str, backend: Backend) -> None:
    """With p equal stages, m microbatches and free links GPipe and 1F1B idle (p-1)/(m+p-1) of the time (Narayanan et al. 2021)."""
    plan = grid(stages, count=count, schedule=schedule)
    timeline = simulate(lower(plan), prices(plan, message_bytes=0.0), cables(stages, backend, FREE))
    assert timeline.bubble_fraction == pytest.approx((stages - 1) / (count + stages - 1))
    assert timeline.step_s == pytest.approx((count + stages - 1) * 3)


@given(st.integers(1, 5), st.integers(1, 8), st.floats(0, 1e-3))
def test_pipeline_that_only_goes_forward(stages: int, count: int, latency_s: float) -> None:
    """Inference of m microbatches over p equal stages takes m + p - 1 passes and p - 1 latencies."""
    plan = grid(stages, count=count, schedule="forward")
    timeline = simulate(lower(plan), prices(plan, message_bytes=0.0), cables(stages, PLAIN, Link(latency_s, float("inf"))))
    assert timeline.step_s == pytest.approx(count + stages - 1 + (stages - 1) * latency_s)


@pytest.mark.parametrize(
    ("rows", "waiting"),
    [
        (
            ("0RECV_B0 0B0 0F0 0SEND_F0", "1RECV_F0 1F0 1B0 1SEND_B0"),
            "deadlocks: 0B0 of rank 0 waits for 1SEND_B0 of rank 1 waits for 1B0 of rank 1 waits for 1F0 of rank 1 "
            "waits for 0SEND_F0 of rank 0 waits for 0F0 of rank 0 waits for 0B0 of rank 0",
        ),
        (("0RECV_B0 0F0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0"), "loses messages: 1RECV_F0 of rank 1 has no send"),
        (("0RECV_B0 0F0 0SEND_F0 0B0", "1RECV_F0 1F0 1B0"), "loses messages: 0RECV_B0 of rank 0 has no send"),
    ],
    ids=["both-wait", "no-send-forward", "no-send-back"],
)
@pytest.mark.parametrize("backend", [PLAIN, RENDEZVOUS], ids=lambda backend: backend.name)
def test_what_cannot_end_is_told_with_its_cycle(backend: Backend, rows: tuple[str, str], waiting: str) -> None:
    """A program that cannot end is a RunError that tells the cycle of waiting actions, or which message misses an end."""
    plan = grid(2)
    with pytest.raises(RunError) as caught:
        simulate(typed(plan, *rows), prices(plan), cables(2, backend, LINK))
    assert str(caught.value) == f"the program {waiting}"


def test_collective_that_one_replica_leaves_out_is_a_deadlock() -> None:
    """The other replica waits for it."""
    plan = grid(1, replicas=2)
    with pytest.raises(RunError, match="0REDUCE_GRAD of rank 0 waits for rank 1, which never joins"):
        simulate(typed(plan, "0F0 0B0 0REDUCE_GRAD 0OPTIM", "0F0 0B0 0OPTIM"), prices(plan), cables(2, PLAIN, LINK))


def test_stage_that_does_not_join_the_others_is_named() -> None:
    """A typed program in which only one of two stages sums the weights they share cannot end."""
    plan = replace(grid(2), shared_stages=((0, 1),))
    pricing = replace(prices(plan), shared=((Exchange("all_reduce", 20.0, orders=((0, 1),)),),))
    with pytest.raises(RunError, match="0REDUCE_SHARED0 of rank 0 waits for rank 1, which never joins"):
        simulate(typed(plan, "0REDUCE_SHARED0 0OPTIM", "1OPTIM"), pricing, cables(2, PLAIN, LINK))


def test_messages_that_wait_for_one_ready_keep_their_order() -> None:
    """Two messages that are done before the receiver's "ready" (at 10 ms) leave in the order in which they were sent."""
    plan = grid(2, count=2)
    link = Link(latency_s=0.01, bandwidth_bytes_per_s=1e4)
    timeline = simulate(lower(plan), prices(plan, seconds={**SECONDS, Op.F: 0.001}), cables(2, RENDEZVOUS, link))
    assert [label for label, _, _ in spans_of(timeline, 1, "receive")] == ["1RECV_F0", "1RECV_F1"]
    assert spans_of(timeline, 1, "compute")[0][1] == pytest.approx(0.02 + 20 / 1e4)


@pytest.mark.parametrize("backend", [PLAIN, RENDEZVOUS], ids=lambda backend: backend.name)
def test_message_that_nobody_receives_is_an_error(backend: Backend) -> None:
    """A SEND without its RECV leaves a message over (and its reader computes on nothing): RunError names the rank."""
    plan = grid(2)
    with pytest.raises(RunError, match="0SEND_F0"):
        simulate(typed(plan, "0RECV_B0 0F0 0SEND_F0 0B0", "1F0 1B0 1SEND_B0"), prices(plan), cables(2, backend, LINK))


def test_narrow_cable_by_hand() -> None:
    """At 5 B/s messages take 4 s: m1 arrives at 10, rank 1 ends B1 at 13, its gradient moves from 14 to 18, B1 ends at 20."""
    plan = grid(2, count=2)
    timeline = simulate(lower(plan), prices(plan), cables(2, PLAIN, Link(1.0, 5.0)))
    assert spans_of(timeline, 1, "send") == [("1SEND_B0", 10, 14), ("1SEND_B1", 14, 18)]
    assert timeline.step_s == 20
