"""Throughput with gradient compression that others measured (GRACE, Xu et al. 2021), against codec physics.

GRACE runs each method on every gradient tensor for itself, written in TensorFlow 1 operators, and exchanges it with Horovod over MPI:
copied to the host, sent over TCP, copied back. Per step of p workers, n tensors of t bytes and C seconds of computation:

    encode, decode   operators * launch + bytes / memory bandwidth, loops and sorts apart; after an all-gather p payloads are decoded
    exchange         tensor by tensor on one thread: negotiation, copies, and the collective (cost/collective.py); sums on the host
    step             C/3 + max(B + exchange, B/n + n exchange) + decode      B = 2/3 C + encode: the exchange starts in the backward pass

C is what one worker alone takes (a row of method `none`). Bytes follow from a method's definition; where they depend on the
gradients or on shapes, the benchmark's own count of bytes is taken (rows of mode data-volume). Throughput of any method is told
relative to `none`, and ranked within a model and bandwidth (Spearman). METHODS says what each does by its definition, the constants hold
for all rows. None is fitted, but the assumed ones were chosen with GRACE's figures in sight: halving or doubling any of them moves the
median correlation (0.92) by 0.04 at most. Bytes sent alone reach 0.47.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from statistics import median

from scipy.stats import spearmanr

from chinchilla_sim.cluster.topology import Backend, Link
from chinchilla_sim.cost.collective import halving_doubling_all_reduce_s, ring_all_gather_s, ring_all_reduce_s
from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.units import plain_number

OPERATOR_S = 10e-6
"""A GPU operator of TensorFlow 1, launch and executor (assumed: launch 5 us, executor as much)."""

MEMORY_BYTES_PER_S = 700e9
"""V100: 900 GB/s by datasheet, less a fifth, as streaming kernels reach it (Jia et al. 2018)."""

LOOP_S = 100e-6
"""One turn of a while loop on a GPU: five operators, and its condition back on the host (assumed)."""

SORTED_VALUE_S = 8e-9
"""TensorFlow's top_k of one long row is a segmented radix sort, one thread block a segment: an eightieth of a V100 (assumed)."""

SHUFFLED_VALUE_S = 50e-9
"""tf.random.shuffle has no GPU kernel: on one core of the host two accesses that miss the cache for each value (assumed)."""

COPY_S, COPY_BYTES_PER_S = 15e-6, 6e9
"""Between device and host, pageable memory over PCIe 3 x16 (bandwidthTest of CUDA's samples reports about 6 GB/s)."""

LATENCY_S = 35e-6
"""A small message between processes over TCP (25 to 50 us on 10 Gbit/s Ethernet)."""

HOST_BYTES_PER_S = 1.6e9
"""What one MPI thread puts through sockets, however fast the link (assumed: 13 Gbit/s)."""

SUM_BYTES_PER_S = 4e9
"""MPI's sum on one core reads two operands and writes one (12 GB/s of memory traffic)."""

BACKWARD_SHARE = 2 / 3
MODELS = {
    "resnet20_v2": (51, 36_864, 256),
    "densenet40_k12": (158, 92_416, 256),
    "resnet50": (161, 2_359_296, 128),
    "unet": (46, 589_824, 2),
    "ncf": (10, 17_727_104, 2**20),
    "LSTM": (6, 6_500_000, 1),
}
"""Tensors, values of the largest, samples of a worker's step.

Tensors: (bytes of 8bit - bytes of signsgd) / 4, one scale a tensor, in GRACE's own counts (LSTM: qsgd); ResNet-50's 161 are 53
convolutions, 106 of normalization and 2. Largest: convolutions (DenseNet's and U-Net's assumed: 304 x 304, 256 x 256 x 3 x 3); NCF's
table of 138,493 users x 128; the medium LSTM's softmax, 650 x 10,000. Samples: as the file says; ResNet-50's are not in it: 128, as
with 64 the run at 1 Gbit/s would beat its wire; NCF's 2^20 are the usual batch of NVIDIA's example, per worker for the same reason;
LSTM counts steps of all workers."""

MEASURED_MODE, COUNTED_MODE = "throughput", "data-volume"
COLUMNS: tuple[str, ...] = ("id", "model", "n_workers", "inter_node_gbps", "transport", "backend", "comm_method", "method", "method_param")
COLUMNS += ("error_feedback", "grad_mb_uncompressed", "throughput_per_s", "sent_mb_per_step", "mode")
FEWEST = 8
LEFT_OUT = {"vgg19": "its baseline contradicts its other rows"}


@dataclass(frozen=True, slots=True)
class Method:
    """What a method does to one tensor, written out in operators.

    `value_bytes` are sent for every value, None where the benchmark counted them; `kept` for the share of values that a ratio keeps.
    Of the operators `encode_dense` and `decode_dense` pass over the whole tensor; `sorts` and `loops` (turns at most) come on top.
    """

    encode: int
    decode: int
    value_bytes: float | None = 0.0
    kept_bytes: float = 0.0
    encode_dense: int = 0
    decode_dense: int = 1
    sorts: int = 0
    loops: int = 0
    shuffles: bool = False
    exchanges: int = 1


def _dense(encode: int, decode: int, value_bytes: float | None = 1.0, sorts: int = 0) -> Method:
    return Method(encode, decode, value_bytes, encode_dense=encode, decode_dense=decode, sorts=sorts)


METHODS = {
    "none": Method(0, 0, 4.0, decode_dense=0),
    "signsgd": _dense(2, 3),  # signs travel as bytes
    "signum": _dense(6, 3),  # and momentum
    "efsignsgd": _dense(6, 6),  # and the mean magnitude
    "onebit": _dense(14, 9),  # and the means of both signs
    "terngrad": _dense(16, 4),  # clipped, drawn, with a scale
    "qsgd": _dense(16, 6),  # norm, drawn levels
    "8bit": _dense(29, 9),  # binary search in 128 bins
    "natural": _dense(24, 13),  # exponents, drawn, by bit operations
    "inceptionn": _dense(70, 60, None),  # four classes by magnitude, packed each for itself
    "sketch": _dense(12, 5, sorts=1),  # quantiles of the sorted values
    "topk": Method(5, 5, kept_bytes=8.0, encode_dense=1, sorts=1),
    "randomk": Method(4, 3, kept_bytes=4.0, encode_dense=1, shuffles=True),  # indices from a common seed: values alone are summed
    "threshold": Method(7, 6, None, encode_dense=3),
    "dgc": Method(24, 6, kept_bytes=8.0, encode_dense=12, loops=10),  # threshold from a sample, corrected
    "adaq": Method(20, 10, None, encode_dense=6, loops=40),  # thresholds of both signs, searched for each in 20 turns
    "powersgd": Method(6, 1, None, encode_dense=2, exchanges=2),
}
TWO_BYTES_FROM = {"qsgd": 128, "sketch": 256}
"""Levels that signed and unsigned bytes do not hold."""

FEEDBACK_OPERATORS = 5
"""Residual times decay plus gradient (3), and what was sent taken off and stored (2); the payload is also decoded once."""


@dataclass(frozen=True, slots=True)
class CodecRow:
    """A measured run; `sent_bytes` is what each worker gives to the exchange of a step, where the benchmark counted it."""

    id: str
    model: str
    workers: int
    bandwidth_bytes_per_s: float
    transport: str
    backend: str
    collective: str
    method: str
    parameter: str
    feedback: bool
    gradient_bytes: float
    throughput: float
    sent_bytes: float | None = None

    @property
    def setting(self) -> tuple[str, int, float, str, str]:
        """What runs that are compared have in common."""
        return self.model, self.workers, self.bandwidth_bytes_per_s, self.transport, self.backend


@dataclass(frozen=True, slots=True)
class PredictedCodec:
    """Throughput over that of `none`, as simulated and as measured, and seconds of the simulated step."""

    row: CodecRow
    step_s: float
    simulated: float
    measured: float


@dataclass(frozen=True, slots=True)
class CodecGroup:
    """Runs of a model at one bandwidth: rank correlation, and median of the relative error of relative throughput."""

    model: str
    bandwidth_bytes_per_s: float
    rows: int
    spearman: float
    median_error: float


@dataclass(frozen=True, slots=True)
class CodecResult:
    """All predicted runs, groups of at least FEWEST, and why rows were not used."""

    predicted: tuple[PredictedCodec, ...]
    groups: tuple[CodecGroup, ...]
    unused: dict[str, int]

    @property
    def median_spearman(self) -> float | None:
        """Over the groups."""
        return median(group.spearman for group in self.groups) if self.groups else None


def check_codecs(path: Path) -> CodecResult:
    """Relative throughput of every measured run; ScenarioError where the file cannot be read."""
    rows, unused = read_codec_rows(path)
    alone = {row.model: row.throughput for row in rows if row.workers == 1 and row.method == "none"}
    together = [row for row in rows if row.workers > 1]
    base = {row.setting: row for row in together if row.method == "none"}
    predicted = []
    for row in together:
        reason = _why_unused(row, row.setting in base, row.model in alone)
        if reason:
            unused[reason] += 1
            continue
        none = base[row.setting]
        compute_s = MODELS[row.model][2] / alone[row.model]
        step_s, none_s = codec_step_s(row, compute_s), codec_step_s(none, compute_s)
        predicted.append(PredictedCodec(row, step_s, none_s / step_s, row.throughput / none.throughput))
    return CodecResult(tuple(predicted), tuple(_groups(predicted)), dict(unused))


def _why_unused(row: CodecRow, has_base: bool, has_alone: bool) -> str:
    if row.model in LEFT_OUT:
        return f"{row.model}: {LEFT_OUT[row.model]}"
    if row.model not in MODELS:
        return f"tensors of {row.model} are not known"
    if row.method not in METHODS:
        return f"method {row.method} is not known"
    if not has_base or not has_alone:
        return "no run of none to compare with" if not has_base else "no run on one worker"
    if METHODS[row.method].value_bytes is None and row.sent_bytes is None:
        return f"bytes of {row.method} depend on the gradients and were not counted"
    return ""


def _groups(predicted: Iterable[PredictedCodec]) -> list[CodecGroup]:
    together: dict[tuple[str, float], list[PredictedCodec]] = {}
    for one in predicted:
        together.setdefault((one.row.model, one.row.bandwidth_bytes_per_s), []).append(one)
    groups = []
    for (model, bandwidth), rows in sorted(together.items()):
        if len(rows) >= FEWEST:
            correlation = float(spearmanr([row.simulated for row in rows], [row.measured for row in rows]).statistic)
            error = median(abs(row.simulated / row.measured - 1.0) for row in rows)
            groups.append(CodecGroup(model, bandwidth, len(rows), correlation, error))
    return groups


# Physics


def codec_step_s(row: CodecRow, compute_s: float) -> float:
    """Seconds of one step of several workers; `compute_s` is one worker's alone."""
    method, (tensors, largest, _) = METHODS[row.method], MODELS[row.model]
    values = row.gradient_bytes / 4
    copies = row.workers if row.collective == "allgather" else 1
    decoding_s = _operators_s(method.decode, method.decode_dense, tensors, values)
    encode_s = _operators_s(method.encode, method.encode_dense, tensors, values)
    encode_s += method.loops * tensors * LOOP_S + method.sorts * values * SORTED_VALUE_S
    if row.feedback:
        encode_s += _operators_s(FEEDBACK_OPERATORS, FEEDBACK_OPERATORS, tensors, values) + decoding_s
    decode_s = copies * decoding_s
    if copies > 1:
        # One operator adds all copies.
        decode_s += tensors * OPERATOR_S + (copies + 1) * row.gradient_bytes / MEMORY_BYTES_PER_S
    exchange_s = method.exchanges * _exchange_s(row, _payload_bytes(row, method) / tensors / method.exchanges)
    backward_s = BACKWARD_SHARE * compute_s + encode_s
    ended_s = max(backward_s + exchange_s, backward_s / tensors + tensors * exchange_s)
    waits_s = max(0.0, largest * SHUFFLED_VALUE_S - compute_s) if method.shuffles else 0.0
    return (1 - BACKWARD_SHARE) * compute_s + ended_s + decode_s + waits_s


def _operators_s(operators: int, dense: int, tensors: int, values: float) -> float:
    """Seconds of so many operators on every tensor, some of which read and write all values."""
    return operators * tensors * OPERATOR_S + dense * 8 * values / MEMORY_BYTES_PER_S


def _payload_bytes(row: CodecRow, method: Method) -> float:
    """What a worker gives to the exchanges of one step."""
    values = row.gradient_bytes / 4
    if method.value_bytes is None:
        assert row.sent_bytes is not None
        return row.sent_bytes
    number = float(row.parameter.partition("=")[2] or 0.0)
    wide = row.method in TWO_BYTES_FROM and number >= TWO_BYTES_FROM[row.method]
    return values * (method.value_bytes * (2 if wide else 1) + method.kept_bytes * number)


def _exchange_s(row: CodecRow, payload: float) -> float:
    """Seconds of one tensor's exchange: the coordinator hears all and answers, copies to the host and back, the collective."""
    link = Link(LATENCY_S, min(row.bandwidth_bytes_per_s, HOST_BYTES_PER_S if row.backend == "mpi" else row.bandwidth_bytes_per_s))
    plain, rounds = Backend("plain"), 2 * log2(row.workers)
    received = payload * (row.workers if row.collective == "allgather" else 1)
    seconds = rounds * LATENCY_S
    if row.backend == "mpi":
        seconds += 2 * COPY_S + (payload + received) / COPY_BYTES_PER_S
    if row.collective == "allgather":
        return seconds + ring_all_gather_s(payload, row.workers, link, plain)
    seconds += payload / SUM_BYTES_PER_S if row.backend == "mpi" else 0.0
    power = row.workers & (row.workers - 1) == 0
    reduce_s = (halving_doubling_all_reduce_s if power else ring_all_reduce_s)(payload, row.workers, link, plain)
    return seconds + reduce_s


# Reading


def read_codec_rows(path: Path) -> tuple[list[CodecRow], Counter[str]]:
    """Measured runs with the bytes that the benchmark counted, and how many other rows there are, by reason."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}" if len(missing) < len(COLUMNS) else "it has none of its columns")
            table = list(reader)
        counted = {}
        unused: Counter[str] = Counter()
        for row in table:
            if row["mode"] == COUNTED_MODE and row["sent_mb_per_step"]:
                counted[_counted_key(row)] = 1e6 * float(row["sent_mb_per_step"])
        rows = []
        for row in table:
            if row["mode"] != MEASURED_MODE:
                unused[f"mode {row['mode'] or 'not stated'}"] += 1
            elif not row["throughput_per_s"] or not row["grad_mb_uncompressed"]:
                unused["throughput or bytes of gradients are not stated"] += 1
            else:
                rows.append(_row(row, counted))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        what = f"cannot be read: {why_unreadable(error)}"
        raise ScenarioError([Mistake("", what, f"give columns {', '.join(COLUMNS)}")], str(path)) from error
    if not rows:
        raise ScenarioError([Mistake("", f"holds no row of mode {MEASURED_MODE}", "give measured runs")], str(path))
    return rows, unused


def _counted_key(row: dict[str, str]) -> tuple[str, ...]:
    return row["model"], row["method"], row["method_param"]


def _row(row: dict[str, str], counted: dict[tuple[str, ...], float]) -> CodecRow:
    workers, gradients, throughput = int(row["n_workers"]), 1e6 * float(row["grad_mb_uncompressed"]), float(row["throughput_per_s"])
    bandwidth = float(row["inter_node_gbps"] or workers == 1) * 1e9 / 8
    if workers < 1 or not all(0 < value < float("inf") for value in (gradients, throughput, bandwidth)):
        raise ValueError(
            f"row {row['id']}: {workers} workers, {plain_number(gradients)} B of gradients, {plain_number(throughput)} a second"
        )
    return CodecRow(
        row["id"], row["model"], workers, bandwidth, row["transport"], row["backend"], row["comm_method"], row["method"],
        row["method_param"], row["error_feedback"] == "1", gradients, throughput, counted.get(_counted_key(row)),
    )  # fmt: skip


def write_predicted_codecs(predicted: Sequence[PredictedCodec], path: Path) -> None:
    """One line per run: id, simulated_step_s, simulated_rel_throughput, measured_rel_throughput."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "simulated_step_s", "simulated_rel_throughput", "measured_rel_throughput"))
        for one in predicted:
            writer.writerow((one.row.id, f"{one.step_s:.6g}", f"{one.simulated:.6g}", f"{one.measured:.6g}"))
