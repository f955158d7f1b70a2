"""A plan that is given, as plan.json holds it: opened, simulated, disturbed, and whether it does what its scenario asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chinchilla_sim.errors import DeadlockError, Mistake, NoFeasiblePlanError, ScenarioError
from chinchilla_sim.planner.plan import CUSTOM, Plan
from chinchilla_sim.planner.plan_file import PlanFile, check_sharing, check_tasks
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import folds, lower
from chinchilla_sim.planner.selection.candidate import Candidate
from chinchilla_sim.planner.selection.feasibility import breaches_of, joined
from chinchilla_sim.planner.serving import ClosedLoop, Serving, Tandem, demand_of, tandems_of
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.overrides import apply_overrides
from chinchilla_sim.setting import Setting, prepare
from chinchilla_sim.simulator.disturbance import Spread, disturbances_of, draw_steps, mean_of_steps
from chinchilla_sim.simulator.drawing import check_plan_of_rows, read_order_file, unplayable_rows
from chinchilla_sim.simulator.engine import devices_of, simulate
from chinchilla_sim.simulator.goodput import Goodput, simulate_goodput
from chinchilla_sim.simulator.lowering import activities_of
from chinchilla_sim.simulator.requests import serve_closed_loop, simulate_requests


def open_plan(file: PlanFile, source: str, overrides: Sequence[str] = (), force: bool = False) -> Setting:
    """The setting of a plan file, refused where it has changed since (unless forced) or the plan does not fit it.

    `overrides` change the embedded scenario first, such as another bandwidth.
    """
    scenario = file.allow_factory(False, source).scenario
    if overrides:
        data, mistakes = apply_overrides(scenario.to_dict(), overrides)
        if mistakes:
            raise ScenarioError(mistakes, source)
        scenario = parse_scenario(data, source)
    setting = prepare(scenario)
    mismatches = [] if force else file.mismatches(setting.hashes)
    if file.plan.global_batch_size != scenario.job.global_batch_size:
        what = f"the plan is for {file.plan.global_batch_size} samples, the scenario has {scenario.job.global_batch_size}"
        mismatches.append(Mistake("job.global_batch_size", what, "plan again"))
    clips = file.plan.training and scenario.job.clip_gradient_norm is not None
    if file.plan.clips_gradients != clips:
        what = f"job.clip_gradient_norm {'asks for' if clips else 'does without'} clipping, the plan {'does not' if clips else 'clips'}"
        mismatches.append(Mistake("plan.clips_gradients", what, f"plan again, or write {str(clips).lower()}"))
    if file.plan.training != (scenario.job.kind == "training"):
        mismatches.append(Mistake("plan.schedule", f"{file.plan.schedule} is not a schedule of {scenario.job.kind}", "plan again"))
    if mismatches:
        raise ScenarioError(mismatches, source)
    check_tasks(file.plan, [task.name for task in setting.graph.compute_tasks], setting.cluster.rank_count, source)
    check_sharing(file.plan, setting.graph, source)
    _check_rows(setting, file.plan, source, "plan.order")
    return setting


def _check_rows(setting: Setting, plan: Plan, source: str, field: str = "") -> None:
    """Rows that are written out must come to an end; `field` is where they stand in a file that holds more."""
    if not plan.order:
        return
    pricing = Pricer(setting.graph, setting.cluster, setting.scenario.job, setting.profile).price(plan)
    try:
        activities_of(lower(plan), pricing, setting.cluster).in_order()
    except DeadlockError as error:
        raise ScenarioError([unplayable_rows(error, plan, field)], source) from error


def simulate_plan(setting: Setting, file: PlanFile) -> Candidate:
    """The simulated step of a given plan, with the causes of idle time."""
    pricing = Pricer(setting.graph, setting.cluster, setting.scenario.job, setting.profile).price(file.plan)
    timeline = simulate(lower(file.plan, folds(file.plan, pricing)), pricing, setting.cluster, causes=True)
    return Candidate(file.plan, pricing, timeline, timeline.step_s, serving=serve_plan(setting, file.plan))


def with_program(file: PlanFile, program: Path, setting: Setting) -> PlanFile:
    """The plan with the rows of a CSV in PyTorch's notation in place of its schedule."""
    plan = replace(file.plan, schedule=CUSTOM, order=read_order_file(program))
    check_plan_of_rows(plan, str(program))
    _check_rows(setting, plan, str(program))
    return replace(file, plan=plan)


def check_feasible(setting: Setting, file: PlanFile, source: str, force: bool = False) -> None:
    """NoFeasiblePlanError where a given plan must not be run or exported: it breaks what its scenario asks for (unless forced)."""
    found = () if force else breaches_of(simulate_plan(setting, file), setting.cluster, setting.scenario)
    if found:
        constraint, shortfall, cure = joined(found)
        raise NoFeasiblePlanError(constraint, shortfall, f"{cure}; or go on with --force", source)


def serve_plan(setting: Setting, plan: Plan) -> Serving | None:
    """What the requests of an inference job make of a plan; None where the job states none, or stages have replica counts of their own."""
    demand = demand_of(setting.scenario.job)
    if demand is None or plan.free_replicas:
        return None
    tandems = plan_tandems(setting, plan)
    return serve_closed_loop(tandems, demand) if isinstance(demand, ClosedLoop) else simulate_requests(tandems, demand)


def plan_tandems(setting: Setting, plan: Plan) -> tuple[Tandem, ...]:
    """Each replica of an inference plan as a line of stations."""
    return tandems_of(plan, Pricer(setting.graph, setting.cluster, setting.scenario.job, setting.profile))


@dataclass(frozen=True)
class Robustness:
    """What disturbances make of a plan: the spread of its steps, and its goodput where nodes fail."""

    spread: Spread
    goodput: Goodput | None


def disturb_plan(setting: Setting, plan: Plan, step_s: float) -> Robustness | None:
    """Monte Carlo of a plan under the scenario's [disturbances]; None without any."""
    spec, cluster = setting.scenario.disturbances, setting.cluster
    if spec is None:
        return None
    seed = setting.scenario.job.seed
    pricing = Pricer(setting.graph, cluster, setting.scenario.job, setting.profile).price(plan)
    program, disturbances = lower(plan, folds(plan, pricing)), disturbances_of(spec, cluster, seed)
    programs = [program, *([program.local] if program.local else [])]
    drawn = [draw_steps(activities_of(one, pricing, cluster), cluster, devices_of(plan, cluster), disturbances) for one in programs]
    spread = mean_of_steps(drawn[0], drawn[-1], plan.local_steps)
    if spec.failures is None:
        return Robustness(spread, None)
    failures, nodes = spec.failures, {cluster.node_of(slot) for slot in plan.slots}
    between_s = failures.mean_time_between_failures_s / len(nodes)
    goodput = simulate_goodput(step_s, failures.checkpoint_s, failures.restart_s, between_s, seed, failures.interval_s)
    return Robustness(spread, goodput)
