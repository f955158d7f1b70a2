"""What the nodes of a testbed find on their links, and that they find nothing else."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from chinchilla_sim.runtime.emulated.namespaces import INTERFACE
from chinchilla_sim.runtime.emulated.testbed import Testbed
from chinchilla_sim.runtime.launching.launch import TESTBED_PORT, NodeLaunch, launch_nodes
from tests.testbed.bulk import VALUES

TALK = str(Path(__file__).with_name("talk.py"))
HEADERS = 1.048
BULK_BYTES = 2_000_000


def talk(bed: Testbed, one: str, other: str) -> dict[str, float]:
    """Seconds of a round trip and of a bulk message between two nodes."""
    source, target = bed.hosts[one], bed.hosts[other]
    server = subprocess.Popen(target.command([sys.executable, TALK, "serve", target.address]))
    command = source.command([sys.executable, TALK, "measure", target.address, str(BULK_BYTES)])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    finally:
        server.kill()
        server.wait()
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("other", "trip_s", "bytes_per_s"), [("other", 0.020, 12.5e6), ("slow", 0.040, 2.5e6)])
def test_links_are_as_slow_and_far_as_stated(unequal: Testbed, other: str, trip_s: float, bytes_per_s: float) -> None:
    """A round trip takes the latencies of both ways, a bulk message its bytes with headers over the narrowest link of the route."""
    before = unequal.traffic()
    measured = talk(unequal, "near", other)
    assert 0.98 <= measured["trip_s"] / trip_s <= 1.15
    assert 0.95 <= measured["bulk_s"] / (trip_s + HEADERS * BULK_BYTES / bytes_per_s) <= 1.10
    after = unequal.traffic()
    assert after.drops == 0
    gone = {wire: after.wire_bytes[wire] - before.wire_bytes[wire] for wire in after.wire_bytes}
    for wire in ("near -> core", f"core -> {other}"):
        assert gone[wire] == pytest.approx(3 * HEADERS * BULK_BYTES, rel=0.01)
    # Acknowledgements come back; a stray packet of a connection that was closed before is no traffic.
    assert sum(size > 1000 for size in gone.values()) == 4


def test_bulk_over_gloo_takes_what_the_formula_says(unequal: Testbed, tmp_path: Path) -> None:
    """With its receive posted ahead a message of gloo takes its bytes with headers over the link, and the way there and back."""
    hosts = [unequal.hosts["other"], unequal.hosts["slow"]]
    endpoint = f"{hosts[0].address}:{TESTBED_PORT}"
    launches = [NodeLaunch((number,), number, 2, endpoint, INTERFACE, host) for number, host in enumerate(hosts)]
    launch_nodes("tests.testbed.bulk", [str(tmp_path)], launches, tmp_path)
    measured_s = median(json.loads((tmp_path / "bulk.json").read_text()))
    assert 0.95 <= measured_s / (0.040 + HEADERS * 4 * VALUES / 2.5e6) <= 1.10
    assert unequal.traffic().drops == 0


def test_nodes_see_only_each_other(unequal: Testbed) -> None:
    """A node has its loopback and one interface; this machine's own addresses and servers are out of its reach."""
    host = unequal.hosts["near"]
    listed = subprocess.run(host.command(["ip", "-o", "link"]), capture_output=True, text=True, check=True).stdout
    assert [line.split(":")[1].strip() for line in listed.splitlines()] == ["lo", "eth0"]
    script = "import socket, sys; s = socket.socket(); s.settimeout(1); sys.exit(s.connect_ex((sys.argv[1], int(sys.argv[2]))) == 0)"
    with socket.create_server(("0.0.0.0", 0)) as server:
        own = socket.gethostbyname(socket.gethostname())
        for address in ("127.0.0.1", own):
            subprocess.run(host.command([sys.executable, "-c", script, address, str(server.getsockname()[1])]), check=True)


def test_a_node_gets_its_share_of_a_core(unequal: Testbed) -> None:
    """A program that computes all the time in a node with a share of 0.1 gets about a tenth of a core; without a share it gets more."""
    script = (
        "import os, sys, time\n"
        "if sys.argv[1]: open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "start = time.monotonic(), time.process_time()\n"
        "while time.monotonic() < start[0] + 1.5: pass\n"
        "print((time.process_time() - start[1]) / (time.monotonic() - start[0]))"
    )
    used = {}
    for name in ("near", "other"):
        host = unequal.hosts[name]
        command = host.command([sys.executable, "-c", script, host.cgroups[0] if host.cgroups else ""])
        used[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0.05 <= used["near"] <= 0.13
    assert used["other"] > 1.3 * used["near"]
