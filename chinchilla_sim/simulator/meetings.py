"""What two or more ranks take part in: messages and collectives, while their ends are being found."""

from __future__ import annotations

from dataclasses import dataclass, field

from chinchilla_sim.planner.action import Action
from chinchilla_sim.planner.prices import Exchange

MessageKey = tuple[str, int, int, int]
"""Direction, boundary, microbatch and lane (the replica, unless stages have replica counts of their own)."""
CollectiveKey = tuple[int, str, int, int]
"""Stage, what is exchanged, microbatch (-1: once per step) and bucket; of shared weights number and replica, of the norm the replica."""

SHARED = "shared weights"
NORM = "norm"


@dataclass(slots=True)
class Message:
    """Behind which activity each end was issued; None where it was not."""

    sent_after: int | None = None
    posted_after: int | None = None


@dataclass(slots=True)
class Collective:
    """Exchange of one bucket among `members`: behind which activity, and with which action, each rank joined."""

    members: tuple[int, ...]
    exchange: Exchange
    share: float
    joined_after: dict[int, int] = field(default_factory=dict)
    actions: dict[int, Action] = field(default_factory=dict)
