"""What emulated links take of this machine's cores: seconds per byte and message of the ranks that talk, and of the fabric between them.

Two ranks that do nothing else send each other messages over an emulated link; the kernel says how long each process ran meanwhile. What
a program's own thread takes for a message is measured with the interpreter (`probe`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time, thread_time

import torch
import torch.distributed as dist

from chinchilla_sim.cluster.calibration import EmulatedLinks
from chinchilla_sim.runtime.emulated.namespaces import INTERFACE
from chinchilla_sim.runtime.emulated.testbed import open_testbed
from chinchilla_sim.runtime.launching.launch import TESTBED_PORT, NodeLaunch, launch_nodes
from chinchilla_sim.runtime.launching.threads import order_network_threads
from chinchilla_sim.runtime.worker import prepare_process
from chinchilla_sim.scenario.cluster import THIS_MACHINE, ClusterSpec

BANDWIDTH = "1 Gbit/s"
LATENCY = "0.1 ms"
MESSAGES = {1 << 10: 64, 1 << 20: 16}
"""How many messages of so many bytes a round exchanges in each direction."""
ROUNDS = 5


def measure_emulation() -> EmulatedLinks:
    """Measured now, between two nodes; needs what a testbed needs."""
    network = {"bandwidth": BANDWIDTH, "latency": LATENCY, "backend": "gloo"}
    spec = ClusterSpec.model_validate({"nodes": [{"name": "node", "count": 2, "device": THIS_MACHINE}], "network": network})
    with open_testbed(spec) as testbed, TemporaryDirectory(prefix="chinchilla-emulation-") as folder:
        hosts = list(testbed.hosts.values())
        endpoint = f"{hosts[0].address}:{TESTBED_PORT}"
        launches = [NodeLaunch((number,), number, 2, endpoint, INTERFACE, host) for number, host in enumerate(hosts)]
        launch_nodes("chinchilla_sim.runtime.measurement.emulation", [folder, str(testbed.guardian)], launches, Path(folder))
        records = [json.loads(Path(folder, f"emulation{rank}.json").read_text()) for rank in range(2)]
    return fit_links({size: [round_ for record in records for round_ in record[str(size)]] for size in MESSAGES})


def fit_links(rounds: Mapping[int, Sequence[Mapping[str, float]]]) -> EmulatedLinks:
    """The line through the medians of two message sizes; `rounds[size]` are seconds per message, of its two ends and of the fabric."""
    (small, few), (large, many) = sorted(rounds.items())

    def line(key: str, share: float) -> tuple[float, float]:
        low, high = (share * median(row[key] for row in rows) for rows in (few, many))
        per_byte = max(0.0, (high - low) / (large - small))
        return per_byte, max(0.0, low - small * per_byte)

    return EmulatedLinks(*line("fabric_s", 1.0), *line("ends_s", 0.5))


# What follows runs in both ranks.


def _measure_rank(folder: Path, guardian: int) -> None:
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    order_network_threads()
    rank = dist.get_rank()
    record: dict[int, list[dict[str, float]]] = {}
    for size, count in MESSAGES.items():
        _exchange(rank, size, count)
        record[size] = [_round(rank, size, count, guardian) for _ in range(ROUNDS)]
    Path(folder, f"emulation{rank}.json").write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def _round(rank: int, size: int, count: int, guardian: int) -> dict[str, float]:
    """Seconds per message: of its ends but for what the program itself takes, and of the fabric."""
    dist.barrier()
    own_s, program_s, fabric_s = process_time(), thread_time(), _running_s(guardian)
    _exchange(rank, size, count)
    ends_s = process_time() - own_s - (thread_time() - program_s)
    return {"ends_s": ends_s / count, "fabric_s": (_running_s(guardian) - fabric_s) / (2 * count)}


def _exchange(rank: int, size: int, count: int) -> None:
    """So many messages there and back, one after the other."""
    outgoing, incoming = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    for _ in range(count):
        receive = dist.irecv(incoming, src=1 - rank)
        if rank and receive:
            receive.wait()
        dist.send(outgoing, dst=1 - rank)
        if not rank and receive:
            receive.wait()


def _running_s(process: int) -> float:
    """Seconds that a process's threads have spent on a core, to the nanosecond."""
    threads = os.listdir(f"/proc/{process}/task")
    return sum(int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0]) for thread in threads) / 1e9


if __name__ == "__main__":
    _measure_rank(Path(sys.argv[1]), int(sys.argv[2]))
