"""What decides a step, and what an unseen laboratory may expect: tables and dictionaries of explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from chinchilla_sim.report.table import Table, percent, signed_percent
from chinchilla_sim.simulator.sensitivity import Explanation
from chinchilla_sim.units import format_bytes, format_seconds
from chinchilla_sim.validation.left_out import LeftOut


def explanation_sentence(found: Explanation) -> str:
    """The step, what binds it, and how much memory is left."""
    share = percent(found.path_shares.get(found.binding, 0.0))
    text = f"One step takes {format_seconds(found.step_s)} (simulated). {found.binding.capitalize()} binds: {share} of the critical path, "
    text += (
        f"most of it on rank {found.binding_rank}; rank {found.busiest_rank} is the busiest ({percent(found.utilization)} of the step). "
    )
    if found.headroom_bytes < 0:
        return text + f"It does not fit: rank {found.fullest_rank} needs {format_bytes(-found.headroom_bytes)} more memory."
    return text + f"Memory does not bind: rank {found.fullest_rank}, the fullest, has {format_bytes(found.headroom_bytes)} left."


def explanation_tables(found: Explanation) -> tuple[Table, ...]:
    """The critical path by what it does, and the step with each input changed."""
    path = [(what, format_seconds(share * found.step_s), percent(share)) for what, share in found.path_shares.items()]
    moved = [one for one in found.sensitivities if one.change]
    still = [one.what for one in found.sensitivities if not one.change]
    rows = [(one.what, format_seconds(one.step_s), signed_percent(one.change)) for one in moved]
    note = f"no effect: {', '.join(still)}" if still else ""
    return (
        Table("Critical path of the step", ("what", "time", "share"), tuple(path), text_columns=(0,)),
        Table("If an input were different", ("what", "step time", "change"), tuple(rows), text_columns=(0,), note=note),
    )


def explanation_dict(found: Explanation) -> dict[str, Any]:
    """JSON-ready."""
    return {"binding": found.binding} | asdict(found)


def left_out_table(results: Sequence[LeftOut]) -> Table:
    """Errors of sources that constants and intervals have not seen."""
    rows: list[tuple[str, ...]] = []
    for one in results:
        constants = one.constants
        figures = percent(one.shipped_error), percent(one.refitted_error), signed_percent(one.bias), percent(one.inside), percent(one.width)
        shares = (f"{constants.sustained_share:.2f}", f"{constants.streaming_share:.2f}", f"{constants.link_efficiency:.2f}")
        rows.append((one.source, str(one.rows), *figures, *shares, format_seconds(constants.host_launch_s)))
    if results:
        means = [float(np.mean([getattr(one, name) for one in results])) for name in ("shipped_error", "refitted_error", "inside", "width")]
        total = str(sum(one.rows for one in results))
        rows.append(("all sources, weighted equally", total, percent(means[0]), percent(means[1]), "", *map(percent, means[2:]), *[""] * 4))
    errors = "source", "rows", "shipped", "refitted without it", "bias", "inside p5 to p95", "half width"
    headers = (*errors, "speed of products", "of other kernels", "of links", "host launch")
    return Table("Each source with constants and intervals of all others", headers, tuple(rows), text_columns=(0,))


def left_out_dict(results: Sequence[LeftOut]) -> dict[str, Any]:
    """JSON-ready."""
    return {"sources": [asdict(one) for one in results]}
