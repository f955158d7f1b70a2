"""What a measured run teaches: factors that bring the simulation of its plan, and of other plans of the model, nearer to it.

    tasks         of a stage: median seconds of its passes over simulated ones, without what is fixed per pass
    between       median seconds between the end of an action of a rank and the pass behind it that waited for nothing else
    input         median seconds of getting the batch
    optimizer,    median over simulated seconds of their spans
    codec
    messages      of those that were waited for: factors x and y on latency and bytes that minimise the squared relative errors of
                  x latency + y bytes; where all messages are alike both are the median of measured over simulated seconds
    collectives   of those that were waited for, by kind and number of ranks: median of measured over simulated seconds

Medians are over all steps that were recorded, so that one disturbed step teaches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from chinchilla_sim.cluster.recalibration import Recalibration, collective_name
from chinchilla_sim.cluster.topology import Cluster
from chinchilla_sim.planner.action import CATEGORY, Op, parse_action
from chinchilla_sim.planner.pricing.prices import Pricing, StagePrice
from chinchilla_sim.planner.program import Program
from chinchilla_sim.simulator.activities import ActivityGraph, Times, timeline_of
from chinchilla_sim.simulator.row import INPUT
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.matching import Observations, Observed

LEAST_SCALE = 0.05
"""A pass that was measured shorter than what is fixed about it teaches no less than this factor."""
LEAST_DIFFERENCE = 0.1
"""Messages whose shares of latency differ by less are alike."""


@dataclass(frozen=True)
class Simulated:
    """A simulated step in full: what was priced and played, and when every activity ran.

    Of plans with local steps it is the step that exchanges; `local` is one of the others.
    """

    program: Program
    pricing: Pricing
    cluster: Cluster
    graph: ActivityGraph
    times: Times
    local: Timeline | None = None

    @property
    def timeline(self) -> Timeline:
        """Spans and memory."""
        local_steps = self.program.plan.local_steps if self.local else 1
        return replace(timeline_of(self.graph, self.times), local_steps=local_steps, local=self.local)


def recalibrate(simulated: Simulated, steps: Sequence[Timeline], earlier: Recalibration | None = None, date: str = "") -> Recalibration:
    """What measured steps of a simulated plan teach; `earlier` is what the simulation was corrected by already."""
    earlier = earlier or Recalibration()
    seen = [Observations(simulated.graph, simulated.times, step) for step in steps]
    spans, expected = _median_spans(steps), _simulated_spans(simulated)
    fixed = _Fixed(earlier.between_passes_s, _ratio(spans, expected, {op for op in Op if CATEGORY[op] == "codec"}))
    messages, collectives = _transfers(simulated, seen)
    latency, byte = fit_messages(messages)
    own = Recalibration(
        task_scales=_task_scales(simulated, spans, expected, fixed),
        between_passes_s=_between_s(seen, earlier),
        optimizer_scale=_ratio(spans, expected, {Op.OPTIM}),
        codec_scale=fixed.codec_scale,
        latency_scale=latency,
        byte_scale=byte,
        collective_scales={name: median(ratios) for name, ratios in sorted(collectives.items())},
        input_s=median([seconds for (_, label), seconds in spans.items() if label == INPUT] or [earlier.input_s]),
        date=date,
    )
    return own.after(earlier)


# Spans of computation

Spans = Mapping[tuple[int, str], float]
"""Rank and label -> median seconds over the steps, all spans of the label together."""


def _median_spans(steps: Sequence[Timeline]) -> Spans:
    totals: dict[tuple[int, str], list[float]] = {}
    for step in steps:
        of_step: dict[tuple[int, str], float] = {}
        for span in step.spans:
            if span.stream == "compute":
                key = span.rank, span.label
                of_step[key] = of_step.get(key, 0.0) + span.duration_s
        for key, seconds in of_step.items():
            totals.setdefault(key, []).append(seconds)
    return {key: median(seconds) for key, seconds in totals.items()}


def _simulated_spans(simulated: Simulated) -> Spans:
    """The same of the simulated step, of the actions of its program."""
    totals: dict[tuple[int, str], float] = {}
    for record in simulated.graph.records:
        if record.stream == "compute" and record.category != "input":
            key = record.rank, record.label
            seconds = simulated.times.finish_s[record.last] - simulated.times.start_s[record.first]
            totals[key] = totals.get(key, 0.0) + seconds
    return totals


def _ratio(spans: Spans, expected: Spans, ops: Collection[Op]) -> float:
    """Measured over simulated seconds of all actions of some kinds; 1 where there are none."""
    keys = [key for key in expected if key in spans and parse_action(key[1]).op in ops]
    measured, simulated = sum(spans[key] for key in keys), sum(expected[key] for key in keys)
    return measured / simulated if measured > 0 and simulated > 0 else 1.0


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What a pass is simulated with beside its tasks: the program's work before it, and adding up gradients, which is a codec's work."""

    between_s: float
    codec_scale: float


def _task_scales(simulated: Simulated, spans: Spans, expected: Spans, fixed: _Fixed) -> dict[str, tuple[float, float]]:
    """Every task has the factors of the stage that it was measured in."""
    scales: dict[str, tuple[float, float]] = {}
    for stage, names in enumerate(simulated.program.plan.stages):
        forward = _pass_scale(simulated, spans, expected, stage, (Op.F,), fixed)
        backward = _pass_scale(simulated, spans, expected, stage, (Op.B, Op.I, Op.W), fixed)
        scales |= dict.fromkeys(names, (forward, backward))
    return scales


def _pass_scale(simulated: Simulated, spans: Spans, expected: Spans, stage: int, ops: Sequence[Op], fixed: _Fixed) -> float:
    """Measured over simulated seconds of a stage's tasks in some passes, on all ranks that hold the stage together."""
    plan = simulated.program.plan
    measured = tasks = 0.0
    for rank, price in _prices(simulated, stage):
        device = simulated.cluster.device(plan.slots_of(rank)[0], len(plan.slots))
        fixed_s = device.forward_fixed_s if Op.F in ops else device.backward_fixed_s
        first = True
        for action in simulated.program.actions[rank]:
            key = rank, str(action)
            if action.stage != stage or action.op not in ops or key not in spans:
                continue
            adding_s = price.compute_s(action.op, first) - price.action_s[action.op]
            first = first and action.op not in (Op.B, Op.W)
            own_s, between_s = (0.0, 0.0) if action.op is Op.W else (fixed_s, fixed.between_s)
            measured += spans[key] - (own_s - between_s) - adding_s * fixed.codec_scale
            tasks += expected[key] - own_s - adding_s
    return max(LEAST_SCALE, measured / tasks) if tasks > 0 else 1.0


def _prices(simulated: Simulated, stage: int) -> Iterable[tuple[int, StagePrice]]:
    return zip(simulated.program.plan.placement[stage], simulated.pricing.stages[stage], strict=True)


def _between_s(seen: Sequence[Observations], earlier: Recalibration) -> float:
    """Median gap before passes that waited for nothing but the rank's own action before; what begins a step waits for its batch too."""
    gaps: list[float] = []
    for step in seen:
        for one in step.observed:
            last = step.last_source(one)
            if last and one.category in ("forward", "backward") and step.follows_own(one) and not step.begins(one):
                gaps.append(max(0.0, one.start_s - last[0]))
    return median(gaps) if gaps else earlier.between_passes_s


# What travels


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was waited for: simulated seconds before its bytes move and while they do, and measured seconds of both."""

    latency_s: float
    moving_s: float
    measured_s: float


def _transfers(simulated: Simulated, seen: Sequence[Observations]) -> tuple[list[Message], dict[str, list[float]]]:
    """Messages, and measured over simulated seconds of collectives whose tables were measured, by their names."""
    messages: list[Message] = []
    ratios: dict[str, list[float]] = {}
    for step in seen:
        for one in step.observed:
            if one.compute or not one.awaited or step.simulated_s(one) <= 0:
                continue
            measured_s = step.transfer_s(one)
            if one.category == "transfer":
                whole_s, moving_s = step.simulated_s(one), simulated.times.finish_s[one.last] - simulated.times.start_s[one.first]
                messages.append(Message(max(0.0, whole_s - moving_s), moving_s, measured_s))
            elif (name := _table_name(simulated, one)) and measured_s > 0:
                ratios.setdefault(name, []).append(measured_s / step.simulated_s(one))
    return messages, ratios


def _table_name(simulated: Simulated, one: Observed) -> str | None:
    """Which table an exchange of replicas took its seconds from."""
    label = next(record.label for record in simulated.graph.records if (record.first, record.last) == (one.first, one.last))
    action = parse_action(label)
    if action.op not in (Op.REDUCE_GRAD, Op.UNSHARD):
        return None
    exchange = (simulated.pricing.gradients if action.op is Op.REDUCE_GRAD else simulated.pricing.weights)[action.stage]
    return collective_name(exchange.kind, len(exchange.orders[0])) if exchange.table else None


def fit_messages(messages: Sequence[Message]) -> tuple[float, float]:
    """Factors on latency and on the seconds of bytes; (1, 1) without messages.

    >>> fit_messages([Message(1.0, 1.0, 5.0), Message(1.0, 10.0, 32.0)])
    (2.0, 3.0)
    """
    from scipy.optimize import nnls

    rows = [(one.latency_s, one.moving_s, one.measured_s) for one in messages if one.measured_s > 0]
    if not rows:
        return 1.0, 1.0
    figures = np.array(rows)
    both = float(np.median(figures[:, 2] / (figures[:, 0] + figures[:, 1])))
    shares = figures[:, 0] / (figures[:, 0] + figures[:, 1])
    if np.ptp(shares) < LEAST_DIFFERENCE:
        return both, both
    factors, _ = nnls(figures[:, :2] / figures[:, 2:], np.ones(len(figures)))
    latency, byte = (round(float(factor), 9) for factor in factors)
    # A factor of 0 would say that latency or bytes cost nothing: the messages do not tell them apart.
    return (latency, byte) if min(latency, byte) > LEAST_SCALE else (both, both)
