"""Studies that the tests of reports share: small searches, and a made-up measurement."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo import FORMULAS, chain, mlp
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.program import folds, lower
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.selection.served_search import find_served_plans
from chinchilla_sim.report.study import Study
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.simulator.engine import simulate
from chinchilla_sim.simulator.requests import simulate_requests
from chinchilla_sim.simulator.sensitivity import explain_step
from chinchilla_sim.timeline import Timeline
from chinchilla_sim.validation.compare import Measurement, compare
from tests.report.cells import MakeStudy

TWO_NODES: dict[str, Any] = {
    "name": "two-nodes",
    "question": "Does a second node pay for itself?",
    "model": {"formula": "mlp", "widths": [784, 512, 10]},
    "job": {"global_batch_size": 64},
    "cluster": {
        "nodes": [{"name": "node", "count": 2, "peak": "1 Tflop/s", "memory": "1 GiB", "price": "2 USD/h", "power": "100 W"}],
        "network": {"bandwidth": "10 Gbit/s", "latency": "50 us"},
    },
}


def _make_study(graph: TaskGraph | None = None, **changes: Any) -> Study:
    """The study of two nodes; `cluster__nodes__0__price=None` takes a key away, any other value replaces it."""
    tables = copy.deepcopy(TWO_NODES)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = tables
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place.setdefault(parent, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    scenario = parse_scenario(tables, "test")
    cluster = build_cluster(scenario.cluster, scenario.job.precision)
    graph = graph or mlp([784, 512, 10], scenario.job.global_batch_size)
    return Study(scenario, graph, cluster, find_plans(graph, cluster, scenario.job, scenario.search, simulate))


def _measure(study: Study, factor: float = 1.25) -> Study:
    """The study after a run in which everything took `factor` times as long, on a clock that does not start at 0."""
    simulated = study.search.best.timeline
    spans = tuple(replace(s, start_s=1000 + factor * s.start_s, end_s=1000 + factor * s.end_s) for s in simulated.spans)
    step_s = factor * simulated.step_s
    measurement = Measurement(
        step_s=(0.9 * step_s, step_s, 1.1 * step_s),
        timeline=Timeline(simulated.rank_count, spans),
        losses=(2.345, 1.5, 0.789, 0.321),
        metrics={"validation_accuracy": 0.9712, "validation_loss": 0.1234},
        epoch_s=(0.5, 0.5),
    )
    return replace(study, measurement=measurement, comparison=compare(simulated, measurement))


@pytest.fixture(scope="session")
def make_study() -> MakeStudy:
    """A maker of studies of two nodes with some values changed."""
    return _make_study


@pytest.fixture(scope="session")
def pipeline() -> Study:
    """Two stages over two nodes, where one rank alone would be faster."""
    return _make_study(search__minimum_ranks=2, search__microbatch_counts=[4])


@pytest.fixture(scope="session")
def measured(pipeline: Study) -> Study:
    """The same study after a run that took 1.25 times as long as simulated."""
    return _measure(pipeline)


@pytest.fixture(scope="session")
def long_pipeline() -> Study:
    """Four stages and 512 microbatches."""
    search = {"microbatch_counts": [512], "pipeline_parallel_degrees": [4], "data_parallel_degrees": [1], "schedules": ["1f1b"]}
    return _make_study(chain(8, 1000, 1e12, 4e6, 512), job__global_batch_size=512, cluster__nodes__0__count=4, search=search)


@pytest.fixture(scope="session")
def thorough(measured: Study) -> Study:
    """The measured study with the causes of idle time and the step for other inputs."""
    return _with_causes(measured)


@pytest.fixture(scope="session")
def racks() -> Study:
    """Sixteen or eight stages, replicas beside each other, each a group of two devices, on 32 nodes of two in four racks."""
    nodes = {"name": "node", "count": 32, "devices": 2, "peak": "10 Tflop/s", "memory": "16 GiB", "price": "2 USD/h", "power": "300 W"}
    search = {
        "executable": False, "minimum_ranks": 64, "pipeline_parallel_degrees": [8, 16], "data_parallel_degrees": [2, 4],
        "tensor_parallel_degrees": [2], "microbatch_counts": [8], "schedules": ["1f1b"], "zero_stages": [1],
    }  # fmt: skip
    network = {"topology": "tree", "rack_size": 8, "oversubscription": 4, "bandwidth": "100 Gbit/s", "latency": "5 us"}
    options = {"layers": 16, "width": 512, "heads": 8, "tokens": 128}
    graph = FORMULAS["gpt"](batch_size=256, training=True, value_bytes=4.0, **options)
    study = _make_study(
        graph,
        model={"formula": "gpt", "options": options},
        job__global_batch_size=256,
        job__steps=10_000,
        job__epoch_samples=1_000_000,
        cluster__nodes=[nodes],
        cluster__network=network,
        cluster__intra_node={"bandwidth": "300 GB/s", "latency": "3 us"},
        cluster__grid_intensity="400 g/kWh",
        search=search,
    )
    return _with_causes(study)


def _with_causes(study: Study) -> Study:
    plan, job = study.plan, study.scenario.job
    pricing = Pricer(study.graph, study.cluster, job).price(plan)
    caused = simulate(lower(plan, folds(plan, pricing)), pricing, study.cluster, causes=True)
    return replace(study, caused=caused, sensitivity=explain_step(study.graph, study.cluster, job, plan))


@pytest.fixture(scope="session")
def served(make_study: MakeStudy) -> Study:
    """Two nodes that answer requests, planned for the least latency."""
    study = make_study(job={"global_batch_size": 64, "kind": "inference", "arrival_rate": "5000 requests/s"})
    job, search = study.scenario.job, study.scenario.search.model_copy(update={"objective": "latency"})
    found = find_served_plans(study.graph, study.cluster, job, search, simulate, simulate_requests)
    return replace(study, scenario=study.scenario.model_copy(update={"search": search}), search=found)
