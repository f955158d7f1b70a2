"""How long planning takes from 8 to 16,384 devices, and how many configurations the screen goes through in a second."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.graph.coarsen import coarsen
from chinchilla_sim.graph.zoo import FORMULAS, PRESETS
from chinchilla_sim.planner.pricing.pricer import Pricer
from chinchilla_sim.planner.selection.search import find_plans
from chinchilla_sim.planner.space.configuration import Space
from chinchilla_sim.planner.space.partition import allowed_cuts
from chinchilla_sim.planner.space.screen import Screener
from chinchilla_sim.scenario.cluster import ClusterSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.simulator.benchmark import Figure
from chinchilla_sim.simulator.engine import simulate

DEVICES = (8, 64, 512, 1024, 3072, 16384)
PLANNED_TASKS = 64
BATCH = 1536
TARGETS_S = {1024: 5.0, 3072: 15.0}


def measure_planning(most_devices: int = DEVICES[-1]) -> Iterator[Figure]:
    """GPT-3 (175 B; on up to 64 devices GPT-2 XL) on nodes of eight A100: the screen's rate with all prices known, then whole searches."""
    for devices in DEVICES:
        if devices > most_devices:
            return
        pricer, search = _problem(devices)
        job, cuts = pricer.job, sum(allowed_cuts(pricer.graph, training=True))
        screener = Screener(pricer, Space(job, search, devices, cuts))
        started_s = perf_counter()
        screener.run()
        priced_s = perf_counter()
        screened = screener.run().screened
        rate = screened / (perf_counter() - priced_s)
        yield Figure(f"{devices:,} devices: prices of {screened:,} configurations", priced_s - started_s, "s")
        yield Figure(f"{devices:,} devices: screen", rate, "configurations/s", 100_000.0 if screened >= 10_000 else None)
        started_s = perf_counter()
        find_plans(pricer.graph, pricer.cluster, job, search, simulate)
        target_s = TARGETS_S.get(devices)
        yield Figure(f"{devices:,} devices: whole search", perf_counter() - started_s, "s", target_s, at_most=True)


def _problem(devices: int) -> tuple[Pricer, SearchSpec]:
    preset = PRESETS["gpt-3" if devices > 64 else "gpt2-xl"]
    batch = max(BATCH, devices)
    graph = coarsen(FORMULAS[preset.formula](batch_size=batch, training=True, value_bytes=2.0, **preset.options), PLANNED_TASKS)
    cluster = build_cluster(
        ClusterSpec.model_validate(
            {
                "nodes": [{"name": "node", "count": devices // 8, "devices": 8, "device": "a100-sxm-80gb"}],
                "intra_node": {"bandwidth": "300 GB/s", "latency": "3 us"},
                "network": {"bandwidth": "200 Gbit/s", "latency": "5 us", "backend": "nccl"},
            }
        ),
        "bf16",
        None,
    )
    search = SearchSpec(
        executable=False,
        minimum_ranks=max(1, devices // 2),
        tensor_parallel_degrees=(1, 2, 4, 8),
        sequence_parallel=True,
        schedules=("1f1b", "interleaved-1f1b"),
        zero_stages=(0, 1),
        recompute=("none", "selective", "full"),
    )
    return Pricer(graph, cluster, JobSpec(kind="training", global_batch_size=batch, precision="bf16", optimizer="adam")), search
