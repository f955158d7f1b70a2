"""Measured: NCCL's collectives within a node of A100 and H100, from shipped tables and from thinned ones on sizes left out.

Tables are read from $CHINCHILLA_DATA (default ../shared/data).
"""

import os
from pathlib import Path

import pytest

from chinchilla_sim.validation.collectives import CollectiveResult, check_collectives

SHARED = Path(__file__).parents[3] / "shared"
DATA = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data"))


def check(name: str, device: str = "a100-sxm-80gb") -> CollectiveResult:
    """A table of the shared data."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") and SHARED.exists():
            pytest.fail(f"{SHARED} exists, but {path} does not")
        pytest.skip(f"no {path}: set CHINCHILLA_DATA")
    return check_collectives(path, device)


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_sizes_left_out_are_met_and_the_catalogue_is_the_thinned_table(gpu: str) -> None:
    """Mean error over operations and counts: 5 % and 5 % on sizes left out (8 % allowed), 3 % shipped; the formula alone 35 % and more."""
    result = check(f"nvidia_perf/nccl_{gpu}_sxm.csv", f"{gpu}-sxm-80gb")
    assert len(result.lines) == 12 and sum(line.rows for line in result.lines) == 252
    left_out, simulated, formula = (result.mean(name) for name in ("left_out_error", "simulated_error", "formula_error"))
    assert left_out and simulated and formula
    assert left_out < 0.055 and simulated < 0.035 and formula > 0.35
    assert max(line.simulated_error or 0.0 for line in result.lines) < 0.12


def test_tables_hold_on_machines_they_were_not_taken_from() -> None:
    """vTrain's own A100 node (2 to 8 ranks, also 3, 5, 6, 7) within 7 %, H200 within 7 %, another release of NCCL on H100 within 6 %."""
    lines = check("published/collectives.csv").lines
    bounds = {("a100", "vtrain-nccl"): 0.07, ("h100_sxm", "2.27.3"): 0.06, ("h200_sxm", "2.26.2"): 0.07, ("h200_sxm", "2.29.2"): 0.07}
    for (device, version), bound in bounds.items():
        errors = [line.simulated_error for line in lines if line.series.device == device and line.series.version.endswith(version)]
        assert len(errors) in (7, 12)
        assert sum(error or 1.0 for error in errors) / len(errors) < bound
