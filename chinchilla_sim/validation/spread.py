"""Compressed variants of a model over several ranks: trained, and then answering with the weights that came out, simulated and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Played:
    """A plan that was simulated and run: seconds of a step, and the job's own metrics at the end."""

    plan: str
    simulated_s: float
    measured_s: float
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def relative_error(self) -> float:
        """Of the simulated seconds."""
        return self.simulated_s / self.measured_s - 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"relative_error": self.relative_error}


@dataclass(frozen=True)
class SpreadVariant:
    """A variant over so many ranks; `training` is None where a variant is not trained as such (its answers come from the plain weights)."""

    name: str
    rank_count: int
    training: Played | None
    answering: Played

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        training = self.training.to_dict() if self.training else None
        return {"variant": self.name, "ranks": self.rank_count, "training": training, "answering": self.answering.to_dict()}
