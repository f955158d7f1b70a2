"""Where the launchers of a run over several machines meet, and through which interface a machine reaches that place."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass

from chinchilla_sim.errors import Mistake, RunError, ScenarioError

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Rendezvous:
    """An address of the first node's machine that all others reach, and this node's number."""

    host: str
    port: int
    node_rank: int

    @property
    def endpoint(self) -> str:
        """As torchrun writes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_rendezvous(text: str, node_rank: int) -> Rendezvous:
    """From "HOST:PORT".

    >>> parse_rendezvous("10.0.0.1:29500", 1)
    Rendezvous(host='10.0.0.1', port=29500, node_rank=1)
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ScenarioError([Mistake("--rendezvous", f"{text!r} is no HOST:PORT", "write for example --rendezvous 10.0.0.1:29500")])
    if node_rank < 0:
        raise ScenarioError([Mistake("--node-rank", f"must not be negative, is {node_rank}", "number the nodes from 0")])
    return Rendezvous(host.strip("[]"), int(port), node_rank)


def check_first_node(rendezvous: Rendezvous) -> None:
    """RunError where this is the first node, but cannot listen at the rendezvous."""
    if rendezvous.node_rank:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(rendezvous.host, rendezvous.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        what = f"node 0 cannot listen at --rendezvous {rendezvous.endpoint}: {error.strerror}"
        raise RunError(f"{what}; name an address of this machine that the other nodes reach, and a free port") from error


def interface_towards(host: str) -> str:
    """The network interface through which this machine reaches an address; $GLOO_SOCKET_IFNAME where the user has set it."""
    named = os.environ.get(INTERFACE_VARIABLE)
    if named:
        return named
    cure = f"set {INTERFACE_VARIABLE} to the name of the interface"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: it only asks for the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise RunError(f"no route to --rendezvous {host}: {error.strerror}; {cure} if it is there") from error
    for _, name in socket.if_nameindex():
        if _address_of(name) == own or (name == "lo" and (own.startswith("127.") or own == "::1")):
            return name
    raise RunError(f"no interface of this machine has the address {own}, from which it reaches {host}; {cure}")


def _address_of(interface: str) -> str | None:
    """IPv4 address of an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
