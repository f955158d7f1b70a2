"""Every configuration of a search at once: a bound that no cut of it can beat, and an estimate that ranks.

Of the whole model on one group of devices, per microbatch, F is the forward pass, B the backward pass with its recompute, W the weight
gradients in it; per step O is the optimizer and G the bytes of gradients that a device sends, over the fastest link there is, with the
smallest codec allowed for each weight (0 where buckets or ZeRO 3 hide it, or collectives were measured; divided by H with H local
steps); X is a transfer of the narrowest
cut there and back over such a link. w is the heaviest task, T = F + B. With p pipeline ranks and m microbatches, wherever stages are cut:

    work     (m T + O + G) / p                            the busiest rank does at least its share; max(m T + O, G) / p where it may
                                                         have several stages, and exchanges for one while it computes another,
                                                         and where gradients are exchanged while the next step computes
    mixed    d m sum_i min_k w_k t_ik / (w_1 + .. + w_dp)    the same over devices of several kinds, for any weights w
    path     T + (p-1) X, or T - W + (p-1) X              one microbatch passes through all stages and back; W may be put off
    task     m w                                          a task is not divided
    ramps    T / (1 - (1 - 1/m)^p)                        one stage per rank, B whole

The last follows from  sum over k < s of w_k + m w_s <= step  for every stage s (`bound.py`): with equality everywhere the work before
stage s is step (1 - (1 - 1/m)^s). The bound is the largest of the five. What is left out only adds to it, so it holds for the replay and
for the engine. The estimate has stages of whole tasks and adds the bubble, round trips and an idle exchange of gradients:

    m v ceil(T / (p v w)) w + b (p-1) T / p + 2 v (p-1) x + O / p + R

with v stages per rank; b = 1/v, and a third of that with split backward passes (`_whole_tasks` rounds where tasks are few). x is
an idle transfer over a boundary, R the exchange over the link to the next replica, 0 where buckets or ZeRO 3 hide it, divided by H with
H local steps; where gradients are one step late the larger of R and all the rest counts.
On devices of several kinds every task counts as on the kind that is fastest for it. `mixed` is the dual of dealing all microbatches of
all tasks i out over the devices: in  sum_i,e x_ie t_ie <= L for every device e  each line times w_e, added up, leaves
L sum_e w_e >= d m sum_i min_k w_k t_ik. With w_k = 1 / (seconds of all tasks on kind k) and the largest d p of them it holds for whatever
devices are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.cost.compute import host_shares, optimizer_s
from chinchilla_sim.cost.memory import FP32_BYTES, state_parts
from chinchilla_sim.planner.action import Op
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.planner.slots import usable_by_speed
from chinchilla_sim.planner.space.configuration import Configuration, Sharding, Space
from chinchilla_sim.planner.space.screen_links import ScreenLinks

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SPLIT_BUBBLE = 1 / 3
"""Share of the bubble that is left where weight gradients fill it (ZB-H1, Qi et al. 2023)."""


@dataclass(frozen=True)
class Screen:
    """Configurations of a space as columns; those are left out of which even an average stage with one microbatch fits nowhere."""

    shardings: tuple[Sharding, ...]
    schedules: tuple[tuple[str, int], ...]
    sharding: Ints
    replicas: Ints
    ranks: Ints
    microbatches: Ints
    schedule: Ints
    lower_bound_s: Floats
    estimate_s: Floats
    screened: int
    """How many there are with those that fit nowhere."""

    def __len__(self) -> int:
        return len(self.sharding)

    def configuration(self, row: int) -> Configuration:
        """One row."""
        name, stages_per_rank = self.schedules[self.schedule[row]]
        return Configuration(
            int(self.replicas[row]),
            int(self.ranks[row]),
            int(self.microbatches[row]),
            name,
            stages_per_rank,
            self.shardings[self.sharding[row]],
        )

    def device_counts(self) -> Ints:
        """Devices by row."""
        width = np.array([sharding.group_width for sharding in self.shardings], dtype=np.int64)
        counts: Ints = self.replicas * self.ranks * width[self.sharding]
        return counts


@dataclass(frozen=True, slots=True)
class _Whole:
    """The whole model on one group of devices: seconds per microbatch, bytes of one microbatch's activations and of all parameters."""

    forward_s: float
    backward_s: float
    weight_s: float
    heaviest_s: float
    saved_bytes: float
    parameter_bytes: float
    boundary_bytes: float
    slowest_s: float


def screen(pricer: Pricer, space: Space) -> Screen:
    """The whole space, priced from a few plans of one stage."""
    return Screener(pricer, space).run()


class Screener:
    """Screens a space; prices are kept from one run to the next."""

    def __init__(self, pricer: Pricer, space: Space) -> None:
        self.pricer, self.space = pricer, space
        self.cluster, self.job, self.search = pricer.cluster, pricer.job, space.search
        self.links = ScreenLinks(pricer, space)
        self.schedules: dict[tuple[str, int], int] = {}
        self._wholes: dict[tuple[Sharding, int, int, int], _Whole] = {}
        self._passes: dict[tuple[Sharding, int, int, int], Floats] = {}
        self._task_s: dict[tuple[Sharding, int, int], Floats] = {}
        self._payloads: dict[Sharding, Floats] = {}
        self._allowed: dict[tuple[int, int], list[int]] = {}
        kinds: dict[Device, int] = {}
        counts: Counter[Device] = Counter()
        self.kinds_among = [0]
        for slot in usable_by_speed(self.cluster):
            kinds.setdefault(replace(self.cluster.devices[slot], name=""), slot)
            counts[replace(self.cluster.devices[slot], name="")] += 1
            self.kinds_among.append(len(kinds))
        self.kinds, self.slots_of_kind = list(kinds.values()), [counts[kind] for kind in kinds]
        """A slot of each kind of device, fastest first; `kinds_among[n]` is how many kinds the n fastest devices are of."""
        self.memory_bytes = max(self.cluster.device(slot).usable_memory_bytes for slot in self.kinds)
        self.lightest = space.recompute[0]
        busy = self.cluster.rank_count
        self.depends_on_busy = any(self.cluster.device(slot, 1) != self.cluster.device(slot, busy) for slot in self.kinds)
        self.depends_on_busy |= any(row.busy_ranks for row in pricer.profile.times)

    def run(self) -> Screen:
        """Columns of all shardings, one below the other."""
        shardings = tuple(self.space.shardings())
        parts = [self._columns(number, sharding) for number, sharding in enumerate(shardings)]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 8
        fits = columns.pop().astype(np.bool_)
        *counts, bound_s, estimate_s = (column[fits] for column in columns)
        sharding, replicas, ranks, microbatches, schedule = (column.astype(np.int64) for column in counts)
        schedules = tuple(self.schedules)
        return Screen(shardings, schedules, sharding, replicas, ranks, microbatches, schedule, bound_s, estimate_s, screened=len(fits))

    def _columns(self, number: int, sharding: Sharding) -> list[Floats]:
        """Sharding, replicas, ranks, microbatches, schedule, bound, estimate, fits."""
        d, p, m, k = self._grid(sharding)
        size = self.job.global_batch_size // np.maximum(d * m, 1)
        devices = d * p * sharding.group_width
        busy = devices if self.depends_on_busy else np.full_like(d, self.cluster.rank_count)
        kinds = np.array(self.kinds_among, dtype=np.int64)[devices]
        keys, index = np.unique(np.column_stack([size, busy, kinds]), axis=0, return_inverse=True)
        index = index.reshape(-1)
        wholes = [self._whole(sharding, *key) for key in keys.tolist()]
        figure = {name: np.array([getattr(whole, name) for whole in wholes])[index] for name in _Whole.__slots__}
        pass_s = figure["forward_s"] + figure["backward_s"]
        # What a stage computes again is its own choice: the bound counts the least that is allowed.
        least = {"backward_s": figure["backward_s"], "heaviest_s": figure["heaviest_s"]}
        if sharding.recompute != self.lightest:
            lightest = [self._whole(replace(sharding, recompute=self.lightest), *key) for key in keys.tolist()]
            least = {name: np.array([getattr(whole, name) for whole in lightest])[index] for name in least}
        least_s = figure["forward_s"] + least["backward_s"]
        update_s, state_bytes = self._update(sharding, d, figure["parameter_bytes"])
        split = np.array([SCHEDULES[name].splits_backward for name, _ in self.schedules], dtype=np.bool_)[k]
        line = np.array([SCHEDULES[name].layout == "line" for name, _ in self.schedules], dtype=np.bool_)[k] & ~split
        line &= self.search.stage_tasks == "contiguous"
        stages = np.array([count for _, count in self.schedules], dtype=np.int64)[k]
        path_s = np.where(split, least_s - figure["weight_s"], least_s) + (p - 1) * self.links.crossing_s(sharding, size)
        with np.errstate(divide="ignore", invalid="ignore"):
            ramps_s = np.where(line, least_s / -np.expm1(p * np.log1p(-1 / m)), 0.0)
        plain = sharding.alone
        payloads = self._payloads.get(plain, np.zeros((0, 0)))
        computed_s, sent_s = m * least_s + update_s, self.links.sent_s(sharding, d, payloads)
        # A rank with several stages exchanges the gradients of one while it works on another, late ones while the next step runs.
        several = (stages > 1) | (p > 1) & (self.search.stage_tasks != "contiguous") | bool(sharding.gradient_delay)
        work_s = np.where(several, np.maximum(computed_s, sent_s), computed_s + sent_s) / p
        mixed_s = d * m * self._mixed_s(plain, [tuple(key) for key in keys.tolist()], index, d * p)
        bound_s = np.maximum.reduce([work_s, path_s, m * least["heaviest_s"], ramps_s, mixed_s]) * (1 - 1e-9)
        bubble = np.where(split, SPLIT_BUBBLE, 1.0) / stages
        exchange_s, hop_s = self.links.transfers_s(sharding, d, p, figure["parameter_bytes"], figure["boundary_bytes"])
        # A replica on the slowest devices in use holds up the others; longer pipelines mix kinds.
        even_s = np.where(p == 1, figure["slowest_s"], (pass_s + figure["slowest_s"]) / 2)
        busiest_s = stages * _whole_tasks(even_s / (p * stages), figure["heaviest_s"])
        estimate_s = m * busiest_s + bubble * (p - 1) * even_s / p + stages * hop_s + update_s / p
        estimate_s = np.maximum(estimate_s, exchange_s) if sharding.gradient_delay else estimate_s + exchange_s
        fits = (state_bytes + figure["saved_bytes"]) / p <= self.memory_bytes
        return [np.full(len(d), float(number)), d, p, m, k, bound_s, np.maximum(estimate_s, bound_s), fits]

    def _mixed_s(self, sharding: Sharding, keys: Sequence[tuple[int, ...]], index: Ints, groups: Ints) -> Floats:
        """Seconds per microbatch that no sharing over so many groups of devices of several kinds is below."""
        if len(self.kinds) == 1 or not len(index):
            return np.zeros(len(index))
        rows, back = np.unique(np.column_stack([index, groups]), axis=0, return_inverse=True)
        found = [self._mix_s(sharding, keys[number], count) for number, count in rows.tolist()]
        mixed_s: Floats = np.array(found)[back.reshape(-1)]
        return mixed_s

    def _mix_s(self, sharding: Sharding, key: tuple[int, ...], groups: int) -> float:
        task_s = self._task_s[sharding, key[0], key[1]]
        weights = 1 / np.maximum(task_s.sum(axis=1), np.finfo(np.float64).tiny)
        together, left = 0.0, groups
        for kind in np.argsort(-weights, kind="stable"):
            taken = min(left, self.slots_of_kind[kind])
            together += taken * float(weights[kind])
            left -= taken
        return float((weights[:, None] * task_s).min(axis=0).sum() / together)

    def _grid(self, sharding: Sharding) -> tuple[Ints, Ints, Ints, Ints]:
        """Replicas, ranks, microbatches and schedule (by number) of all configurations of a sharding."""
        groups, width = self.space.maximum_ranks // sharding.group_width, sharding.group_width
        pipelines = np.array(self.space.pipelines(sharding), dtype=np.int64)
        parts: list[Ints] = [np.empty((0, 4), dtype=np.int64)]
        for replicas in self.space.replicas(sharding):
            usable = pipelines[(replicas * pipelines <= groups) & (replicas * pipelines * width >= self.search.minimum_ranks)]
            rows = [
                (ranks, count, code)
                for ranks, count in product(usable.tolist(), self.space.counts(replicas))
                for code in self._codes(ranks, count)
            ]
            if rows:
                part = np.array(rows, dtype=np.int64)
                parts.append(np.column_stack([np.full(len(part), replicas), part]))
        d, p, m, k = np.concatenate(parts).T
        return d, p, m, k

    def _codes(self, ranks: int, count: int) -> list[int]:
        if (ranks, count) not in self._allowed:
            found = self.space.schedules(ranks, count)
            self._allowed[ranks, count] = [self.schedules.setdefault(one, len(self.schedules)) for one in found]
        return self._allowed[ranks, count]

    def _whole(self, sharding: Sharding, size: int, busy: int, kinds: int) -> _Whole:
        """The whole model as one stage; the best figure of any kind of device, and a pass on the slowest of the fastest `kinds`."""
        sharding = sharding.alone
        key = sharding, size, busy, kinds
        if key not in self._wholes:
            found = [self._on(sharding, size, busy, slot) for slot in self.kinds]
            best = {name: min(getattr(whole, name) for whole in found) for name in _Whole.__slots__}
            if len(found) > 1:
                passes = np.array([self._passes[sharding, size, busy, slot] for slot in self.kinds])
                self._task_s[sharding, size, busy] = passes.sum(axis=2)
                best["forward_s"], best["backward_s"] = passes.min(axis=0).sum(axis=0).tolist()
                best["heaviest_s"] = float(passes.sum(axis=2).min(axis=0).max())
            worst = {
                "weight_s": max(whole.weight_s for whole in found),
                "slowest_s": max(whole.slowest_s for whole in found[:kinds]),
            }
            self._wholes[key] = _Whole(**best | worst)
        return self._wholes[key]

    def _on(self, sharding: Sharding, size: int, busy: int, slot: int) -> _Whole:
        training, experts = self.space.training, sharding.expert_parallel_degree
        plan = Plan(
            stages=(tuple(task.name for task in self.pricer.graph.compute_tasks),),
            placement=(tuple(range(experts)),),
            slots=tuple(range(max(busy, sharding.group_width * experts))),
            global_batch_size=size * experts,
            microbatch_count=1,
            schedule="1f1b" if training else "forward",
            gradient_codecs=("none",),
            activation_codecs=(),
            **sharding.plan_fields(1),
        )
        pricer, device = self.pricer.for_devices(plan), self.cluster.device(slot, busy)
        tasks = pricer.graph.compute_tasks
        if sharding not in self._payloads:
            self._payloads[sharding] = pricer.least_payloads(self.search.gradient_codecs, tasks)
        seconds = [pricer.task_s(task, size, device, busy) for task in tasks]
        passes = self._with_host(pricer, device, np.array([row[:2] for row in seconds]) * [1.0, training])
        self._passes[sharding, size, busy, slot] = passes
        price = pricer.stage_price(plan, 0, device, (), ())
        # With several kinds no stage may be faster than its tasks one by one.
        one_kind = len(self.kinds) == 1
        forward_s = price.action_s[Op.F] - device.forward_fixed_s if one_kind else float(passes[:, 0].sum())
        backward_s = price.action_s[Op.B] - device.backward_fixed_s if one_kind else float(passes[:, 1].sum())
        # What devices of a group wait for each other depends on where they are.
        inside = price.blocking_s if one_kind and len(set(self.cluster.slot_classes)) == 1 else {}
        forward_s += inside.get(Op.F, 0.0)
        backward_s = backward_s + inside.get(Op.B, 0.0) if training else 0.0
        return _Whole(
            forward_s=forward_s,
            backward_s=backward_s,
            weight_s=price.action_s[Op.W] if training else 0.0,
            heaviest_s=max(row[0] + row[1] * training for row in seconds),
            saved_bytes=price.saved_bytes,
            parameter_bytes=pricer.graph.trained_bytes_of(tasks),
            boundary_bytes=pricer.scale(size) * tasks[0].output_bytes,
            slowest_s=forward_s + backward_s,
        )

    @staticmethod
    def _with_host(pricer: Pricer, device: Device, device_s: Floats) -> Floats:
        """Forward and backward seconds of every task, with a share of the host's: no run of tasks is faster than their sum."""
        if not device.host_launch_s:
            return device_s
        host_s = device.host_launch_s * np.array([pricer.launches_of(task) for task in pricer.graph.compute_tasks], dtype=np.float64)
        shares = np.array([host_shares(*row) for row in zip(device_s.sum(axis=0), host_s.sum(axis=0), strict=True)])
        passes: Floats = (device_s * shares[:, 0] + host_s * shares[:, 1]) * (device_s.sum(axis=0) > 0)
        return passes

    def _update(self, sharding: Sharding, d: Ints, parameter_bytes: Floats) -> tuple[Floats, Floats]:
        """Seconds of the optimizer over the whole model, and bytes of its state, by configuration."""
        if not self.space.training or not len(d):
            return np.zeros(len(d)), parameter_bytes
        job, value_bytes, device = self.job, self.pricer.value_bytes, self.cluster.devices
        degrees, index = np.unique(d, return_inverse=True)
        parameters, seconds, state = float(parameter_bytes.max()), [], []
        for degree in degrees.tolist():
            shards = degree * sharding.context_parallel_degree
            owned = parameters * FP32_BYTES / value_bytes / (shards if sharding.zero_stage else 1)
            mixed = value_bytes < FP32_BYTES
            seconds.append(min(optimizer_s(owned, job.optimizer, job.momentum, device[slot], mixed=mixed) for slot in self.kinds))
            state.append(sum(state_parts(parameters, job.optimizer, job.momentum, job.precision, sharding.zero_stage, shards).values()))
        return np.array(seconds)[index], np.array(state)[index]


def _whole_tasks(stage_s: Floats, task_s: Floats) -> Floats:
    """Seconds of the busiest of equal stages that hold whole tasks; smaller tasks fill up to half a gap."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = np.where(task_s > 0, np.ceil(stage_s / task_s - 0.5) * task_s, 0.0)
    busiest: Floats = np.maximum(stage_s, rounded)
    return busiest
