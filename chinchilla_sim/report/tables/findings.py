"""What a look at this machine found: each finding with its cure, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from chinchilla_sim.report.table import Table

State = Literal["ok", "missing", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `missing` is an extra that nobody must have, `failed` keeps jobs from running."""

    name: str
    state: State
    found: str
    cure: str = ""


def findings_table(findings: Sequence[Finding]) -> Table:
    """All findings in their order."""
    rows = tuple((one.name, one.state, one.found, one.cure) for one in findings)
    counts = {state: sum(one.state == state for one in findings) for state in ("failed", "warning", "missing")}
    note = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing is missing"
    return Table("This installation and machine", ("what", "state", "found", "cure"), rows, text_columns=(0, 1, 2, 3), note=note)


def findings_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """JSON-ready form; `ready` says whether jobs can run."""
    return {"ready": is_ready(findings), "findings": [asdict(one) for one in findings]}


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether nothing keeps jobs from running."""
    return all(one.state != "failed" for one in findings)
