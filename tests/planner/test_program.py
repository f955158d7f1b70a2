"""Programs: messages pair up, receives stand ahead of their use, and two programs typed by hand."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.planner.action import COMPUTES, RECEIVES, SENDS, Action, Op, message_of, parse_action
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import lower, needs

CODECS = ("none", "fp16", "bf16", "int8")
WITH_MICROBATCH = [op for op in Op if not op.endswith("GRAD") and op not in (Op.OPTIM, Op.UNSHARD)]


def make_plan(
    stages: int,
    replicas: int,
    count: int,
    schedule: str,
    gradient_codec: str = "none",
    activation_codec: str = "none",
    receives_in_flight: int = 8,
) -> Plan:
    """A plan of one task per stage and one sample per microbatch; rank = stage + stages * replica."""
    return Plan(
        stages=tuple((f"task{stage}",) for stage in range(stages)),
        placement=tuple(tuple(stage + stages * replica for replica in range(replicas)) for stage in range(stages)),
        slots=tuple(range(stages * replicas)),
        global_batch_size=count * replicas,
        microbatch_count=count,
        schedule=schedule,
        gradient_codecs=(gradient_codec,) * stages,
        activation_codecs=(activation_codec,) * (stages - 1),
        receives_in_flight=receives_in_flight,
    )


plans = st.builds(
    make_plan,
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.sampled_from(["gpipe", "1f1b", "forward"]),
    st.sampled_from(CODECS), st.sampled_from(CODECS), st.integers(1, 10),
)  # fmt: skip


@given(
    st.builds(Action, st.integers(0, 99), st.sampled_from(WITH_MICROBATCH), st.integers(0, 999))
    | st.builds(Action, st.integers(0, 99), st.sampled_from(sorted(set(Op) - set(WITH_MICROBATCH))), st.none())
)
def test_text_of_an_action_reads_back(action: Action) -> None:
    """parse_action undoes str for every operation."""
    assert parse_action(str(action)) == action


@pytest.mark.parametrize("text", ["", "F0", "0", "0G0", "0F-1", "0F0 ", "0f0", "00SEND0"])
def test_what_is_no_action_is_refused(text: str) -> None:
    """Anything else raises ValueError with an example."""
    with pytest.raises(ValueError, match="write for example 0F1"):
        parse_action(text)


@given(plans)
def test_every_send_has_its_receive_at_the_peer(plan: Plan) -> None:
    """Over all ranks each message is sent once by one end of its boundary and received once by the other."""
    ends: Counter[tuple[object, ...]] = Counter()
    for rank, row in enumerate(lower(plan).actions):
        (stage,), replica = plan.position[rank]
        for action in row:
            assert action.stage == stage
            if action.op in SENDS | RECEIVES:
                direction, boundary, _ = message = message_of(action)
                sends_here = stage == (boundary if direction == "F" else boundary + 1)
                assert (action.op in SENDS) == sends_here and stage in (boundary, boundary + 1)
                ends[(replica, *message, action.op in SENDS)] += 1
    boundaries, directions = plan.pipeline_parallel_degree - 1, 2 if plan.training else 1
    assert set(ends.values()) <= {1}
    assert len(ends) == 2 * directions * boundaries * plan.microbatch_count * plan.data_parallel_degree


@given(plans)
def test_both_ends_agree_on_the_order_of_messages(plan: Plan) -> None:
    """From one rank to another messages are sent and their receives posted in one order: connections keep it."""
    rows = lower(plan).actions
    for lower_stage in range(plan.pipeline_parallel_degree - 1):
        for replica in range(plan.data_parallel_degree):
            below, above = (rows[plan.rank_of(stage, replica)] for stage in (lower_stage, lower_stage + 1))
            for sender, receiver, send, receive in ((below, above, Op.SEND_F, Op.RECV_F), (above, below, Op.SEND_B, Op.RECV_B)):
                assert [a.microbatch for a in sender if a.op is send] == [a.microbatch for a in receiver if a.op is receive]


@given(plans)
def test_nothing_happens_before_what_it_needs(plan: Plan) -> None:
    """A receive is posted before its use; a pass is decoded before and encoded after; the optimizer is last."""
    for row in lower(plan).actions:
        place = {action: index for index, action in enumerate(row)}
        assert len(place) == len(row)
        for action in row:
            for op in needs(action):
                needed = Action(action.stage, op, action.microbatch)
                assert needed not in place or place[needed] < place[action]
        for letter in "FB":
            for microbatch in range(plan.microbatch_count if letter == "F" or plan.training else 0):
                ops = (f"RECV_{letter}", f"DECODE_{letter}", letter, f"ENCODE_{letter}", f"SEND_{letter}")
                places = [place[a] for a in (Action(row[0].stage, Op(op), microbatch) for op in ops) if a in place]
                assert places == sorted(places)
        tail = [str(action.op) for action in row if action.microbatch is None]
        ordered = [op for op in ("ENCODE_GRAD", "REDUCE_GRAD", "DECODE_GRAD", "OPTIM") if op in tail]
        assert tail == ordered
        assert (tail[-1:] == ["OPTIM"]) == plan.training


@given(plans)
def test_receives_stand_as_far_ahead_as_allowed(plan: Plan) -> None:
    """Before the first pass as many receives are posted as may be in flight, or all there are."""
    for row in lower(plan).actions:
        receives = sum(action.op in RECEIVES for action in row)
        first = next(index for index, action in enumerate(row) if action.op in COMPUTES)
        assert first >= min(receives, plan.receives_in_flight)


def outstanding(plan: Plan) -> int:
    """Most receives of a rank that are posted and whose message no action has waited for yet."""
    most = 0
    for row in lower(plan).actions:
        posted: set[Action] = set()
        for action in row:
            if action.op in RECEIVES:
                posted.add(action)
                most = max(most, len(posted))
            posted -= {Action(action.stage, op, action.microbatch) for op in needs(action)}
    return most


@given(plans)
def test_no_more_receives_are_outstanding_than_priced(plan: Plan) -> None:
    """At most one receive more than `receives_in_flight` waits for its use at any time."""
    assert outstanding(plan) <= plan.receives_in_flight + 1


def test_no_more_receives_are_outstanding_than_stated() -> None:
    """`receives_in_flight` receives are posted ahead of their use, not one more."""
    assert [outstanding(make_plan(2, 1, 6, "1f1b", receives_in_flight=ahead)) for ahead in (1, 2, 3)] == [1, 2, 3]


def test_two_stage_1f1b_by_hand() -> None:
    """Two stages, three microbatches: the pipeline that a person draws, with all receives posted ahead."""
    assert lower(make_plan(2, 1, 3, "1f1b")).to_csv().splitlines() == [
        "0RECV_B0,0RECV_B1,0RECV_B2,0F0,0SEND_F0,0F1,0SEND_F1,0B0,0F2,0SEND_F2,0B1,0B2,0OPTIM",
        "1RECV_F0,1RECV_F1,1RECV_F2,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1,1F2,1B2,1SEND_B2,1OPTIM",
    ]


def test_data_parallel_int8_by_hand() -> None:
    """Two replicas that exchange int8 gradients: pack, gather, unpack, update; both ranks alike."""
    row = "0F0,0F1,0B0,0B1,0ENCODE_GRAD,0REDUCE_GRAD,0DECODE_GRAD,0OPTIM"
    assert lower(make_plan(1, 2, 2, "gpipe", gradient_codec="int8")).to_csv().splitlines() == [row, row]


def test_plain_gradients_need_no_decoding_by_hand() -> None:
    """Without a codec the bucket is summed in place: a copy in, no decoding."""
    assert lower(make_plan(1, 2, 1, "gpipe")).to_csv().splitlines()[0] == "0F0,0B0,0ENCODE_GRAD,0REDUCE_GRAD,0OPTIM"


def test_activation_codec_by_hand() -> None:
    """int8 activations are packed behind F and unpacked ahead of the next F, and their gradients on the way back."""
    assert lower(make_plan(2, 1, 1, "gpipe", activation_codec="int8")).to_csv().splitlines() == [
        "0RECV_B0,0F0,0ENCODE_F0,0SEND_F0,0DECODE_B0,0B0,0OPTIM",
        "1RECV_F0,1DECODE_F0,1F0,1B0,1ENCODE_B0,1SEND_B0,1OPTIM",
    ]


def test_inference_by_hand() -> None:
    """Inference goes forward only and updates nothing."""
    assert lower(make_plan(2, 1, 2, "forward")).to_csv().splitlines() == ["0F0,0SEND_F0,0F1,0SEND_F1", "1RECV_F0,1RECV_F1,1F0,1F1"]
