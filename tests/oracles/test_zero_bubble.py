"""Published: profiled pipeline stages of the Zero-Bubble paper, simulated under the schedules they were measured with.

Rows are read from $CHINCHILLA_DATA (default ../shared/data); those of 8 ranks here, all 72 with `chinchilla validate schedules`.
"""

import csv
import json
import os
from pathlib import Path

import pytest

from chinchilla_sim.cli import app
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.zero_bubble import check_profiles, errors_by_schedule

SHARED = Path(__file__).parents[3] / "shared"
PROFILES = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data")) / "published" / "pipeline_stage_profiles.csv"


@pytest.fixture
def eight_ranks(tmp_path: Path) -> Path:
    """The rows of 8 ranks."""
    if not PROFILES.exists():
        if os.environ.get("CI") and SHARED.exists():
            pytest.fail(f"{SHARED} exists, but {PROFILES} does not")
        pytest.skip(f"no {PROFILES}: set CHINCHILLA_DATA")
    with PROFILES.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stages_p"] == "8"]
    path = tmp_path / "eight.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_bubbles_are_those_of_the_authors_and_steps_a_little_short(eight_ranks: Path) -> None:
    """Every schedule idles as the authors' simulator says, to 0.2 points (interleaved 0.5); steps are 3 to 11 % short of measured."""
    results = check_profiles(eight_ranks)
    assert len(results) == 36
    for result in results:
        assert result.published_bubble is not None
        assert result.bubble == pytest.approx(result.published_bubble, abs=0.005 if result.schedule == "1F1B-I" else 0.002)
    errors = errors_by_schedule(results)
    assert {name: len(found) for name, found in errors.items()} == {"1F1B": 6, "1F1B-I": 6, "ZB-1p": 6, "ZB-2p": 6}
    assert all(-0.11 < error < -0.03 for found in errors.values() for error in found)


def test_order_of_the_schedules_is_the_measured_one(eight_ranks: Path) -> None:
    """For every model and number of microbatches: ZB-2p before ZB-1p before 1F1B, simulated as measured."""
    found: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
    for result in check_profiles(eight_ranks):
        if result.measured_s:
            found.setdefault((result.model, result.microbatches), {})[result.schedule] = (result.simulated_s, result.measured_s)
    for steps in found.values():
        for times in zip(*(steps[name] for name in ("ZB-2p", "ZB-1p", "1F1B")), strict=True):
            assert list(times) == sorted(times)


def test_command_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row by hand through the command; a wrong file names its line and column."""
    header = "model,layers,hidden,heads,seq_len,stages_p,num_microbatches_m,T_F_ms,T_B_ms,T_W_ms,T_comm_ms,schedule,measured_step_time_s\n"
    path = tmp_path / "one.csv"
    path.write_text(header + "m,2,8,1,8,2,4,1000,1000,1000,0,1F1B,20\n")
    app(["validate", "schedules", str(path), "--json"], exit_on_error=False, result_action="return_value")
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["simulated_s"], row["error"]) == (15.0, -0.25)
    path.write_text(header + "m,2,8,1,8,2,4,1000,1000,1000,0,2F2B,20\nm,2,8,1,8,2,4,x,1000,1000,0,1F1B,20\n")
    with pytest.raises(ScenarioError) as raised:
        check_profiles(path)
    assert [mistake.where for mistake in raised.value.mistakes] == ["line 2", "line 3"]
    path.write_text("model\nm\n")
    with pytest.raises(ScenarioError, match="T_comm_ms: there is no such column"):
        check_profiles(path)
