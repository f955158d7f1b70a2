"""What of a plan the configurations of other frameworks can say; the rest is refused, all of it at once.

A framework's own limits (its schedules, its sharding) are in its own module.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import PRESETS
from chinchilla_sim.graph.zoo.options import ShapeParameters, shape_of
from chinchilla_sim.graph.zoo.rotary import LlamaShape, MixtureShape
from chinchilla_sim.graph.zoo.transformer import GptShape
from chinchilla_sim.interchange.exact import placement
from chinchilla_sim.interchange.huggingface import read_huggingface
from chinchilla_sim.interchange.layers import counts_of
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.planner.schedules.registry import SCHEDULES
from chinchilla_sim.scenario.model import CompressionSpec, ModelSpec

SHAPES: dict[str, type[Any]] = {"gpt": GptShape, "llama": LlamaShape, "mixture_of_experts": MixtureShape}
EQUAL = "export with --equal-layers, or plan with another number of stages"


@dataclass(frozen=True)
class Exportable:
    """A plan file with its graph, and the model as a formula's name and shape where it is one that other frameworks have."""

    file: PlanFile
    graph: TaskGraph
    devices_per_node: int = 8

    @property
    def plan(self) -> Plan:
        """What was decided."""
        return self.file.plan

    @property
    def node_count(self) -> int:
        """Nodes that the ranks fill."""
        return -(-len(self.plan.slots) // self.devices_per_node)

    @property
    def kind(self) -> str:
        """Most recompute of all stages; they are alike where that is not refused."""
        return self.plan.recompute_of(0)

    def shape(self) -> tuple[str, dict[str, Any]]:
        """Formula and all its options; an empty name where the model is no such formula."""
        return shape_of_model(self.file.scenario.model)

    def layer_counts(self) -> tuple[int, ...]:
        """Layers of every stage; empty where a stage begins within a layer."""
        return counts_of(self.graph, self.plan.stages)


@dataclass(frozen=True, slots=True)
class Exported:
    """The text of a configuration, and what a person still has to see to."""

    text: str
    notes: tuple[str, ...] = ()


def shape_of_model(model: ModelSpec) -> tuple[str, dict[str, Any]]:
    """Formula and options of a model that is one, also where transformers builds it; ("", {}) otherwise."""
    formula, options = model.formula or "", dict(model.options)
    if model.builtin == "huggingface":
        config = {"architectures": [options.get("architecture")], **options.get("config", {})}
        parts, _ = read_huggingface(config, "config", options.get("tokens"))
        formula = parts.value("model.formula") or ""
        options = {
            place.removeprefix("model.options."): one.value for place, one in parts.said.items() if place.startswith("model.options.")
        }
    preset = PRESETS.get(options.pop("preset", ""))
    if formula not in SHAPES:
        return "", {}
    options = (dict(preset.options) if preset else {}) | options
    found: ShapeParameters = shape_of(SHAPES[formula], options, 1)
    return formula, asdict(found)


def common_mistakes(source: Exportable) -> list[Mistake]:
    """What no other framework's configuration says."""
    plan, scenario = source.plan, source.file.scenario
    refused = {
        "plan.schedule": (not plan.training, "is inference, and these are configurations of training"),
        "plan.placement": (plan.free_replicas, "gives stages replica counts of their own"),
        "plan.replica_microbatch_counts": (len(set(plan.replica_microbatch_counts)) > 1, "gives replicas unequal numbers of microbatches"),
        "plan.local_steps": (plan.local_steps > 1, "lets replicas take steps of their own"),
        "plan.gradient_delay": (plan.gradient_delay > 0, "applies gradients one step late"),
        "plan.activation_codecs": (bool(set(plan.activation_codecs) - {"none"}), f"packs activations ({_listed(plan.activation_codecs)})"),
        "plan.recompute": (len(set(plan.recompute)) > 1, f"computes again differently by stage ({_listed(plan.recompute)})"),
        "plan.activation_priority": (plan.activation_priority is not None, "sends activations before gradients"),
        "model.compression": (scenario.model.compression.changes != CompressionSpec().changes, "makes the model smaller"),
    }
    cure = "plan without it, or export --to torchrun where `chinchilla run` plays it"
    cures = {"plan.recompute": 'plan with search.recompute = ["full"], or another one kind'}
    return [Mistake(where, what, cures.get(where, cure)) for where, (is_so, what) in refused.items() if is_so]


def refuse(mistakes: list[Mistake], form: str) -> None:
    """ScenarioError with everything that a form cannot express."""
    if mistakes:
        raise ScenarioError([Mistake(one.where, f"{one.what}; {form} cannot say that", one.cure) for one in mistakes])


def codec_mistakes(plan: Plan, known: frozenset[str] = frozenset({"none"})) -> list[Mistake]:
    """Gradients that are packed in a way a framework does not know."""
    if set(plan.gradient_codecs) <= known or plan.exchange_degree == 1:
        return []
    cure = f"plan with search.gradient_codecs of {', '.join(sorted(known))}"
    return [Mistake("plan.gradient_codecs", f"packs gradients ({_listed(plan.gradient_codecs)})", cure)]


def replicas_first(plan: Plan) -> bool | None:
    """Whether neighbouring ranks are replicas of a stage, or stages of a replica; None where they are neither."""
    ranks, replicas = plan.pipeline_parallel_degree, plan.data_parallel_degree
    if plan.free_replicas or plan.schedule not in SCHEDULES:
        return None
    orders = {first: placement(plan.schedule, plan.stage_count, ranks, replicas, first) for first in (True, False)}
    return next((first for first, order in orders.items() if order == plan.placement), None)


def slot_notes(plan: Plan) -> list[str]:
    """What a launcher must see to."""
    if plan.slots == tuple(range(len(plan.slots))):
        return []
    listed = ", ".join(map(str, plan.slots[:16])) + (", ..." if len(plan.slots) > 16 else "")
    return [f"start the ranks on the device slots {listed}, in this order"]


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(sorted(set(values)))
