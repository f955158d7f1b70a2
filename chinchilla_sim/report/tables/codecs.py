"""Tables about codecs: measured throughput with compression against simulated."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from chinchilla_sim.report.table import NONE, Table, percent
from chinchilla_sim.units import format_bandwidth
from chinchilla_sim.validation.codecs import CodecResult


def codec_tables(result: CodecResult) -> tuple[Table, ...]:
    """Rank correlation by model and bandwidth, its median, and what was left out."""
    rows = [
        (group.model, format_bandwidth(group.bandwidth_bytes_per_s), str(group.rows), f"{group.spearman:.2f}", percent(group.median_error))
        for group in result.groups
    ]
    middle = result.median_spearman
    note = f"median rank correlation {NONE if middle is None else f'{middle:.2f}'} over {len(rows)} groups"
    headers = ("model", "bandwidth", "runs", "Spearman", "median error")
    tables = [Table("Throughput relative to none, simulated against measured", headers, tuple(rows), text_columns=(0,), note=note)]
    if result.unused:
        unused = tuple((reason, str(count)) for reason, count in sorted(result.unused.items()))
        tables.append(Table("Rows not used", ("reason", "rows"), unused, text_columns=(0,)))
    return tuple(tables)


def codecs_dict(result: CodecResult) -> dict[str, Any]:
    """The same as one JSON document."""
    return {
        "median_spearman": result.median_spearman,
        "groups": [asdict(group) for group in result.groups],
        "predicted_rows": len(result.predicted),
        "unused": result.unused,
    }
