"""One process's part of a run that answers requests.

Processes of a first stage take batches from the one line of waiting requests (`line.py`); a batch passes the stages of its replica as
one message each, and the last stage stamps its answer and tells the first. A replica holds no more batches than its window. All
processes of a machine read the same clock. Requests are the samples of the job's validation data, again from the first when they end.

A message is whole numbers, first (the first request and the number of requests, then the lengths of all dims of all tensors), and the
tensors as the boundary's codec packs them. Receives are posted for a full microbatch; gloo fills a part of a longer buffer.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.trace import as_tuple
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.serving import ClosedLoop, Load, demand_of, priced_sizes, with_batch
from chinchilla_sim.runtime.answering.line import Batch, Counter, OwnText, SharedLine, Source, opened_line
from chinchilla_sim.runtime.engine.engines import Engine
from chinchilla_sim.runtime.exchanges.codecs import MessageCodec, TensorSpec
from chinchilla_sim.runtime.exchanges.groups import process_of
from chinchilla_sim.runtime.rank.training import RankRun
from chinchilla_sim.runtime.stage.batches import batch_length
from chinchilla_sim.runtime.stage.dtypes import cast_floating, run_dtype
from chinchilla_sim.runtime.stage.stages import Stage, cut_stages

ORDERS = "requests.json"
"""What a run on requests finds beside its plan: how many requests, and the window of each replica."""
MOST_SAMPLES = 4096
KEPT_ANSWERS = 256
POLL_S = 2e-4
OPENING_S = 0.1
WARM_UPS = 2
END = 0
TAGS = 1 << 12


@dataclass(frozen=True, slots=True)
class Orders:
    """What a run on requests is told beside its plan."""

    count: int
    windows: tuple[int, ...]

    def save(self, folder: Path) -> None:
        """Write it into the folder of the run."""
        (folder / ORDERS).write_text(json.dumps({"count": self.count, "windows": list(self.windows)}))

    @staticmethod
    def remove(folder: Path) -> None:
        """Take it out of the folder."""
        (folder / ORDERS).unlink(missing_ok=True)

    @staticmethod
    def load(folder: Path) -> Orders:
        """Inverse of `save`."""
        data = json.loads((folder / ORDERS).read_text())
        return Orders(data["count"], tuple(data["windows"]))


def make_run(file: PlanFile, folder: Path, device: torch.device, engine: Engine = "chinchilla") -> RankRun | ServingRun:
    """The kind of run that the folder asks for."""
    return ServingRun(file, folder, device) if (folder / ORDERS).exists() else RankRun(file, folder, device, engine)


class ServingRun(RankRun):
    """One process of a run on requests; the process group is there already."""

    def __init__(self, file: PlanFile, folder: Path, device: torch.device) -> None:
        if device.type != "cpu":
            raise RunError("requests are served on CPUs only: NCCL does not fill a part of a longer buffer")
        self.sizes = priced_sizes(file.plan.microbatch_size)
        self.fixed: dict[int, Stage] = {}
        super().__init__(file, folder, device)
        self.stage = self.stages[0]
        self.orders, self.demand = Orders.load(folder), demand_of(self.spec)
        assert self.demand is not None and len(self.stages) == 1
        times = tuple(self.demand.arrivals_s(self.orders.count).tolist()) if isinstance(self.demand, Load) else None
        self.source = Source(self.orders.count, self.plan.microbatch_size, times)
        self.window = self.orders.windows[self.seat.replica]
        self.first, self.last = self.stage.number == 0, self.stage.last
        self.line = self._shared_line()
        self.start_s, self.open = 0.0, False
        self.channel = Channel(self)
        self.taken: list[Batch] = []
        self.answered: list[tuple[int, int, float]] = []
        self.busy: list[tuple[int, int, float, float]] = []
        self.answers: list[Tensor] = []

    def _cut(self) -> list[Stage]:
        """Stages for any number of requests; else one for each priced size, whose batches are filled up."""
        stages = cut_stages(self.job, self.model, self.plan, self.seat.stages, self.device, dynamic=True, variant=self.variant)
        if not stages[0].dynamic:
            for size in self.sizes:
                plan = with_batch(self.plan, size)
                (self.fixed[size],) = cut_stages(self.job, self.model, plan, self.seat.stages, self.device, variant=self.variant)
        return stages

    def _shared_line(self) -> SharedLine:
        concurrency = self.demand.concurrency if isinstance(self.demand, ClosedLoop) else None
        opened = opened_line(self.plan.data_parallel_degree, self.source, concurrency)
        if len(self.plan.slots) == 1:
            return SharedLine(OwnText().swap, opened)
        store = dist.distributed_c10d.PrefixStore(f"line {self.folder}", dist.distributed_c10d._get_default_store())
        return SharedLine(lambda expected, desired: store.compare_set("line", expected, desired).decode(), opened)

    def clock(self) -> float:
        """Seconds since the opening of the line."""
        return time.monotonic() - self.start_s

    def run(self) -> None:
        """Warm up, answer all requests, and write down what happened."""
        sizes = iter([size for size in self.sizes for _ in range(WARM_UPS)])
        self._play(lambda: next((Batch(0, size, 0.0, ()) for size in sizes), None))
        for record in (self.taken, self.answered, self.busy, self.answers):
            record.clear()
        self.start_s = self._opening_s()
        self.open = True
        self._play(Counter(self.line, self.source, self.seat.replica, self.clock, time.sleep, POLL_S).take)
        self._write()
        dist.barrier()

    @staticmethod
    def _opening_s() -> float:
        """A moment soon on the machine's clock, the same for all processes, when all are ready."""
        dist.barrier()
        opening = torch.tensor([time.monotonic() + OPENING_S], dtype=torch.float64)
        dist.broadcast(opening, 0)
        return float(opening)

    def _play(self, take: Callable[[], Batch | None]) -> None:
        self.channel.begin()
        if self.first:
            self._take_batches(take)
        else:
            for first, size, tensors in self.channel.messages():
                start_s = self.clock()
                self._pass_on(first, size, self._infer(size, tensors), start_s)
        self.channel.finish()

    def _take_batches(self, take: Callable[[], Batch | None]) -> None:
        """What a first stage does: a batch, as soon as the window has room for one."""
        self.channel.await_room()
        while (batch := take()) is not None:
            start_s = self.clock()
            self._pass_on(batch.first, batch.size, self._infer(batch.size, self._requests(batch.first, batch.size)), start_s)
            self.taken.append(batch)
            self.channel.await_room()

    def _pass_on(self, first: int, size: int, outputs: tuple[Tensor, ...], start_s: float) -> None:
        """Give a batch to the next stage, or stamp its answer and tell those who wait for it."""
        if not self.last:
            self.channel.send(first, size, outputs)
            self.busy.append((first, size, start_s, self.clock()))
            return
        now_s = self.clock()
        self.busy.append((first, size, start_s, now_s))
        self.answered.append((first, size, now_s))
        if not self.first:
            self.channel.acknowledge(first)
        if self.open and self.source.times_s is None:
            self.line.change(lambda line: (line.answer(self.source, now_s, size), None))
        if sum(map(len, self.answers)) < KEPT_ANSWERS:
            self.answers.append(outputs[0].clone())

    def _infer(self, size: int, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            if not self.fixed:
                return self.stage(*inputs)
            fitting = next(other for other in self.sizes if other >= size)
            filled = (torch.cat([tensor, tensor[-1:].expand(fitting - size, *tensor.shape[1:])]) for tensor in inputs)
            return tuple(output[:size] for output in self.fixed[fitting](*filled))

    def _requests(self, first: int, size: int) -> tuple[Tensor, ...]:
        places = torch.arange(first, first + size) % len(self.samples[0])
        return tuple(tensor[places] for tensor in self.samples)

    @cached_property
    def samples(self) -> tuple[Tensor, ...]:
        """Inputs of up to MOST_SAMPLES requests, in the precision of the job."""
        parts, wanted = list[tuple[Tensor, ...]](), min(MOST_SAMPLES, self.orders.count)
        for inputs, _ in self.job.batches("validation", self.spec.seed, 0):
            parts.append(as_tuple(inputs))
            if sum(map(batch_length, parts)) >= wanted:
                break
        if not parts:
            raise RunError("the job has no validation data to ask about: its batches() yields none")
        return tuple(cast_floating(torch.cat(tensors), run_dtype(self.spec.precision)) for tensors in zip(*parts, strict=True))

    def _write(self) -> None:
        record = {
            "taken": [[batch.first, batch.size, batch.start_s, list(batch.arrivals_s)] for batch in self.taken],
            "answered": self.answered,
            "busy": self.busy,
            "sent_bytes": self.channel.sent_bytes,
            "fixed_sizes": list(self.fixed),
            "metrics": self._evaluate() if self.seat.process == 0 and self.file.scenario.model.weights else {},
        }
        (self.folder / f"rank{self.seat.process}.json").write_text(json.dumps(record))
        if self.last:
            kept = {first: answers for (first, *_), answers in zip(self.answered, self.answers, strict=False)}
            torch.save(kept, self.folder / f"answers{self.seat.process}.pt")


class Channel:
    """Messages of one process: from the stage before, to the one behind, and from the last stage back to the first."""

    def __init__(self, run: ServingRun) -> None:
        plan, seat, stage = run.plan, run.seat, run.stage
        peers = [process_of(plan, row[seat.replica], seat.lane) for row in plan.placement]
        self.run, self.first, self.last = run, run.first, run.last
        self.before = None if run.first else peers[stage.number - 1]
        self.behind = None if run.last else peers[stage.number + 1]
        self.head, self.tail = peers[0], peers[-1]
        self.depth = max(1, min(run.window, plan.receives_in_flight))
        self._leaving: deque[tuple[Any, Tensor]] = deque()
        self._inside: deque[tuple[Any, Tensor]] = deque()
        self._codecs: dict[tuple[int, tuple[tuple[int, ...], ...]], MessageCodec] = {}
        self.begin()

    def begin(self) -> None:
        """Count anew: both ends of a message number it alike."""
        self.sent = self.received = self.sent_bytes = 0

    # Towards the last stage

    def send(self, first: int, size: int, tensors: Sequence[Tensor]) -> None:
        """Give a batch to the next stage; the first stage also waits for word of its answer."""
        message = self._pack(first, size, tensors)
        self._issue(message, self.behind, 2 * (self.sent % TAGS))
        if self.first:
            word = torch.empty(1, dtype=torch.int64)
            self._inside.append((dist.irecv(word, src=self.tail, tag=2 * (self.sent % TAGS) + 1), word))
        self.sent += 1
        self.sent_bytes += message.numel()

    def _issue(self, message: Tensor, target: int | None, tag: int) -> None:
        # What was sent a window of batches ago has arrived: its answer is back. gloo does not tell itself (`is_completed` stays false).
        while len(self._leaving) > self.run.window + self.depth:
            self._leaving.popleft()[0].wait()
        self._leaving.append((dist.isend(message, dst=target, tag=tag), message))

    def _pack(self, first: int, size: int, tensors: Sequence[Tensor]) -> Tensor:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        header = torch.tensor([first, size, *(length for shape in shapes for length in shape)], dtype=torch.int64)
        payload = self._codec(self.run.stage.number, shapes).encode([tensor.contiguous() for tensor in tensors])
        return torch.cat([header.view(torch.uint8), payload])

    def _codec(self, boundary: int, shapes: tuple[tuple[int, ...], ...]) -> MessageCodec:
        if (boundary, shapes) not in self._codecs:
            stage = self.run.stage
            specs = stage.output_specs if boundary == stage.number else stage.input_specs
            pairs = zip(shapes, specs, strict=True)
            codec = MessageCodec(self.run.plan.activation_codecs[boundary], [TensorSpec(shape, spec.dtype) for shape, spec in pairs])
            self._codecs[boundary, shapes] = codec
        return self._codecs[boundary, shapes]

    def messages(self) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(first request, number of requests, tensors) of every batch from the stage before, until it sends an end."""
        stage = self.run.stage
        header = 2 + sum(len(spec.shape) for spec in stage.input_specs)
        full = self._codec(stage.number - 1, tuple(spec.shape for spec in stage.input_specs)).wire_bytes
        posted = deque(self._post(torch.empty(8 * header + full, dtype=torch.uint8)) for _ in range(self.depth))
        while posted:
            work, buffer = posted.popleft()
            work.wait()
            first, size, *lengths = buffer[: 8 * header].view(torch.int64).tolist()
            if size == END:
                continue  # the other posted receives get one each, too
            ends = [0]
            for spec in stage.input_specs:
                ends.append(ends[-1] + len(spec.shape))
            codec = self._codec(stage.number - 1, tuple(tuple(lengths[start:end]) for start, end in pairwise(ends)))
            yield first, size, codec.decode(buffer[8 * header : 8 * header + codec.wire_bytes])
            posted.append(self._post(buffer))

    def _post(self, buffer: Tensor) -> tuple[Any, Tensor]:
        self.received += 1
        return dist.irecv(buffer, src=self.before, tag=2 * ((self.received - 1) % TAGS)), buffer

    # Back to the first

    def acknowledge(self, first: int) -> None:
        """Tell the first stage that a batch has been answered."""
        self._issue(torch.tensor([first], dtype=torch.int64), self.head, 2 * (self.sent % TAGS) + 1)
        self.sent += 1

    def await_room(self) -> None:
        """Until the replica holds fewer batches than its window."""
        while len(self._inside) >= self.run.window:
            self._inside.popleft()[0].wait()

    def finish(self) -> None:
        """Wait for all answers, and tell the next stage that there is no more."""
        while self._inside:
            self._inside.popleft()[0].wait()
        if not self.last:
            for _ in range(self.depth):
                self._issue(torch.tensor([0, END], dtype=torch.int64).view(torch.uint8), self.behind, 2 * (self.sent % TAGS))
                self.sent += 1
        while self._leaving:
            self._leaving.popleft()[0].wait()
