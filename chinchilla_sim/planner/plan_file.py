"""plan.json: a plan with the scenario it answers and hashes of what it was made from; readable and writable by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chinchilla_sim.errors import Mistake, ScenarioError, why_unreadable
from chinchilla_sim.graph.contract import BUILTIN_FACTORIES
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_check import mistakes_of
from chinchilla_sim.planner.pricing.sharing import with_sharing
from chinchilla_sim.planner.signature import FIELD, sign, signed_here
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.scenario.search import ActivationCodec, Codec, Schedule
from chinchilla_sim.scenario.translate import translate

logger = logging.getLogger(__name__)

FORMAT = "chinchilla-plan"
VERSION = 1
MAKE_AGAIN = "make it again with `chinchilla plan SCENARIO -o FILE`"


@dataclass(frozen=True)
class PlanFile:
    """A plan, its scenario, and `hashes` of graph, cluster, catalogue and calibration (may be empty in a hand-written one).

    `made_here` says that a factory which its scenario names may be imported: this user made the plan, or allowed it.
    """

    plan: Plan
    scenario: Scenario
    hashes: Mapping[str, str] = field(default_factory=dict)
    simulated_step_s: float | None = None
    made_here: bool = field(default=True, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "summary": self.plan.describe(),
            "simulated_step_s": self.simulated_step_s,
            "plan": asdict(self.plan),
            "hashes": dict(self.hashes),
            "scenario": self.scenario.to_dict(),
        }

    def save(self, path: Path) -> None:
        """Write the file in one move, so that no half a plan is left behind; signed, if it names a factory and was made here."""
        data = self.to_dict()
        signature = sign(data) if self.made_here and self.own_factory else None
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(data | ({FIELD: signature} if signature else {}), indent=1) + "\n")
        partial.replace(path)

    @property
    def own_factory(self) -> str | None:
        """The Python function of a user's own that the scenario names, or None."""
        factory = self.scenario.model.factory
        return None if factory in BUILTIN_FACTORIES.values() else factory

    def allow_factory(self, allowed: bool, source: str) -> PlanFile:
        """The file, with its factory allowed; a ScenarioError where it names one, was not made here, and is not `allowed`."""
        if self.own_factory is None or self.made_here:
            return self
        if allowed:
            return replace(self, made_here=True)
        what = f"names the Python function {self.own_factory}, and this plan was not made here (or was changed since)"
        cure = "plan its scenario again, or, if you trust that code, add --allow-factory"
        raise ScenarioError([Mistake("scenario.model.factory", what, cure)], source)

    def mismatches(self, hashes: Mapping[str, str]) -> list[Mistake]:
        """What has changed since the plan was made."""
        changed = [name for name, digest in self.hashes.items() if name in hashes and hashes[name] != digest]
        cure = "plan again, or go on with --force"
        return [Mistake(f"hashes.{name}", f"the {name} has changed since this plan was made", cure) for name in changed]


class _PlanSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)

    stages: tuple[tuple[str, ...], ...]
    placement: tuple[tuple[int, ...], ...]
    slots: tuple[int, ...]
    global_batch_size: int = Field(ge=1)
    microbatch_count: int = Field(ge=1)
    schedule: Literal[Schedule, "forward", "custom"]
    gradient_codecs: tuple[Codec, ...]
    activation_codecs: tuple[ActivationCodec, ...]
    receives_in_flight: int = Field(default=8, ge=1)
    replica_microbatch_counts: tuple[Annotated[int, Field(ge=1)], ...] = ()
    order: tuple[str, ...] = ()
    gradient_buckets: int = Field(default=1, ge=1)
    collective_algorithm: Literal["auto", "ring", "halving-doubling", "tree", "hierarchical"] = "auto"
    ring_order: Literal["near", "placed"] = "near"
    zero_stage: int = Field(default=0, ge=0, le=3)
    recompute: tuple[Literal["none", "selective", "full"], ...] = ()
    activation_priority: float | None = Field(default=None, gt=0, le=1000)
    tensor_parallel_degree: int = Field(default=1, ge=1)
    sequence_parallel: bool = False
    context_parallel_degree: int = Field(default=1, ge=1)
    expert_parallel_degree: int = Field(default=1, ge=1)
    shared_stages: tuple[tuple[int, ...], ...] = ()
    clips_gradients: bool = False
    local_steps: int = Field(default=1, ge=1)
    gradient_delay: int = Field(default=0, ge=0, le=1)


class _FileSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)

    format: Literal["chinchilla-plan"]
    version: Literal[1]
    summary: str = ""
    simulated_step_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    plan: _PlanSpec
    hashes: dict[str, str] = Field(default_factory=dict)
    scenario: dict[str, Any]
    signature: str = ""


def load_plan(path: Path) -> PlanFile:
    """Read and check a plan file; every mistake is in one ScenarioError."""
    source = str(path)
    try:
        data = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError([Mistake("", f"cannot be read: {why_unreadable(error)}", "name a plan.json")], source) from error
    except json.JSONDecodeError as error:
        if path.suffix == ".toml":
            cure = f"plan it first: `chinchilla plan {path} -o plan.json`"
            raise ScenarioError([Mistake("", "is a scenario, not a plan", cure)], source) from error
        what = f"line {error.lineno}: {error.msg}; the file is not whole"
        raise ScenarioError([Mistake("", what, MAKE_AGAIN)], source) from error
    except (ValueError, RecursionError) as error:
        raise ScenarioError([Mistake("", f"holds what no plan holds: {error}", MAKE_AGAIN)], source) from error
    logger.info("plan: %s", source)
    return parse_plan(data, source)


def parse_plan(data: Any, source: str) -> PlanFile:
    """A PlanFile from JSON data."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ScenarioError([Mistake("format", f"is not {FORMAT!r}: the file holds no plan", MAKE_AGAIN)], source)
    try:
        spec = _FileSpec.model_validate(data)
    except ValidationError as error:
        found = translate(error, _FileSpec.model_json_schema())
        mistakes = [mistake if mistake.cure.startswith("did") else replace(mistake, cure=MAKE_AGAIN) for mistake in found]
        raise ScenarioError(mistakes, source) from error
    plan = Plan(**spec.plan.model_dump())
    mistakes = [Mistake(f"plan.{where}", what) for where, what in mistakes_of(plan)]
    if mistakes:
        raise ScenarioError(mistakes, source)
    return PlanFile(plan, parse_scenario(spec.scenario, source), spec.hashes, spec.simulated_step_s, signed_here(data))


def check_tasks(plan: Plan, task_names: list[str], rank_limit: int, source: str) -> None:
    """A plan must hold every task of the graph once, in order, and no more slots than the cluster has."""
    listed = [name for stage in plan.stages for name in stage]
    mistakes = []
    if listed != task_names:
        missing, unknown = sorted(set(task_names) - set(listed)), sorted(set(listed) - set(task_names))
        detail = "; ".join(
            [f"missing {', '.join(missing[:5])}"] * bool(missing)
            + [f"unknown {', '.join(unknown[:5])}"] * bool(unknown)
            + ["order or repetition differs"] * (not missing and not unknown)
        )
        mistakes.append(Mistake("plan.stages", f"must hold every task of the graph once, in its order: {detail}"))
    if max(plan.slots) >= rank_limit or min(plan.slots) < 0:
        mistakes.append(Mistake("plan.slots", f"the cluster has slots 0 to {rank_limit - 1}"))
    if mistakes:
        raise ScenarioError(mistakes, source)


def check_sharing(plan: Plan, graph: TaskGraph, source: str) -> None:
    """A plan must name the sets of stages that train the same weights: they sum the gradients."""
    expected = with_sharing(plan, graph).shared_stages
    if plan.shared_stages != expected:
        what = f"stages that train the same weights are {_listed(expected)}, not {_listed(plan.shared_stages)}"
        raise ScenarioError([Mistake("plan.shared_stages", what, f"write {json.dumps(expected)}")], source)


def _listed(groups: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join(", ".join(map(str, group)) for group in groups) or "none"
