"""torchrun with a rendezvous that listens on one address only: `python -m chinchilla_sim.runtime.launching.agent TORCHRUN_ARGUMENTS`.

torch's own stores listen on every interface of the machine. Here the launcher of the first node listens on the address that it was
told (loopback, unless the user named another), and makes a new store for every start of the ranks: those that start
again would find the addresses of the dead in the old one.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.run import main

BACKEND = "one-address"
MEETING_S = 300


class OneAddressRendezvous(RendezvousHandler):
    """Launchers that know their places meet at the first one's store; the ranks' store is at the same address, on a port of its own."""

    def __init__(self, host: str, port: int, node_rank: int, node_count: int, run_id: str) -> None:
        self.host, self.node_rank, self.node_count, self.run_id = host, node_rank, node_count, run_id
        self._meeting: TCPStore | None = None
        self._store: TCPStore | None = None
        self._port, self._round = port, 0

    def get_backend(self) -> str:
        """Name for the log."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Ranks connect to the store that their launcher made."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other launchers; one round for every start of the ranks."""
        if self._meeting is None:
            self._meeting = self._serve(self._port) if self.node_rank == 0 else self._connect(self._port)
        self._round += 1
        key = f"{self.run_id}/port-{self._round}"
        if self.node_rank == 0:
            self._store = self._serve(0)
            self._meeting.set(key, str(self._store.port))
        port = int(self._meeting.get(key))
        store = PrefixStore(f"{self.run_id}/{self._round}", self._meeting)
        return RendezvousInfo(store, self.node_rank, self.node_count, RendezvousStoreInfo(self.host, port))

    def _serve(self, port: int) -> TCPStore:
        family, kind, protocol, _, address = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
        port = listener.getsockname()[1]
        return TCPStore(
            self.host, port, None, True, timedelta(seconds=MEETING_S), wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def _connect(self, port: int) -> TCPStore:
        return TCPStore(self.host, port, None, False, timedelta(seconds=MEETING_S), wait_for_workers=False)

    def is_closed(self) -> bool:
        """Launchers do not close it early."""
        return False

    def set_closed(self) -> None:
        """Nothing to tell others."""

    def num_nodes_waiting(self) -> int:
        """All nodes are there from the start."""
        return 0

    def get_run_id(self) -> str:
        """Name of the run."""
        return self.run_id

    def shutdown(self) -> bool:
        """Stores end with the process."""
        return True


def create_rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    """From torchrun's arguments; `rank` of --rdzv-conf is the node's."""
    host, port = parse_rendezvous_endpoint(parameters.endpoint, 0)
    node_rank: Any = parameters.get("rank", 0)
    return OneAddressRendezvous(host, port, int(node_rank), parameters.max_nodes, parameters.run_id)


if __name__ == "__main__":
    rendezvous_handler_registry.register(BACKEND, create_rendezvous)
    # Without a folder of its own for ranks' logs, which it writes none to and does not remove when it is killed.
    main([f"--log-dir={os.devnull}", *sys.argv[1:]])
