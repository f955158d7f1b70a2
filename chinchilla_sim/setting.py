"""A scenario made ready: its graph, its cluster, and what was measured of them on this machine before."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chinchilla_sim.cluster.build import build_cluster, emulated, emulated_cores, this_machine_ranks
from chinchilla_sim.cluster.calibration import Calibration, cache_path, core_count, describe_machine, load_calibration, stale_entries
from chinchilla_sim.cluster.catalogue import catalogue_digest
from chinchilla_sim.cluster.recalibration import Recalibration, load_recalibration
from chinchilla_sim.cluster.topology import Cluster, Device
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.compress import Variant, compress
from chinchilla_sim.graph.importers import read_graph
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import VALUE_BYTES, TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS, PRESETS, chain, mlp
from chinchilla_sim.scenario.cluster import THIS_MACHINE
from chinchilla_sim.scenario.model import CompressionSpec, ModelSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.units import format_bytes

logger = logging.getLogger(__name__)

BUILTIN_WIDTHS = (784, 512, 10)
CALIBRATION_VARIABLE = "CHINCHILLA_CALIBRATION"
CORES_TO_EMULATE = 0.8
"""Share of the cores that emulated nodes may ask for: the fabric and the ranks' own threads need the rest."""


@dataclass(frozen=True)
class Setting:
    """A scenario with everything that planning and simulating it need."""

    scenario: Scenario
    graph: TaskGraph
    cluster: Cluster
    calibration: Calibration | None
    profile: Profile = field(default_factory=Profile)
    notes: tuple[str, ...] = ()
    recalibration: Recalibration | None = None
    """What real runs of this model taught, where there were any; graph, profile and cluster are corrected by it already."""

    @property
    def hashes(self) -> dict[str, str]:
        """What a plan made here depends on."""
        calibration = self.calibration.digest if self.calibration else "none"
        hashes = {"graph": self.graph.digest, "catalogue": catalogue_digest(), "calibration": calibration}
        hashes |= {"profile": self.profile.digest} if self.profile.times else {}
        return hashes | ({"recalibration": self.recalibration.digest} if self.recalibration else {})


def prepare(scenario: Scenario, calibration: Calibration | None = None) -> Setting:
    """Graph and cluster of a scenario; without a `calibration` the cached one of this machine is used, if there is one."""
    notes: tuple[str, ...] = ()
    busy_here = this_machine_ranks(scenario.cluster)
    if busy_here and calibration is None:
        calibration, notes = find_calibration(busy_here)
    notes = (*notes, *_crowding(scenario))
    graph, profile = build_graph(scenario)
    if scenario.cluster.kind == THIS_MACHINE and not profile.times:
        profile = _profile_of(scenario, graph)
    elif (emulated(scenario.cluster) or scenario.cluster.elsewhere) and not profile.times:
        profile = _while_busy(_profile_of(scenario, graph), busy_here)
    if profile.times:
        notes = (*notes, _share_measured(graph, profile))
    cluster = _with_pass_start(build_cluster(scenario.cluster, scenario.job.precision, calibration), profile)
    logger.info("graph: %s, %d tasks, %s of parameters", graph.name, len(graph.compute_tasks), format_bytes(graph.total_parameter_bytes))
    logger.info("cluster: %d devices; %s", cluster.rank_count, "; ".join(cluster.provenance))
    notes = (*notes, *_without_formats(scenario, busy_here, calibration))
    alone = scenario.job.kind == "inference"
    cluster = cluster.for_inference(bool(profile.times) and not profile.tasks) if alone else cluster.for_training()
    taught = find_recalibration(graph) if scenario.cluster.kind == THIS_MACHINE else None
    if taught:
        # A profile has measured by itself how long getting a batch takes.
        profile = replace(profile, scales=taught.task_scales, input_s=profile.input_s or taught.input_s)
        cluster = taught.correct_cluster(cluster)
        notes = (*notes, f"times are corrected by what a run of {taught.date} taught (validate run --recalibrate)")
    return Setting(scenario, graph, cluster, calibration, profile, (*notes, *graph.notes), taught)


def _with_pass_start(cluster: Cluster, profile: Profile) -> Cluster:
    """The cluster with what begins a pass as it was measured with the tasks, on this machine."""
    if not profile.pass_start_s:
        return cluster
    forward_s, backward_s = profile.pass_start_s

    def started(device: Device) -> Device:
        return replace(device, forward_fixed_s=forward_s / device.core_share, backward_fixed_s=backward_s / device.core_share)

    crowded = {count: started(device) for count, device in cluster.crowded.items()}
    return replace(cluster, devices=tuple(map(started, cluster.devices)), crowded=crowded)


def _without_formats(scenario: Scenario, busy_here: int, calibration: Calibration | None) -> tuple[str, ...]:
    """A warning where this machine computes in a number format that was not measured on it."""
    weight_format = scenario.model.compression.quantize
    if not busy_here or not weight_format or (calibration and calibration.device(busy_here).linear):
        return ()
    return (
        f"no calibration with number formats: {weight_format} weights are simulated as smaller, not as faster; run `chinchilla calibrate`",
    )


def _crowding(scenario: Scenario) -> tuple[str, ...]:
    """A warning where emulated nodes leave too little for what moves their packets."""
    asked = emulated_cores(scenario.cluster)
    if asked <= CORES_TO_EMULATE * core_count():
        return ()
    what = f"the emulated nodes ask for {asked:g} of {core_count()} cores and get less while all are busy"
    return (f"{what}: keep the sum of their cpu_share below {CORES_TO_EMULATE * core_count():g}",)


def _while_busy(profile: Profile, busy_ranks: int) -> Profile:
    """The times that were measured with so many busy ranks, as those of any number: emulated nodes are all counted in it."""
    return replace(profile, times=tuple(replace(row, busy_ranks=0) for row in profile.times if row.busy_ranks == busy_ranks))


def shape_options(model: ModelSpec) -> dict[str, Any]:
    """Options of a published architecture: `options`, on top of those of `options.preset`."""
    options = dict(model.options)
    name = options.pop("preset", None)
    fitting = sorted(key for key, preset in PRESETS.items() if preset.formula == model.formula)
    if name is not None and name not in fitting:
        what = f"{name!r} is no preset of formula {model.formula}"
        raise ScenarioError([Mistake("model.options.preset", what, f"write one of {', '.join(fitting)}")])
    return (dict(PRESETS[name].options) if name else {}) | options


def _share_measured(graph: TaskGraph, profile: Profile) -> str:
    names = [task.name for task in graph.compute_tasks]
    measured = sum(name in profile.measured_tasks for name in names)
    return f"times of {measured} of {len(names)} tasks are measured ({profile.source or 'source not stated'}), others follow from formulas"


def build_graph(scenario: Scenario) -> tuple[TaskGraph, Profile]:
    """The task graph of one global batch, compressed as asked for, and what its file measured."""
    graph, profile = _whole_graph(scenario)
    variant = Variant(**scenario.model.compression.changes)
    small = compress(graph, variant)
    return (graph, profile) if small is graph else (small, Profile())


def _whole_graph(scenario: Scenario) -> tuple[TaskGraph, Profile]:
    """The graph of the model as it is; torch is imported only to trace a factory."""
    model, batch, training = scenario.model, scenario.job.global_batch_size, scenario.job.kind == "training"
    value_bytes = VALUE_BYTES[scenario.job.precision]
    if model.builtin == "mnist_mlp":
        return mlp(model.options.get("widths", BUILTIN_WIDTHS), batch, training, value_bytes), Profile()
    if model.formula == "mlp":
        return mlp(model.widths, batch, training, value_bytes), Profile()
    if model.formula in FORMULAS:
        graph = FORMULAS[model.formula](batch_size=batch, training=training, value_bytes=value_bytes, **shape_options(model))
        return graph, Profile()
    if model.formula == "chain":
        assert model.task_count and model.work_flop and model.output_bytes is not None and model.parameter_count is not None
        return chain(model.task_count, model.parameter_count, model.work_flop, model.output_bytes, batch, value_bytes), Profile()
    if model.kind == "graph":
        assert model.graph
        graph, profile = read_graph(Path(model.graph), model.format or "chinchilla")
        if graph.value_bytes != value_bytes:
            what = f"the graph in {model.graph} has values of {graph.value_bytes:g} bytes, {scenario.job.precision} has {value_bytes:g}"
            raise ScenarioError([Mistake("job.precision", what, "store the graph in this precision, or change job.precision")])
        return graph, profile
    from chinchilla_sim.graph.contract import factory_of, load_job
    from chinchilla_sim.graph.trace import trace_job

    job, name = load_job(*factory_of(scenario)), str(model.factory or model.builtin)
    return trace_job(job, batch, training, name, scenario.job.precision), Profile()


def find_calibration(rank_count: int) -> tuple[Calibration | None, tuple[str, ...]]:
    """The calibration of this machine from $CHINCHILLA_CALIBRATION or the cache, and notes about stale ones."""
    named = os.environ.get(CALIBRATION_VARIABLE)
    if named:
        return _told(load_calibration(Path(named)), named), ()
    key = describe_machine(version("torch"))
    path = cache_path(key)
    stale = tuple(f"stale calibration: {reason}" for reason in stale_entries(key))
    if not path.exists():
        return None, (*stale, "no calibration of this machine: catalogue figures are used; `chinchilla calibrate` measures it")
    calibration = load_calibration(path)
    if not calibration.covers(rank_count):
        return None, (
            *stale,
            f"the calibration has no measurement with {rank_count} busy ranks: run `chinchilla calibrate --ranks {rank_count}`",
        )
    return _told(calibration, str(path)), stale


def _told(calibration: Calibration, source: str) -> Calibration:
    """The calibration that is in use, named in the log."""
    logger.info("calibration: %s, of %s, with up to %d busy ranks", source, calibration.date, max(calibration.devices, default=0))
    return calibration


def find_profile(graph: TaskGraph) -> Profile:
    """Times of this graph's tasks that `chinchilla calibrate SCENARIO` has measured on this machine, if any."""
    path = profile_path(graph)
    if not path.exists():
        return Profile()
    logger.info("measured tasks: %s", path)
    try:
        return Profile.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        cure = "delete it and run chinchilla calibrate SCENARIO"
        raise ScenarioError([Mistake("profile", f"cannot be read: {error}", cure)], str(path)) from error


def _profile_of(scenario: Scenario, graph: TaskGraph) -> Profile:
    """What was measured of a graph; of a variant that was not measured, what follows from the model as it is."""
    profile = find_profile(graph)
    if profile.times or scenario.model.compression.changes == CompressionSpec().changes:
        return profile
    whole, _ = _whole_graph(scenario)
    profile = find_profile(whole)
    return profile.of_variant(whole, graph) if profile.times else profile


def profile_path(graph: TaskGraph) -> Path:
    """File of the measured times of one graph on this machine."""
    return _path_of("profile", graph)


def find_recalibration(graph: TaskGraph) -> Recalibration | None:
    """What `chinchilla validate run --recalibrate` has learnt from runs of this graph on this machine, if any."""
    path = recalibration_path(graph)
    if not path.exists():
        return None
    logger.info("taught by runs: %s", path)
    return load_recalibration(path)


def recalibration_path(graph: TaskGraph) -> Path:
    """File of what runs of one graph on this machine taught."""
    return _path_of("recalibration", graph)


def _path_of(kind: str, graph: TaskGraph) -> Path:
    machine = cache_path(describe_machine(version("torch")))
    return machine.with_name(f"{kind}-{graph.digest[:16]}-{machine.stem.removeprefix('calibration-')}.json")
