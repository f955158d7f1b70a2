"""Most bytes that each rank held in a step: simulated, counted tensor by tensor, and by the kernel's account of the process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chinchilla_sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """One rank: tensors at the peak of one counted step, `held_bytes` of them when it began, and the process's largest resident set.

    `process_start_bytes` was resident before the model was made: interpreter, torch and its libraries.
    """

    rank: int
    tensor_bytes: float
    held_bytes: float
    process_bytes: float
    process_start_bytes: float


@dataclass(frozen=True, slots=True)
class PeakRow:
    """Simulated and measured peak of one rank."""

    measured: MeasuredPeak
    simulated_bytes: float

    @property
    def relative_error(self) -> float:
        """(simulated - counted) / counted tensors."""
        return self.simulated_bytes / self.measured.tensor_bytes - 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self.measured) | {"simulated_bytes": self.simulated_bytes, "relative_error": self.relative_error}


def peak_rows(simulated: Timeline, measured: Sequence[MeasuredPeak]) -> tuple[PeakRow, ...]:
    """One row for each rank whose tensors were counted."""
    return tuple(PeakRow(peak, simulated.peak_memory_bytes(peak.rank)) for peak in measured if peak.tensor_bytes)
