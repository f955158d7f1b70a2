"""Local steps and late gradients: two ranks by hand, laws, consecutive steps one by one, and an independent interpreter."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.prices import Bucket, Exchange, Pricing, StagePrice
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.space.bound import step_lower_bound_s
from chinchilla_sim.simulator.disturbance import Spread, mean_of_steps
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.timeline import Timeline
from tests.simulator.test_engine import LINK, PLAIN, cables, grid, prices, spans_of
from tests.simulator.test_laws import TIGHT, Case, assert_events_equal_the_recursion, cases, laws

SECONDS = {Op.F: 1.0, Op.B: 2.0, Op.OPTIM: 1.0, Op.ENCODE_GRAD: 1.0, Op.DECODE_GRAD: 0.5, Op.AGREE: 1.0}
CABLES = cables(2, PLAIN, LINK)


def play(plan: Plan, collective_s: float) -> Timeline:
    """Two replicas whose exchange takes so long."""
    pricing = prices(plan, seconds=SECONDS, collective_s=collective_s)
    timeline = simulate(lower(plan), pricing, CABLES)
    assert step_lower_bound_s(plan, pricing, CABLES) == pytest.approx(timeline.step_s)
    return timeline


def test_replicas_that_exchange_in_every_step_by_hand() -> None:
    """What the two others are compared with: pass, pack, exchange, update one behind the other.

    second         0  1  2  3  4  5  6  7  8  9 10
    compute        F  B  B  P                    O
    collective                 r  r  r  r  r  r
    """
    assert play(grid(1, 2), 6.0).step_s == 11


@pytest.mark.parametrize(("collective_s", "update_s", "step_s"), [(6.0, 6.0, 8.0), (2.0, 3.0, 5.0)])
def test_late_gradients_by_hand(collective_s: float, update_s: float, step_s: float) -> None:
    """The gradients that the step before has packed travel beside the passes: the longer of both counts.

    second         0  1  2  3  4  5  6  7
    compute        F  B  B           O  P        exchange of 6 s
    collective     r  r  r  r  r  r
    compute        F  B  B  O  P                 exchange of 2 s
    collective     r  r
    """
    timeline = play(replace(grid(1, 2), gradient_delay=1), collective_s)
    for rank in (0, 1):
        assert spans_of(timeline, rank, "collective") == [("0REDUCE_GRAD", 0, collective_s)]
        assert spans_of(timeline, rank, "compute") == [
            ("0F0", 0, 1), ("0B0", 1, 3), ("0OPTIM", update_s, update_s + 1), ("0ENCODE_GRAD", update_s + 1, update_s + 2),
        ]  # fmt: skip
    assert timeline.step_s == step_s


def test_local_steps_by_hand() -> None:
    """Three steps of 4 s, then one of 12 s: 6 s on average, with a quarter of the bytes.

    second         0  1  2  3  4  5  6  7  8  9 10 11
    compute        F  B  B  O                           three times
    compute        F  B  B  O  P                    A   once
    collective                    r  r  r  r  r  r
    """
    timeline = play(replace(grid(1, 2), local_steps=4), 6.0)
    assert timeline.local is not None
    for rank in (0, 1):
        assert spans_of(timeline.local, rank) == [("0F0", 0, 1), ("0B0", 1, 3), ("0OPTIM", 3, 4)]
        assert spans_of(timeline, rank, "compute")[2:] == [("0OPTIM", 3, 4), ("0ENCODE_GRAD", 4, 5), ("0AGREE", 11, 12)]
        assert spans_of(timeline, rank, "collective") == [("0REDUCE_GRAD", 5, 11)]
    assert (timeline.makespan_s, timeline.local.makespan_s, timeline.step_s) == (12, 4, 6)
    assert timeline.busy_s(0) == (3 * 4 + 6) / 4 and timeline.exposed_communication_s(0) == 6 / 4
    assert timeline.sent_bytes(0) == 7 / 4 and timeline.utilization(0) == 4.5 / 6
    assert timeline.category_s(0) == {"forward": 1, "backward": 2, "optimizer": (3 * 1 + 2) / 4, "codec": 1 / 4, "collective": 6 / 4}
    assert Timeline.from_dict(timeline.to_dict()).step_s == 6


def test_buckets_leave_together() -> None:
    """Differences, like late gradients, are packed as a whole; their buckets queue for the link behind each other."""
    price = StagePrice(SECONDS, 0.0, {}, 10.0, buckets=(Bucket(0.5, 0.5, 3.0), Bucket(0.5, 0.5, 1.0)))
    exchange = Exchange("all_reduce", 8.0, 8.0, 8.0, table=((0.0, 0.0), (8.0, 8.0)), orders=((0, 1),))
    pricing = Pricing(((price, price),), (), (), (exchange,))
    late = simulate(lower(replace(grid(1, 2), gradient_buckets=2, gradient_delay=1)), pricing, CABLES)
    assert spans_of(late, 0, "collective") == [("0REDUCE_GRAD", 0, 6), ("0REDUCE_GRAD", 6, 8)] and late.step_s == 10
    local = simulate(lower(replace(grid(1, 2), gradient_buckets=2, local_steps=2)), pricing, CABLES)
    assert spans_of(local, 1, "collective") == [("0REDUCE_GRAD", 5, 11), ("0REDUCE_GRAD", 11, 13)] and local.makespan_s == 14


seconds = st.floats(0.01, 10)


@laws
@given(st.lists(seconds, min_size=2, max_size=2), st.lists(seconds, min_size=2, max_size=2), seconds)
def test_consecutive_late_steps_are_as_far_apart_as_the_simulated_one_is_long(passes: list[float], ends: list[float], sum_s: float) -> None:
    """Step by step over two unlike replicas: each starts when it is through with the step before, and its exchange when both are."""
    plan = replace(grid(1, 2), gradient_delay=1)
    row = tuple(
        StagePrice({Op.F: one, Op.B: 0.0, Op.OPTIM: end, Op.ENCODE_GRAD: 0.0}, 0.0, {}, 0.0) for one, end in zip(passes, ends, strict=True)
    )
    pricing = replace(prices(plan, collective_s=sum_s), stages=(row,))
    finish, last = [0.0, 0.0], 0.0
    for _ in range(2000):
        last, exchanged = max(finish), max(finish) + sum_s
        finish = [max(start + one, exchanged) + end for start, one, end in zip(finish, passes, ends, strict=True)]
    step_s = simulate(lower(plan), pricing, CABLES).step_s
    assert max(finish) - last == pytest.approx(step_s, rel=1e-6)


def asynchronous(case: Case, **changes: int) -> Case:
    """The same plan with other exchanges."""
    return replace(case, plan=replace(case.plan, **changes))


training = cases(exclusive=True, training=True, backends=["plain", "nccl"])


@laws
@given(training)
def test_late_gradients_are_never_slower(case: Case) -> None:
    """Without contention a step gets no longer where the exchange of the step before takes the place of its own."""
    assume(case.plan.data_parallel_degree > 1)
    assert asynchronous(case, gradient_delay=1).play().step_s <= case.play().step_s * TIGHT


@laws
@given(training, st.integers(2, 32), st.integers(1, 32))
def test_rarer_exchanges_are_never_slower(case: Case, local_steps: int, more: int) -> None:
    """The mean step falls with the number of local steps towards a step without any exchange."""
    assume(case.plan.data_parallel_degree > 1)
    often, seldom = (asynchronous(case, local_steps=count).play() for count in (local_steps, local_steps + more))
    assert often.local is not None
    assert often.local.step_s <= seldom.step_s * TIGHT and seldom.step_s <= often.step_s * TIGHT


@laws
@given(training, st.sampled_from([{"gradient_delay": 1}, {"local_steps": 8}]))
def test_events_equal_a_plain_recursion(case: Case, changes: dict[str, int]) -> None:
    """Every compute action of a step starts and ends when a recursion over the program says."""
    assume(case.plan.data_parallel_degree > 1)
    assert_events_equal_the_recursion(asynchronous(case, **changes))


@laws
@given(cases(training=True), st.sampled_from([{"gradient_delay": 1}, {"local_steps": 2}, {"local_steps": 16}]))
def test_no_step_beats_its_lower_bound(case: Case, changes: dict[str, int]) -> None:
    """Also where messages and exchanges share links."""
    assume(case.plan.data_parallel_degree > 1)
    other = asynchronous(case, **changes)
    assert step_lower_bound_s(other.plan, other.pricing, other.cluster) <= other.play().step_s * TIGHT


def test_disturbed_steps_are_means_too() -> None:
    """With one local step in two, half of both."""
    assert mean_of_steps(Spread((4.0, 6.0)), Spread((1.0, 2.0)), 2).steps_s == (3.0, 3.5)
    assert mean_of_steps(Spread((4.0, 6.0)), Spread((4.0, 6.0)), 1).steps_s == (4.0, 6.0)
