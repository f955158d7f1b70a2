"""Where ranks meet: messages and collectives on their way from a program into the graph of its activities."""

from __future__ import annotations

from dataclasses import dataclass, field

from chinchilla_sim.planner.action import Action
from chinchilla_sim.planner.pricing.prices import Exchange

MessageKey = tuple[str, int, int, int]
"""Direction, boundary, microbatch and lane (the replica, unless stages have replica counts of their own)."""
CollectiveKey = tuple[int, str, int, int]
"""Stage, what is exchanged, microbatch (-1: once per step) and bucket; of shared weights number and replica, of the norm the replica."""

GRADIENTS, SECOND_ROUND, SHARED, NORM = "gradients", "second round of gradients", "shared weights", "norm"


@dataclass(slots=True)
class Message:
    """Behind which activity each end was issued; None where it was not."""

    sent_after: int | None = None
    posted_after: int | None = None


@dataclass(slots=True)
class Collective:
    """`rounds` of the exchange of one bucket among `members`: behind which activity, and with which action, each rank joined."""

    members: tuple[int, ...]
    exchange: Exchange
    share: float
    rounds: int
    joined_after: dict[int, int] = field(default_factory=dict)
    actions: dict[int, Action] = field(default_factory=dict)

    @property
    def part(self) -> float:
        """Share of the seconds and bytes of the whole exchange."""
        return self.share * self.rounds / self.exchange.rounds
