"""The process behind a testbed: `python -m chinchilla_sim.runtime.emulated.guardian`, started and told what to do by `testbed.py`.

It makes the nodes, moves their packets, and removes everything when its standard input closes or the process that asked for the
testbed is gone, however that ended. One line of JSON comes in (the wiring), one goes out (the nodes); then every line
"traffic" is answered by one line of counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.emulated.fabric import HEADER_BYTES, Fabric, Wiring, address_of
from chinchilla_sim.runtime.emulated.namespaces import add_namespace, add_quota, node_name, remove_node

LARGEST_PACKET = HEADER_BYTES + 65_535
SLEEP_S = 0.5
LATE_S = 0.005
PRIORITY = 10
TIMER_SLACK = 29  # PR_SET_TIMERSLACK


def main() -> int:
    """Guard one testbed from its first line of input to its end."""
    request = json.loads(sys.stdin.buffer.readline())
    wiring = Wiring.from_dict(request["wiring"])
    names = [node_name(os.getpid(), number) for number in range(len(wiring.nodes))]
    stop, wake = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(wake, b"."))
    try:
        owner = os.pidfd_open(request["owner"])
        nodes, tuns = _make_nodes(wiring, names, request["shares"])
        _answer({"nodes": nodes})
        _Loop(Fabric(wiring), tuns, [stop, owner]).run()
    except (RunError, OSError) as error:
        with suppress(BrokenPipeError):
            _answer({"error": str(error)})
    finally:
        for name in names:
            remove_node(name)
    return 0


def _make_nodes(wiring: Wiring, names: list[str], shares: dict[str, list[float]]) -> tuple[list[dict[str, Any]], list[int]]:
    nodes, tuns = [], []
    for number, (node, name) in enumerate(zip(wiring.nodes, names, strict=True)):
        tuns.append(add_namespace(name, number))
        cgroups = [str(add_quota(name, device, share)) for device, share in enumerate(shares[node])]
        nodes.append({"name": node, "namespace": name, "address": address_of(number), "cgroups": cgroups})
    return nodes, tuns


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


class _Loop:
    """Reads packets from the nodes' devices, and writes them to others when their time has come."""

    def __init__(self, fabric: Fabric, tuns: list[int], ends: list[int]) -> None:
        self.fabric, self.tuns, self.ends = fabric, tuns, ends
        self.node_of = {tun: node for node, tun in enumerate(tuns)}
        self.lost = 0
        self._held = [False] * len(tuns)

    def run(self) -> None:
        """Until one of `ends` or the standard input closes."""
        _hurry()
        commands = sys.stdin.fileno()
        while True:
            ready = self._wait([commands, *self.ends])
            if any(end in ready for end in self.ends):
                return
            if commands in ready:
                if not os.read(commands, 4096):
                    return
                _answer(self._traffic())
            for tun in ready:
                if tun in self.node_of:
                    self._read(self.node_of[tun])
            self._write()

    def _wait(self, others: list[int]) -> list[int]:
        """Devices whose nodes may send now and want to, and which of the others are ready."""
        now_s = monotonic()
        wake_s = min(now_s + SLEEP_S, self.fabric.next_s)
        open_tuns = []
        for node, tun in enumerate(self.tuns):
            free_s = self.fabric.free_s(node)
            if free_s <= now_s:
                open_tuns.append(tun)
            else:
                self._held[node] = True
                wake_s = min(wake_s, free_s)
        return select.select([*open_tuns, *others], [], [], max(0.0, wake_s - now_s))[0]

    def _read(self, node: int) -> None:
        """Take packets of a node until its wire is busy.

        What a node that was held back has ready now was waiting: it counts from when its wire was free, not from
        when this process woke up.
        """
        while True:
            now_s, free_s = monotonic(), self.fabric.free_s(node)
            if free_s > now_s:
                return
            try:
                packet = os.read(self.tuns[node], LARGEST_PACKET)
            except BlockingIOError:
                self._held[node] = False
                return
            self.fabric.admit(node, packet, max(free_s, now_s - LATE_S) if self._held[node] else now_s)

    def _write(self) -> None:
        for target, packet in self.fabric.arrived(monotonic()):
            try:
                os.write(self.tuns[target], packet)
            except OSError:
                self.lost += 1

    def _traffic(self) -> dict[str, Any]:
        wires = self.fabric.wiring.wires
        return {
            "wire_bytes": {wire.name: size for wire, size in zip(wires, self.fabric.wire_bytes, strict=True)},
            "wire_packets": {wire.name: count for wire, count in zip(wires, self.fabric.wire_packets, strict=True)},
            "drops": self.fabric.drops + self.lost,
        }


def _hurry() -> None:
    """Run before the ranks, wake up on time, and never pause for garbage."""
    ctypes.CDLL(None).prctl(TIMER_SLACK, 1, 0, 0, 0)
    gc.collect()
    gc.disable()
    try:
        # Programs that a real-time process starts must not run before everything else too.
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError:
        with suppress(OSError):
            os.nice(-20)


if __name__ == "__main__":
    sys.exit(main())
