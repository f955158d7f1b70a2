"""A plan run for real: what may run here, the run itself, and what it says about the simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.cluster.build import emulated
from chinchilla_sim.cluster.recalibration import save_recalibration
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.planner.executable import unplayable
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import lower
from chinchilla_sim.planner.serving import demand_of
from chinchilla_sim.scenario.cluster import THIS_MACHINE
from chinchilla_sim.scenario.model import CompressionSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.setting import Setting, recalibration_path
from chinchilla_sim.simulator.engine import devices_of, play_events, simulate
from chinchilla_sim.simulator.lowering import activities_of

if TYPE_CHECKING:
    from chinchilla_sim.runtime.engine.engines import Engine
    from chinchilla_sim.runtime.launching.rendezvous import Rendezvous
    from chinchilla_sim.validation.compare import Comparison, Measurement
    from chinchilla_sim.validation.recalibrate import Simulated


def check_runnable(scenario: Scenario, several_machines: bool = False) -> None:
    """ScenarioError where nothing that is planned for a scenario can be run here; known before anything is measured or planned."""
    from chinchilla_sim.graph.contract import factory_of

    factory_of(scenario)
    _check_place(scenario, several_machines)
    _check_numbers(scenario)


def _check_place(scenario: Scenario, several_machines: bool) -> None:
    from chinchilla_sim.runtime.emulated.testbed import check_emulated

    if not (several_machines or scenario.cluster.kind == THIS_MACHINE or emulated(scenario.cluster)):
        cure = (
            'set cluster.kind = "this-machine", or device = "this-machine" for every node, to run it here; to run on them give --rendezvous'
        )
        raise ScenarioError([Mistake("cluster.kind", "the scenario describes other machines than this one", cure)])
    if emulated(scenario.cluster) and not several_machines:
        check_emulated(scenario.cluster)


def _check_numbers(scenario: Scenario) -> None:
    if scenario.job.precision == "fp16":
        cure = 'write job.precision = "bf16" (same bytes, range of fp32), or plan and simulate it'
        what = "fp16 needs its loss scaled against underflow, which the runtime does not do"
        raise ScenarioError([Mistake("job.precision", what, cure)])
    _refuse_compressed(scenario)


def check_playable(file: PlanFile, several_machines: bool = False) -> None:
    """ScenarioError where a plan, or what its scenario asks for, cannot be run here."""
    check_runnable(file.allow_factory(False, "plan.json").scenario, several_machines)
    _check_actions(file)
    _check_variant(file)


def _check_actions(file: PlanFile) -> None:
    refused = unplayable(file.plan)
    several = any(len(stages) > 1 for stages, _ in file.plan.position.values())
    if demand_of(file.scenario.job) and (several or file.plan.free_replicas):
        refused.append("requests through several stages on one rank, or stages with replica counts of their own,")
    if refused:
        cure = "plan and simulate it, or leave these out of [search]"
        raise ScenarioError([Mistake("plan", f"the runtime does not play {' and '.join(refused)} yet", cure)])


def run_for_real(
    file: PlanFile,
    folder: Path,
    steps: int | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
    *,
    count_memory: bool = False,
    engine: Engine = "chinchilla",
    resume: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Measurement:
    """Run a plan on this machine's ranks, or on nodes that it emulates.

    `steps` ends the run early, `count_memory` counts the tensors of a warm-up step, `resume` is the folder of the run that it continues;
    `tell` is called with what the ranks have to say.
    """
    from chinchilla_sim.runtime.engine.engines import check_engine
    from chinchilla_sim.runtime.launching.launch import run_plan
    from chinchilla_sim.runtime.record.notes import tell_nobody

    check_playable(file)
    check_engine(file.plan, engine)
    told = tell or tell_nobody
    return run_plan(_with_steps(file, steps), folder, watch, count_memory=count_memory, engine=engine, resume=resume, tell=told)


def join_for_real(
    file: PlanFile,
    folder: Path,
    rendezvous: Rendezvous,
    steps: int | None = None,
    watch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Measurement | None:
    """Run this machine's part of a plan for several; the measurement on the first node, None on the others."""
    from chinchilla_sim.runtime.launching.launch import join_run

    check_playable(file, several_machines=True)
    return join_run(_with_steps(file, steps), folder, rendezvous, watch)


def _with_steps(file: PlanFile, steps: int | None) -> PlanFile:
    """The same plan for so many steps."""
    if steps is not None:
        job = file.scenario.job.model_copy(update={"steps": steps, "target_samples": None})
        file = replace(file, scenario=file.scenario.model_copy(update={"job": job}))
    return file


def simulate_fully(setting: Setting, plan: Plan) -> Simulated:
    """A step with everything that was priced and played, every rank on its own."""
    from chinchilla_sim.validation.recalibrate import Simulated

    pricing = Pricer(setting.graph, setting.cluster, setting.scenario.job, setting.profile).price(plan)
    program = lower(plan)
    graph = activities_of(program, pricing, setting.cluster)
    times = play_events(graph, setting.cluster, devices_of(plan, setting.cluster))
    local = simulate(program.local, pricing, setting.cluster) if program.local else None
    return Simulated(program, pricing, setting.cluster, graph, times, local)


def judge_run(setting: Setting, simulated: Simulated, measurement: Measurement) -> Comparison:
    """A run against the simulation of its plan, with the error of the step by cause."""
    from chinchilla_sim.validation.attribute import attribute
    from chinchilla_sim.validation.compare import compare

    between_s = setting.recalibration.between_passes_s if setting.recalibration else 0.0
    graph, times, recorded = simulated.graph, simulated.times, measurement.timeline
    # Of steps that exchange now and then one that does is told apart.
    measured_s = measurement.median_step_s if recorded.local is None else recorded.period_s
    told = attribute(graph, times, recorded, measured_s, [between_s] * graph.rank_count)
    return compare(simulated.timeline, measurement, told)


def learn_from_run(setting: Setting, simulated: Simulated, measurement: Measurement) -> Path:
    """Store what a run teaches about its model on this machine, on top of what is known already; `prepare` uses it from then on."""
    from datetime import UTC, datetime

    from chinchilla_sim.validation.recalibrate import recalibrate

    steps = measurement.kept or (measurement.timeline,)
    taught = recalibrate(simulated, steps, setting.recalibration, datetime.now(UTC).date().isoformat())
    path = recalibration_path(setting.graph)
    save_recalibration(taught, path)
    return path


def check_exportable(file: PlanFile) -> None:
    """ScenarioError where a plan would not run on its own machines either."""
    from chinchilla_sim.graph.contract import factory_of

    factory_of(file.scenario)
    _check_numbers(file.scenario)
    _check_actions(file)


def _refuse_compressed(scenario: Scenario) -> None:
    """Variants that are trained otherwise."""
    variant = scenario.model.compression
    if scenario.job.kind == "training" and variant.quantize == "bf16":
        cure = 'write job.precision = "bf16", which trains bf16 weights with fp32 masters'
        raise ScenarioError([Mistake("model.compression.quantize", "bf16 weights alone lose small updates and are not trained", cure)])


def _check_variant(file: PlanFile) -> None:
    """Combinations with a plan that the runtime does not know."""
    if file.scenario.model.compression.changes == CompressionSpec().changes:
        return
    refused = ["tensor parallelism"] if file.plan.tensor_parallel_degree > 1 else []
    refused += ["ZeRO 3"] if file.plan.training and file.plan.zero_stage == 3 else []
    if refused:
        cure = "leave these out of [search], or model.compression out"
        raise ScenarioError([Mistake("plan", f"the runtime does not play {' and '.join(refused)} of a compressed model yet", cure)])
