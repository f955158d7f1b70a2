"""Nodes of an emulated cluster in Linux: a network namespace with one TUN device each, and a cgroup for the core's share of each device.

Everything is named after the process that looks after it (`cs<PID>n<NUMBER>`, with `d<NUMBER>` behind it for a device), so that
parallel testbeds do not meet and what a dead process left behind is found again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.emulated.fabric import ADDRESS_START, address_of

INTERFACE = "eth0"
GUARDIAN = "chinchilla_sim.runtime.emulated.guardian"
TUN = Path("/dev/net/tun")
NAMESPACES = (Path("/run/netns"), Path("/var/run/netns"))
NAME = re.compile(r"(cs(\d+)n\d+)(?:d\d+)?")
PERIOD_S = 0.01
LEAST_QUOTA_S = 0.001
"""The kernel takes no smaller one."""

END_S = 10.0

# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 1, 2

_SETTINGS = (
    # What the formulas of gloo were fitted with; a connection keeps its window while a rank computes.
    "net.ipv4.tcp_congestion_control=reno",
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_no_metrics_save=1",
    # Whole messages are on their way at once: acknowledgements queue behind what their node sends itself, and a window that grows with use
    # made the same exchange take 182 ms in one run and 228 in the next.
    "net.ipv4.tcp_wmem=4096 16777216 16777216",
    "net.ipv4.tcp_rmem=4096 16777216 16777216",
    # No packets that no rank has sent.
    "net.ipv6.conf.all.disable_ipv6=1",
)


def why_unavailable() -> str | None:
    """Why this process cannot emulate a cluster, or None where it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root, for network namespaces"
    for command, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("sysctl", "procps")):
        if not shutil.which(command):
            return f"needs the {command} command (package {package})"
    if not TUN.exists():
        return f"needs {TUN} (modprobe tun)"
    name = f"csprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"cannot make a network namespace: {made.stderr.strip()}" if made.returncode else None


def node_name(owner: int, number: int) -> str:
    """Name of a node's namespace and cgroup; `owner` is the process that looks after it."""
    return f"cs{owner}n{number}"


def add_namespace(name: str, number: int) -> int:
    """A namespace with the node's address on its one interface; returns the TUN device that stands for the other end."""
    outside = f"{name}t"
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", outside.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(tun, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    _run("ip", "netns", "add", name)
    _run("ip", "link", "set", outside, "netns", name)
    _run("ip", "-n", name, "link", "set", outside, "name", INTERFACE, "txqueuelen", "10000")
    _run("ip", "netns", "exec", name, "sysctl", "-qw", *_SETTINGS)
    if shutil.which("tc"):
        # The default queue of many systems drops packets that have waited for a slow link.
        _run("tc", "-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "pfifo", "limit", "10000")
    network_bits = 8 * len(ADDRESS_START)
    _run("ip", "-n", name, "addr", "add", f"{address_of(number)}/{network_bits}", "dev", INTERFACE)
    _run("ip", "-n", name, "link", "set", INTERFACE, "up")
    _run("ip", "-n", name, "link", "set", "lo", "up")
    return tun


def kernel_drops(name: str) -> int:
    """Packets that the node's own interface has dropped in either direction."""
    text = _run("ip", "-n", name, "-s", "link", "show", INTERFACE)
    lines = text.splitlines()
    rows = [lines[index + 1].split() for index, line in enumerate(lines) if line.strip().startswith(("RX:", "TX:"))]
    return sum(int(row[3]) for row in rows)


def add_quota(name: str, device: int, share: float) -> Path:
    """A cgroup for a device of a node: its processes together get that share of a core, and no more; returns its folder."""
    root, unified = cpu_controller()
    folder = root / f"{name}d{device}"
    period_s = max(PERIOD_S, LEAST_QUOTA_S / share)
    period, quota = round(period_s * 1e6), round(period_s * share * 1e6)
    try:
        if unified:
            (root / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
        if unified:
            (folder / "cpu.max").write_text(f"{quota} {period}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(period))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
    except OSError as error:
        raise RunError(f"cpu_share cannot be emulated here: {folder}: {error.strerror}; leave cpu_share out") from error
    return folder


def cpu_controller() -> tuple[Path, bool]:
    """Where cgroups that limit processor time are made, and whether that is version 2."""
    unified: Path | None = None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(folder), False
        if kind == "cgroup2" and "cpu" in (Path(folder) / "cgroup.controllers").read_text().split():
            unified = Path(folder)
    if unified is None:
        raise RunError("cpu_share cannot be emulated here: no cgroup controller for processor time is mounted; leave cpu_share out")
    return unified, True


def remove_node(name: str) -> None:
    """Kill what runs in a node and remove its namespace and cgroup."""
    deadline = time.monotonic() + END_S
    while (pids := processes_in(name)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    if any((folder / name).exists() for folder in NAMESPACES):
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    for folder in _cgroups(name):
        # A killed process may still be on its way out.
        while folder.exists() and time.monotonic() < deadline:
            try:
                folder.rmdir()
            except OSError:
                time.sleep(0.01)


def processes_in(name: str) -> list[int]:
    """Processes in a node's namespace or cgroup."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
    for folder in _cgroups(name):
        listed += (folder / "cgroup.procs").read_text().split()
    return sorted({int(pid) for pid in listed})


def _cgroups(name: str) -> list[Path]:
    try:
        return sorted(cpu_controller()[0].glob(f"{name}d*"))
    except RunError:
        return []


def leftovers() -> Iterator[str]:
    """Names of nodes whose guardian is dead."""
    folders = [*NAMESPACES[:1]]
    with contextlib.suppress(RunError):
        folders.append(cpu_controller()[0])
    found = [NAME.fullmatch(path.name) for folder in folders if folder.exists() for path in folder.iterdir()]
    owners = {match[1]: int(match[2]) for match in found if match}
    yield from sorted(name for name, owner in owners.items() if not _guards(owner))


def _guards(pid: int) -> bool:
    """Whether that process looks after a testbed: its number may be another process's by now."""
    try:
        return GUARDIAN.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"the testbed cannot be set up: `{' '.join(command)}`: {done.stderr.strip()}")
    return done.stdout
