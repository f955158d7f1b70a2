"""What emulated links take of this machine's cores: processor seconds per byte of the ranks that talk, and of the fabric between them.

Two ranks that do nothing else send each other messages over an emulated link; the kernel says how long each process ran meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import NamedTuple

import torch
import torch.distributed as dist

from chinchilla_sim.runtime.launch import TESTBED_PORT, NodeLaunch, launch_nodes
from chinchilla_sim.runtime.namespaces import INTERFACE
from chinchilla_sim.runtime.testbed import open_testbed
from chinchilla_sim.runtime.worker import prepare_process
from chinchilla_sim.scenario.cluster import THIS_MACHINE, ClusterSpec

BANDWIDTH = "1 Gbit/s"
LATENCY = "0.1 ms"
MESSAGE_BYTES = 1 << 20
MESSAGES = 16
ROUNDS = 5


class ByteCost(NamedTuple):
    """Processor seconds per byte that a rank sends or receives, and of the fabric per byte that it carries."""

    rank_s: float
    fabric_s: float


def measure_emulation() -> ByteCost:
    """Measured now, between two nodes; needs what a testbed needs."""
    network = {"bandwidth": BANDWIDTH, "latency": LATENCY, "backend": "gloo"}
    spec = ClusterSpec.model_validate({"nodes": [{"name": "node", "count": 2, "device": THIS_MACHINE}], "network": network})
    with open_testbed(spec) as testbed, TemporaryDirectory(prefix="chinchilla-emulation-") as folder:
        hosts = list(testbed.hosts.values())
        endpoint = f"{hosts[0].address}:{TESTBED_PORT}"
        launches = [NodeLaunch((number,), number, 2, endpoint, INTERFACE, host) for number, host in enumerate(hosts)]
        launch_nodes("chinchilla_sim.runtime.emulation", [folder, str(testbed.guardian)], launches, Path(folder))
        records = [json.loads(Path(folder, f"emulation{rank}.json").read_text()) for rank in range(2)]
    rank_s, fabric_s = (median(round_[key] for record in records for round_ in record) for key in ("rank_s", "fabric_s"))
    return ByteCost(rank_s, fabric_s)


# What follows runs in both ranks.


def _measure_rank(folder: Path, guardian: int) -> None:
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    _exchange(rank)
    record = []
    for _ in range(ROUNDS):
        dist.barrier()
        own_s, fabric_s = process_time(), _running_s(guardian)
        _exchange(rank)
        moved_bytes = 2 * MESSAGES * MESSAGE_BYTES
        record.append({"rank_s": (process_time() - own_s) / moved_bytes, "fabric_s": (_running_s(guardian) - fabric_s) / moved_bytes})
    Path(folder, f"emulation{rank}.json").write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def _exchange(rank: int) -> None:
    """MESSAGES there and back, one after the other."""
    outgoing, incoming = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8), torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    for _ in range(MESSAGES):
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
