"""Timestamps of what a rank did, and the measured timeline that all ranks' records make together.

Every rank of a machine reads the same CLOCK_MONOTONIC; records of other machines are aligned first. A message's span runs
from the moment it could leave (sent and its receive posted) to the end of the receiver's wait; where the receiver
was computing meanwhile, the end is when it looked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from time import monotonic
from typing import Any

from chinchilla_sim.planner.action import Op
from chinchilla_sim.timeline import Category, Span, Stream, Timeline, Wait

COUNT_VARIABLE = "CHINCHILLA_COUNT_MEMORY"
"""Set to 1 where a rank shall count the tensors of one step."""
KEPT_STEPS = 64
WARM_UP_STEPS = 5
ANSWER_FIGURES = 10

MessageKey = tuple[str, int, int, int]
"""Direction, boundary, microbatch and lane of a message (`Plan.lane_of`)."""

CollectiveKey = tuple[str, int, int, int]
"""What is exchanged, the stage (or set of shared weights), bucket, and the replica where replicas exchange apart."""


@dataclass(slots=True)
class StepRecord:
    """What one rank did in one step; times on the machine's monotonic clock."""

    compute: list[tuple[Any, ...]] = field(default_factory=list)
    sends: dict[MessageKey, tuple[str, float, int]] = field(default_factory=dict)
    receives: dict[MessageKey, list[Any]] = field(default_factory=dict)
    collectives: dict[CollectiveKey, list[Any]] = field(default_factory=dict)


class Recorder:
    """Records of the last KEPT_STEPS steps of one rank, and start and end of its computation in every step."""

    def __init__(self, lanes: int = 1) -> None:
        """With several `lanes` the bytes are of all the processes that this one stands for."""
        self.lanes = lanes
        self.steps: deque[StepRecord] = deque(maxlen=KEPT_STEPS)
        self.intervals: list[tuple[float, float]] = []
        self._step = StepRecord()

    def begin_step(self) -> None:
        """Start a new step."""
        self._step = StepRecord()
        self.steps.append(self._step)

    def end_step(self) -> None:
        """Close the step: it ends with the last computation, or with the last weights that were gathered behind it."""
        ends = [self._step.compute[-1][3], *(row[2] for row in self._step.collectives.values() if row[2] is not None)]
        self.intervals.append((self._step.compute[0][2], max(ends)))

    def compute(self, label: str, category: Category, start_s: float, waited_s: float = 0.0, sent_bytes: float = 0.0) -> None:
        """A compute action that began at `start_s` and has just ended.

        What it waited for collectives inside, in which it sent some bytes, is put behind it, as in the simulator.
        """
        end_s = monotonic()
        self._step.compute.append((label, category, start_s, end_s - waited_s))
        if waited_s:
            self._step.compute.append((label, "collective", end_s - waited_s, end_s, sent_bytes * self.lanes))

    def send(self, key: MessageKey, label: str, message_bytes: int) -> None:
        """A message was issued now."""
        self._step.sends[key] = (label, monotonic(), message_bytes * self.lanes)

    def post(self, key: MessageKey, label: str) -> None:
        """A receive was posted now."""
        self._step.receives[key] = [label, monotonic(), None, None]

    def received(self, key: MessageKey, since_s: float | None = None) -> None:
        """The message was waited for (`since_s`) and is here."""
        self._step.receives[key][2:] = monotonic(), since_s

    def join(self, key: CollectiveKey, label: str, sent_bytes: float) -> None:
        """A collective was issued now."""
        self._step.collectives[key] = [label, monotonic(), None, sent_bytes * self.lanes, None]

    def joined(self, key: CollectiveKey, since_s: float | None = None) -> None:
        """The collective was waited for (`since_s`) and is done."""
        row = self._step.collectives[key]
        row[2], row[4] = monotonic(), since_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form of everything recorded."""
        return {
            "intervals": self.intervals,
            "steps": [
                {
                    "compute": step.compute,
                    "sends": [[*key, *value] for key, value in step.sends.items()],
                    "receives": [[*key, *value] for key, value in step.receives.items()],
                    "collectives": [[*key, *value] for key, value in step.collectives.items()],
                }
                for step in self.steps
            ],
        }


def step_seconds(records: Sequence[dict[str, Any]], window: int = 1, apart: Sequence[Sequence[int]] = ()) -> list[float]:
    """Seconds of every step after warm-up, without the time in which all ranks fetch data or evaluate.

    Of replicas whose ranks are listed in `apart`, which never wait for each other, those of the slowest.

    Each figure is the mean over `window` steps: as many as there are from one exchange to the next, whichever of them exchanges, or
    enough for ranks that take turns on a core.

    A step ends with its last rank. It starts with its first, but not before the previous step has ended: where ranks
    drift apart, one is in the next step while another ends this one, and time must not count twice.
    """
    if apart:
        rows = [step_seconds([records[rank] for rank in ranks], window) for ranks in apart]
        return [max(same) for same in zip(*rows, strict=True)]
    seconds, previous_end_s = [], float("-inf")
    for intervals in zip(*(record["intervals"] for record in records), strict=True):
        end_s = max(end for _, end in intervals)
        seconds.append(end_s - max(previous_end_s, min(start for start, _ in intervals)))
        previous_end_s = end_s
    kept = seconds[WARM_UP_STEPS:] or seconds
    starts = range(0, max(1, len(kept) - window + 1), window)
    return [mean(kept[start : start + window]) for start in starts] if window > 1 else kept


def answer_window(records: Sequence[dict[str, Any]]) -> int:
    """Batches of replicas that never wait for each other whose mean is one figure: the median batch has no turn of another in it."""
    return max(1, (len(records[0]["intervals"]) - WARM_UP_STEPS) // ANSWER_FIGURES)


def representative_timeline(records: Sequence[dict[str, Any]], apart: Sequence[Sequence[int]] = (), window: int = 1) -> Timeline:
    """The kept step whose seconds are nearest the median; `apart` as in `kept_timelines`, `window` as in `step_seconds`."""
    return _nearest(kept_timelines(records, apart), median(step_seconds(records, window, apart)))


def cycle_timeline(records: Sequence[dict[str, Any]], local_steps: int, replicas: Sequence[Sequence[int]]) -> Timeline:
    """A kept step that exchanges and one that does not, each with the median seconds of its kind; `replicas` are the ranks of each."""
    kept = kept_timelines(records)
    exchanging = [one for one in kept if exchanges(one)] or kept
    local = [_begun_together(one, replicas) for one in kept if not exchanges(one)] or kept
    middle, own = (_nearest(kind, median(one.period_s for one in kind)) for kind in (exchanging, local))
    return replace(middle, local_steps=local_steps, local=own)


def _begun_together(timeline: Timeline, replicas: Sequence[Sequence[int]]) -> Timeline:
    """A step without exchange as if all replicas had begun at once: none waits for the others in it."""
    spans, waits = list[Span](), list[Wait]()
    for ranks in replicas:
        own = [span for span in timeline.spans if span.rank in ranks]
        late_s = min(span.start_s for span in own) - timeline.start_s
        spans += [replace(span, start_s=span.start_s - late_s, end_s=span.end_s - late_s) for span in own]
        waits += [replace(one, start_s=one.start_s - late_s, end_s=one.end_s - late_s) for one in timeline.waits if one.rank in ranks]
    return replace(timeline, spans=tuple(spans), waits=tuple(waits), ahead_s=0.0)


def exchanges(timeline: Timeline) -> bool:
    """Whether gradients, or differences of weights, were exchanged in a step."""
    return any(span.label.endswith(Op.REDUCE_GRAD) for span in timeline.spans)


def _nearest(timelines: Sequence[Timeline], target_s: float) -> Timeline:
    return min(timelines, key=lambda timeline: abs(timeline.period_s - target_s))


def kept_timelines(records: Sequence[dict[str, Any]], apart: Sequence[Sequence[int]] = ()) -> list[Timeline]:
    """Timelines of all kept steps behind the warm-up, of all kept ones where none is behind it.

    Replicas whose ranks are listed in `apart` never wait for each other and drift: their steps are laid to one beginning.
    """
    kept = min(len(record["steps"]) for record in records)
    first = max(0, WARM_UP_STEPS - (len(records[0]["intervals"]) - kept))
    first = first if first < kept else 0
    merged = [_timeline_of(records, index - kept) for index in range(first, kept)]
    return [_begun_together(one, apart) for one in merged] if apart else merged


def _timeline_of(records: Sequence[dict[str, Any]], index: int) -> Timeline:
    """One kept step of all ranks (`index` counts from the last, which is -1), with what ran ahead of the end of the step before."""
    merged = merge_step([record["steps"][index] for record in records])
    if len(records[0]["intervals"]) < 1 - index:
        return merged
    previous_end_s = max(float(record["intervals"][index - 1][1]) for record in records)
    return replace(merged, ahead_s=min(max(0.0, previous_end_s - merged.start_s), merged.makespan_s))


def merge_step(steps: Sequence[dict[str, Any]]) -> Timeline:
    """One timeline from all ranks' records of the same step; its waits tell how long was waited for messages and collectives."""
    spans: list[Span] = []
    waits: list[Wait] = []
    for rank, step in enumerate(steps):
        for label, category, start, end, *sent_bytes in step["compute"]:
            stream: Stream = "collective" if category == "collective" else "compute"
            spans.append(Span(rank, stream, category, label, start, end, *sent_bytes))
    sends = {tuple(row[:4]): (rank, *row[4:]) for rank, step in enumerate(steps) for row in step["sends"]}
    for rank, step in enumerate(steps):
        for row in step["receives"]:
            sender, send_label, issued_s, message_bytes = sends[tuple(row[:4])]
            label, posted_s, end_s, *since_s = row[4:]
            start_s = min(max(issued_s, posted_s), end_s)
            spans.append(Span(sender, "send", "transfer", send_label, start_s, end_s, message_bytes))
            spans.append(Span(rank, "receive", "transfer", label, start_s, end_s, message_bytes))
            waits += _wait(rank, label, since_s, end_s, sender)
    joined: dict[tuple[Any, ...], float] = {}
    for step in steps:
        for row in step["collectives"]:
            key, issued_s = tuple(row[:4]), row[5]
            joined[key] = max(joined.get(key, issued_s), issued_s)
    for rank, step in enumerate(steps):
        for row in step["collectives"]:
            label, _, end_s, sent_bytes, *since_s = row[4:]
            spans.append(Span(rank, "collective", "collective", label, min(joined[tuple(row[:4])], end_s), end_s, sent_bytes))
            waits += _wait(rank, label, since_s, end_s)
    spans.sort(key=lambda span: (span.rank, span.stream, span.start_s))
    return Timeline(len(steps), tuple(spans), waits=tuple(waits))


def _wait(rank: int, label: str, since_s: Sequence[float | None], end_s: float, on_rank: int = -1) -> list[Wait]:
    return [Wait(rank, since, end_s, label, on_rank) for since in since_s if since is not None]
