"""Oracle: our schedules and notation against torch.distributed.pipelining (2.13), the order that it really executes.

`Schedule1F1B._get_pipeline_order` is wrong on the last rank, so torch's classes are driven: a stage that only writes
down which chunks it is asked for stands in for a process with a model and a process group.
"""

from typing import Any

import pytest
import torch
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import _Action, _ComputationType

from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.program import RECEIVES, SENDS, Action, Op, lower
from chinchilla_sim.planner.schedule import gpipe, one_f_one_b

LARGEST_COUNT = 12
SHARED_OPS = [Op.F, Op.B, Op.SEND_F, Op.RECV_F, Op.SEND_B, Op.RECV_B, Op.REDUCE_GRAD]
SIZES = [(stages, count) for stages in range(2, 7) for count in range(stages, LARGEST_COUNT + 1)]


class WritingStage:
    """What a schedule calls on its stage; every call is written down, none computes or communicates."""

    def __init__(self, stage: int, stage_count: int) -> None:
        self.stage_index, self.num_stages = stage, stage_count
        self.is_first, self.is_last = stage == 0, stage == stage_count - 1
        self.device = torch.device("cpu")
        self.executed: list[tuple[str, int]] = []
        self.transfers: list[tuple[str, int]] = []

    def forward_one_chunk(self, chunk: int, *_: Any, **__: Any) -> int:
        """F."""
        self.executed.append(("F", chunk))
        return chunk

    def backward_one_chunk(self, chunk: int, **_: Any) -> None:
        """B."""
        self.executed.append(("B", chunk))

    def get_fwd_recv_ops(self, chunk: int) -> list[Any]:
        """The first stage receives nothing forward."""
        self.transfers += [("RECV_F", chunk)] * (not self.is_first)
        return []

    def get_fwd_send_ops(self, chunk: int) -> list[Any]:
        """The last stage sends nothing forward."""
        self.transfers += [("SEND_F", chunk)] * (not self.is_last)
        return []

    def get_bwd_recv_ops(self, chunk: int) -> list[Any]:
        """The last stage receives no gradient."""
        self.transfers += [("RECV_B", chunk)] * (not self.is_last)
        return []

    def get_bwd_send_ops(self, chunk: int) -> list[Any]:
        """The first stage sends no gradient."""
        self.transfers += [("SEND_B", chunk)] * (not self.is_first)
        return []

    def __getattr__(self, name: str) -> Any:
        """Preparation and the reduction of gradients have nothing to do here."""
        if name in ("_prepare_forward_infra", "_prepare_backward_infra", "perform_reduce_grad"):
            return lambda *_, **__: None
        if name == "_get_init_p2p_neighbors_ops":
            return list
        raise AttributeError(name)


def drive(schedule_class: type[Any], stage: int, stage_count: int, microbatch_count: int) -> WritingStage:
    """Let torch's schedule execute one step of one rank."""
    writing = WritingStage(stage, stage_count)
    schedule = schedule_class(writing, microbatch_count, loss_fn=lambda output, target: torch.zeros(()))
    schedule._step_microbatches(target_mbs=[None] * microbatch_count)
    return writing


def pipeline(stages: int, count: int, schedule: str, receives_in_flight: int = 8) -> Plan:
    """A plan of one replica without codecs."""
    return Plan(
        stages=tuple((f"task{stage}",) for stage in range(stages)),
        placement=tuple((stage,) for stage in range(stages)),
        slots=tuple(range(stages)),
        global_batch_size=count,
        microbatch_count=count,
        schedule=schedule,
        gradient_codecs=("none",) * stages,
        activation_codecs=("none",) * (stages - 1),
        receives_in_flight=receives_in_flight,
    )


@pytest.mark.parametrize(("stages", "count"), SIZES)
@pytest.mark.parametrize(("ours", "theirs"), [(gpipe, ScheduleGPipe), (one_f_one_b, Schedule1F1B)], ids=["gpipe", "1f1b"])
def test_compute_order_is_what_torch_executes(ours: Any, theirs: type[Any], stages: int, count: int) -> None:
    """Forward and backward passes of every rank run in the order in which torch runs them."""
    for stage in range(stages):
        assert list(ours(stage, stages, count)) == drive(theirs, stage, stages, count).executed


@pytest.mark.parametrize(("stages", "count"), SIZES)
@pytest.mark.parametrize(("schedule", "theirs"), [("gpipe", ScheduleGPipe), ("1f1b", Schedule1F1B)])
def test_messages_are_those_of_torch_in_each_direction(schedule: str, theirs: type[Any], stages: int, count: int) -> None:
    """Each rank sends and receives torch's messages, and those of one kind in torch's order."""
    program = lower(pipeline(stages, count, schedule))
    for stage, row in enumerate(program.actions):
        transfers = drive(theirs, stage, stages, count).transfers
        for op in (*SENDS, *RECEIVES):
            assert [a.microbatch for a in row if a.op is op] == [chunk for name, chunk in transfers if name == op]


def test_torch_refuses_1f1b_with_fewer_microbatches_than_stages() -> None:
    """Where torch cannot run a 1F1B plan, ours still orders it: the warm-up is all there is."""
    with pytest.raises(ValueError, match="must be greater than"):
        drive(Schedule1F1B, 0, 4, 3)
    assert list(one_f_one_b(0, 4, 3)) == list(gpipe(0, 4, 3))


@pytest.mark.parametrize("op", SHARED_OPS)
def test_actions_read_alike_in_torch(op: Op) -> None:
    """Every action text that torch knows parses there to the same stage, operation and microbatch."""
    for stage, microbatch in ((0, 0), (3, 11), (12, 7)):
        action = Action(stage, op, None if op is Op.REDUCE_GRAD else microbatch)
        theirs = _Action.from_str(str(action))
        assert (theirs.stage_index, theirs.computation_type, theirs.microbatch_index) == (
            action.stage, _ComputationType.from_str(op), action.microbatch,
        )  # fmt: skip
        assert str(theirs) == str(action)


def test_whole_program_reads_in_torch() -> None:
    """All of a pipeline's program but the optimizer, which torch leaves to the user, is torch's notation."""
    for row in lower(pipeline(3, 4, "1f1b")).actions:
        texts = [str(action) for action in row if action.op is not Op.OPTIM]
        assert [str(_Action.from_str(text)) for text in texts] == texts
