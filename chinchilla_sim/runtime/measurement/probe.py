"""Measure this machine as a plan will use it: ranks with one thread each, as many busy at once as the run has.

`measure_machine` starts the ranks; each times kernels of many sizes while the others do the same, then all time
messages and collectives. Each timed call comes behind other work (`interlude`). Medians throughout.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from chinchilla_sim.cluster.calibration import Calibration, KernelRow, describe_machine, fit_device
from chinchilla_sim.cluster.curves import Table
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.cost.compute import OPTIMIZER_BYTES_PER_VALUE, forward_s
from chinchilla_sim.graph.task import LOSS_OP
from chinchilla_sim.graph.zoo import linear_task, mlp, relu_task
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.runtime.exchanges.codecs import encode
from chinchilla_sim.runtime.launching.launch import launch_ranks
from chinchilla_sim.runtime.launching.threads import CORES, keep_to_own_cores, order_network_threads
from chinchilla_sim.runtime.measurement.format_probe import (
    REREAD_BYTES,
    SWEPT_VALUES,
    format_rows,
    linear_curves,
    reread_s_per_byte,
    swept_median_s,
)
from chinchilla_sim.runtime.measurement.interlude import median_s, timed
from chinchilla_sim.runtime.measurement.reference import (
    REFERENCE_BATCH,
    REFERENCE_COUNTS,
    REFERENCE_HIDDEN_VALUES,
    REFERENCE_LAYERS,
    REFERENCE_PARAMETERS,
    ReferenceJob,
    fit_fixed_times,
    program_message_s,
    reference_step_s,
)
from chinchilla_sim.runtime.stage.passes import Passes
from chinchilla_sim.runtime.stage.stages import cut_stages
from chinchilla_sim.runtime.worker import prepare_process

INFERENCE_WIDTHS, SMALLEST_VALUES = (64, 512, 16), 64
LAYERS = ((784, 512), (512, 10), (256, 256), (1024, 1024), (64, 64))
BATCHES = (8, 16, 32, 64, 256)
OPTIMIZER_SIZES = (1_000, 100_000, 400_000, 2_000_000)
ELEMENT_SIZES = (1_000, 32_768, 400_000, 2_000_000)
MESSAGE_BYTES = (1_024, 16_384, 65_536, 262_144, 1_048_576, 4_194_304)
BUSY_S = 0.001


def measure_machine(rank_count: int) -> Calibration:
    """Measure with 1 .. `rank_count` busy ranks (powers of two and the count itself; `crowds` for computation) and fit the constants."""
    with tempfile.TemporaryDirectory(prefix="chinchilla-probe-") as folder:
        launch_ranks("chinchilla_sim.runtime.measurement.probe", [folder], rank_count, Path(folder))
        records = [json.loads(Path(folder, f"probe{rank}.json").read_text()) for rank in range(rank_count)]
    key = describe_machine(torch.__version__)
    devices, errors = {}, {}
    for count in crowds(rank_count):
        rows = _median_rows([record["kernels"][str(count)] for record in records[:count]])
        device, errors[count] = fit_device(rows, f"{key.cpu}, {count} busy", _memory_bytes() / rank_count)
        steps = {m: median(record["steps"][str(count)][str(m)] for record in records[:count]) for m in REFERENCE_COUNTS}
        curves = linear_curves([record["linear"][str(count)] for record in records[:count]])
        reread = tuple(zip(REREAD_BYTES, _medians([record["reread"][str(count)] for record in records[:count]]), strict=True))
        launch_s, pass_s = _medians([record["passes"][str(count)] for record in records[:count]])
        devices[count] = fit_inference(replace(fit_fixed_times(device, steps, rows), linear=curves, reread=reread), launch_s, pass_s)
    if rank_count > 1:
        message_s = median(record["program_message_s"] for record in records[:2])
        devices = {count: replace(device, host_message_s=message_s) for count, device in devices.items()}
    latency_s, bandwidth = _fit_transfer(records[0]["transfers"]) if rank_count > 1 else (0.0, float("inf"))
    collectives = {
        (name, int(count)): tuple((float(size), float(seconds)) for size, seconds in table)
        for name, by_count in records[0]["collectives"].items()
        for count, table in by_count.items()
    }
    return Calibration(key, date.today().isoformat(), devices, latency_s, bandwidth, collectives, errors)


def busy_counts(rank_count: int) -> list[int]:
    """Numbers of busy ranks to measure.

    >>> busy_counts(6)
    [1, 2, 4, 6]
    """
    return sorted({count for count in (1, 2, 4, 8, 16, 32, 64) if count < rank_count} | {rank_count})


def crowds(rank_count: int) -> list[int]:
    """Numbers of busy ranks whose computation is measured: at most one per core, because the simulator shares out the cores among more."""
    return busy_counts(min(rank_count, len(CORES) or rank_count))


def _memory_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _median_rows(by_rank: Sequence[Sequence[dict[str, Any]]]) -> list[KernelRow]:
    return [KernelRow(**(same[0] | {"measured_s": median(row["measured_s"] for row in same)})) for same in zip(*by_rank, strict=True)]


def _fit_transfer(table: Table) -> tuple[float, float]:
    """Latency and bandwidth of (bytes, seconds) rows by least squares on relative error."""
    sizes, seconds = np.array(table).T
    matrix = np.stack([1 / seconds, sizes / seconds], axis=1)
    (latency_s, byte_s), *_ = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)
    return max(1e-6, float(latency_s)), 1.0 / max(1e-12, float(byte_s))


def fit_inference(device: Device, launch_s: float, pass_s: float) -> Device:
    """Fixed seconds of a forward pass alone: what one sample takes through a network of the measured sizes beyond its kernels.

    `launch_s` is what the smallest kernel takes between two passes.
    """
    graph, bare = mlp(INFERENCE_WIDTHS, 1, training=False), replace(device, forward_launch_s=launch_s)
    fixed_s = pass_s - sum(forward_s(task, 1.0, bare) for task in graph.compute_tasks)
    return replace(device, inference_launch_s=launch_s, inference_fixed_s=max(1e-9, fixed_s))


def _medians(by_rank: Sequence[Sequence[float]]) -> list[float]:
    return [median(same) for same in zip(*by_rank, strict=True)]


# What follows runs in every rank.


def _measure_rank(folder: Path) -> None:
    prepare_process()
    torch.manual_seed(0)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, rank_count = dist.get_rank(), dist.get_world_size()
    record: dict[str, Any] = {
        "kernels": {},
        "linear": {},
        "reread": {},
        "passes": {},
        "steps": {},
        "transfers": [],
        "collectives": {"all_reduce": {}, "all_gather": {}},
    }
    for count in crowds(rank_count):
        dist.barrier()
        if rank < count:
            keep_to_own_cores(rank, count)
            record["kernels"][count] = [asdict(row) for row in _kernels()]
            record["linear"][count] = [asdict(row) for row in format_rows()]
            record["reread"][count] = [reread_s_per_byte(size) for size in REREAD_BYTES]
            record["passes"][count] = [_launch_s(), _pass_s()]
            record["steps"][count] = reference_step_s()
    for count in [count for count in busy_counts(rank_count) if count > 1]:
        group = dist.new_group(list(range(count)))
        order_network_threads()
        dist.barrier()
        if rank < count:
            keep_to_own_cores(rank, count)
            record["collectives"]["all_reduce"][count] = [[size, _all_reduce_s(size, group)] for size in MESSAGE_BYTES]
            record["collectives"]["all_gather"][count] = [[size, _all_gather_s(size, count, group)] for size in MESSAGE_BYTES]
    dist.barrier()
    if rank_count > 1 and rank < 2:
        keep_to_own_cores(rank, 2)
        record["transfers"] = [[size, _transfer_s(size, rank)] for size in MESSAGE_BYTES]
        record["program_message_s"] = program_message_s(rank)
    dist.barrier()
    Path(folder, f"probe{rank}.json").write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def _kernels() -> Iterator[KernelRow]:
    shapes = [(batch, *layer) for layer in LAYERS for batch in BATCHES]
    for batch, inputs, outputs in (*shapes, *((REFERENCE_BATCH, *layer) for layer in REFERENCE_LAYERS)):
        yield from _linear_rows(batch, inputs, outputs)
    yield from _relu_rows()
    yield from _optimizer_rows()
    yield from _element_rows()


def _linear_rows(batch: int, inputs: int, outputs: int) -> Iterator[KernelRow]:
    layer = nn.Linear(inputs, outputs)
    upstream = torch.randn(batch, outputs)
    plain, tracked = torch.randn(batch, inputs), torch.randn(batch, inputs, requires_grad=True)

    def forward(_: int) -> float:
        return timed(lambda: linear(plain, layer.weight, layer.bias))

    def backward(x: Tensor) -> float:
        output = linear(x, layer.weight, layer.bias)
        seconds = timed(lambda: torch.autograd.backward(output, upstream))
        layer.zero_grad()
        x.grad = None
        return seconds

    for tracking, x in ((False, plain), (True, tracked)):
        task = linear_task(batch, inputs, outputs, input_needs_gradient=tracking)
        moved = task.backward_read_bytes + task.backward_written_bytes
        seconds = median_s(lambda _, x=x: backward(x))  # type: ignore[misc]
        yield KernelRow("backward", 1 + tracking, task.backward_flop, moved, seconds)
    yield KernelRow("forward", 1, task.forward_flop, task.read_bytes + task.written_bytes, median_s(forward))


def _relu_rows() -> Iterator[KernelRow]:
    for size in (*ELEMENT_SIZES[:3], REFERENCE_HIDDEN_VALUES):
        task = relu_task(size)
        x = torch.randn(size, requires_grad=True)
        upstream = torch.randn(size)
        yield KernelRow("forward", 1, 0.0, task.read_bytes + task.written_bytes, median_s(lambda _, x=x: timed(lambda: relu(x))))  # type: ignore[misc]

        def backward(_: int, x: Tensor = x, upstream: Tensor = upstream) -> float:
            output = relu(x)
            seconds = timed(lambda: torch.autograd.backward(output, upstream))
            x.grad = None
            return seconds

        yield KernelRow("backward", 1, 0.0, task.backward_read_bytes + task.backward_written_bytes, median_s(backward))


def _optimizer_rows() -> Iterator[KernelRow]:
    for size in (*OPTIMIZER_SIZES, REFERENCE_PARAMETERS):
        parameter = nn.Parameter(torch.randn(size))
        parameter.grad = torch.randn(size)
        for kind, optimizer in (("adam", torch.optim.Adam([parameter], fused=True)), ("sgd", torch.optim.SGD([parameter], fused=True))):
            seconds = median_s(lambda _, optimizer=optimizer: timed(optimizer.step))  # type: ignore[misc]
            yield KernelRow("optimizer", 1, 0.0, OPTIMIZER_BYTES_PER_VALUE[kind] * size, seconds)


def _element_rows() -> Iterator[KernelRow]:
    for size in ELEMENT_SIZES:
        values = torch.randn(size)
        halves = [values[: size // 2], values[size // 2 :]]
        yield KernelRow("elementwise", 1, 0.0, 8.0 * size, median_s(lambda _, halves=halves: timed(lambda: torch.cat(halves))))  # type: ignore[misc]
        for name in ("bf16", "int8"):
            codec = CODECS[name]
            seconds = median_s(lambda _, name=name, values=values: timed(lambda: encode(name, values)))  # type: ignore[misc]
            yield KernelRow("elementwise", codec.encode_kernels, 0.0, codec.encode_bytes * size, seconds)


def _launch_s() -> float:
    """Seconds of a kernel with next to nothing to do, between two forward passes."""
    x = torch.randn(SMALLEST_VALUES)
    return swept_median_s(lambda _: timed(lambda: relu(x)))


def _pass_s() -> float:
    """Seconds of a forward pass of one sample through a network of INFERENCE_WIDTHS, as a rank runs it."""
    names = tuple(task.name for task in mlp(INFERENCE_WIDTHS, 1).compute_tasks if task.op != LOSS_OP)
    plan = Plan((names,), ((0,),), (0,), 1, 1, "forward", ("none",), ())
    job = ReferenceJob(INFERENCE_WIDTHS)
    (stage,) = cut_stages(job, job.model(), plan, (0,), torch.device("cpu"))
    passes, source = Passes(stage, None), torch.rand(1, INFERENCE_WIDTHS[0])
    return swept_median_s(lambda _: timed(lambda: passes.infer((source,))), minimum=50)


def _transfer_s(size: int, rank: int) -> float:
    """One way between ranks 0 and 1: half of a round trip whose receives are posted early, as programs post them.

    Both compute for a while before they send, as ranks of a plan do: between two that do nothing else a message is
    several times faster, because no thread has to be woken.
    """
    outgoing, incoming = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    other = 1 - rank

    def round_trip(_: int) -> float:
        receive: Any = dist.irecv(incoming, src=other)
        if rank:
            receive.wait()
        compute_for(BUSY_S)
        start_s = monotonic()
        dist.send(outgoing, dst=other)
        if rank == 0:
            receive.wait()
        return (monotonic() - start_s - BUSY_S) / 2

    return _repeated(round_trip)


def _all_reduce_s(size: int, group: Any) -> float:
    values = torch.zeros(size // 4)
    return _repeated(lambda _: _after_computing(lambda: dist.all_reduce(values, group=group)))


def _all_gather_s(size: int, count: int, group: Any) -> float:
    values = torch.zeros(size, dtype=torch.uint8)
    outputs = [torch.empty_like(values) for _ in range(count)]
    return _repeated(lambda _: _after_computing(lambda: dist.all_gather(outputs, values, group=group)))


def _after_computing(function: Callable[[], Any]) -> float:
    """Seconds of a collective that every rank joins after the same time of computation."""
    compute_for(BUSY_S)
    return timed(function)


def compute_for(duration_s: float) -> None:
    """Keep the core busy and its cache swept for exactly this long."""
    end_s = monotonic() + duration_s
    torch.zeros(SWEPT_VALUES // 2).add_(1.0)
    while monotonic() < end_s:
        pass


def _repeated(run: Callable[[int], float], count: int = 100) -> float:
    """Median of a fixed number of runs: all ranks of a collective must make the same."""
    return median([run(index) for index in range(count)][5:])


if __name__ == "__main__":
    _measure_rank(Path(sys.argv[1]))
