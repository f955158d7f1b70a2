"""Both engines on one plan in one launch, in turns: `python -m chinchilla_sim.runtime.benchmark.engine_race FOLDER ROUNDS STEPS`.

Every process holds two copies of its stages, one for each engine, in one process group; both get the same batches. In every round
each engine makes some steps, the first of which does not count (caches hold what the other one left), and who begins alternates,
so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from chinchilla_sim.cluster.build import emulated
from chinchilla_sim.errors import RunError
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.runtime.emulated.testbed import open_testbed
from chinchilla_sim.runtime.engine.engines import ENGINES, Engine
from chinchilla_sim.runtime.launching.launch import NodeLaunch, launch_nodes, testbed_launches
from chinchilla_sim.runtime.launching.threads import order_network_threads
from chinchilla_sim.runtime.rank.training import RankRun
from chinchilla_sim.runtime.stage.batches import global_batches
from chinchilla_sim.runtime.worker import choose_device, prepare_process
from chinchilla_sim.validation.engine_race import EngineRace, race_of

WARM_UP_STEPS = 3

TIMEOUT = timedelta(seconds=120)


def run_race(file: PlanFile, rounds: int, round_steps: int) -> EngineRace:
    """Start the ranks, on emulated nodes where the scenario has some, and compare; `round_steps` of each engine count in each round."""
    spec = file.scenario.cluster
    with tempfile.TemporaryDirectory(prefix="chinchilla-") as name:
        folder = Path(name)
        file.save(folder / "plan.json")
        with ExitStack() as stack:
            testbed = stack.enter_context(open_testbed(spec)) if emulated(spec) else None
            launches = testbed_launches(file, testbed) if testbed else [NodeLaunch(tuple(range(file.plan.rank_count)))]
            launch_nodes("chinchilla_sim.runtime.benchmark.engine_race", [name, str(rounds), str(round_steps)], launches, folder)
        records = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(file.plan.rank_count)]
    return race_of(records)


class _Race:
    """One rank's part."""

    def __init__(self, file: PlanFile, folder: Path) -> None:
        device = choose_device()
        self.runs: dict[Engine, RankRun] = {engine: RankRun(file, folder, device, engine) for engine in ENGINES}
        self._batches = self._endless_batches()
        self.ends: dict[Engine, list[list[float]]] = {engine: [] for engine in ENGINES}

    def _endless_batches(self) -> Iterator[tuple[Any, Any]]:
        run, epoch = self.runs["chinchilla"], 0
        while True:
            empty = True
            for batch in global_batches(run.job.batches("train", run.spec.seed, epoch), run.spec.global_batch_size):
                empty = False
                yield batch
            if empty:
                raise RunError(f"the data has fewer than {run.spec.global_batch_size} samples: no step can be made")
            epoch += 1

    def run(self, rounds: int, round_steps: int) -> None:
        """Warm up both, then take turns."""
        for engine in ENGINES:
            self._play(engine, WARM_UP_STEPS)
        for number in range(rounds):
            for engine in ENGINES if number % 2 else reversed(ENGINES):
                self.ends[engine].append(self._play(engine, round_steps + 1))

    def _play(self, engine: Engine, steps: int) -> list[float]:
        """Make steps with one engine; returns when each ended here."""
        run, ends = self.runs[engine], []
        dist.barrier()
        for _ in range(steps):
            inputs, targets = next(self._batches)
            run.interpreter.step(run.shares.inputs(inputs), run.shares.targets(targets))
            ends.append(run.recorder.intervals[-1][1])
        return ends


def main(folder: Path, rounds: int, round_steps: int) -> None:
    """This rank of the race."""
    rank = int(os.environ["RANK"])
    try:
        prepare_process()
        device = choose_device()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        path = folder / "plan.json"
        race = _Race(load_plan(path).allow_factory(False, str(path)), folder)
        order_network_threads()
        race.run(rounds, round_steps)
        (folder / f"rank{rank}.json").write_text(json.dumps(race.ends))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"rank{rank}.error").write_text(traceback.format_exc())
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
