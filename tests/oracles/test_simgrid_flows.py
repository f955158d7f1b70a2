"""Oracle: FairNetwork against SimGrid 4.1 (`fair`: pure max-min sharing after the sum of the route's latencies).

Cases are read from $CHINCHILLA_DATA (default ../shared/data); see its README.md, section simgrid.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.cli import app
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.simgrid import TOLERANCE, check_cases, finish_times_s, worst_error

SHARED = Path(__file__).parents[3] / "shared"
FOLDER = Path(os.environ.get("CHINCHILLA_DATA", SHARED / "data"))
CASES = sorted((FOLDER / "simgrid" / "cases").glob("*.json"))


def test_cases_are_there() -> None:
    """In CI beside a shared folder the cases must be found; elsewhere their absence is only said."""
    if CASES:
        assert {"ring_allreduce_8", "fatpipe", "random_00"} <= {path.stem for path in CASES}
    elif os.environ.get("CI") and SHARED.exists():
        pytest.fail(f"{SHARED} exists, but there are no SimGrid cases in {FOLDER / 'simgrid' / 'cases'}")
    else:
        pytest.skip(f"no SimGrid cases in {FOLDER}: set CHINCHILLA_DATA")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_finish_time_is_simgrids(path: Path) -> None:
    """All transfers and computations of a case end when SimGrid says, to 1e-6 of the time."""
    assert worst_error(json.loads(path.read_text())) <= TOLERANCE


def case_of_two_flows() -> dict[str, Any]:
    """Two messages of 1 MB from one host over a link of 1 MB/s and 1 s, the second after a computation of 0.5 s."""
    comm = {"kind": "comm", "src": "a", "dst": "b", "bytes": 1e6, "release_s": 0.0}
    return {
        "name": "two flows",
        "platform": {
            "hosts": [{"name": "a", "speed_flops": 2.0}, {"name": "b", "speed_flops": 2.0}],
            "links": [{"name": "l", "bandwidth_Bps": 1e6, "latency_s": 1.0, "policy": "SHARED"}],
            "routes": [{"src": "a", "dst": "b", "links": ["l"]}],
        },
        "tasks": [
            comm | {"id": 0, "deps": []},
            {"id": 1, "kind": "exec", "host": "a", "flops": 1.0, "deps": [], "release_s": 0.0},
            comm | {"id": 2, "deps": [1]},
        ],
        # Alone from 1.0 to 1.5, together at half the rate until 2.5, then the second alone for its last 0.5 MB.
        "results": {"fair": {"finish_s": [2.5, 0.5, 3.0]}},
    }


def test_two_flows_by_hand() -> None:
    """The drawing in the comment, without SimGrid."""
    assert finish_times_s(case_of_two_flows()) == pytest.approx([2.5, 0.5, 3.0])


def test_command_reports_every_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`chinchilla validate network FOLDER --json` prints each case; a wrong one makes it exit with 1."""
    (tmp_path / "good.json").write_text(json.dumps(case_of_two_flows()))
    app(["validate", "network", str(tmp_path), "--json"], exit_on_error=False, result_action="return_value")
    assert json.loads(capsys.readouterr().out)["cases"] == [{"case": "two flows", "worst_relative_error": pytest.approx(0, abs=1e-12)}]
    wrong = case_of_two_flows() | {"name": "wrong", "results": {"fair": {"finish_s": [2.5, 0.5, 4.0]}}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(SystemExit) as stopped:
        app(["validate", "network", str(tmp_path)], exit_on_error=False, result_action="return_value")
    assert stopped.value.code == 1 and "1 of 2 cases" in capsys.readouterr().out


def test_all_spoilt_files_are_named_at_once(tmp_path: Path) -> None:
    """Text that is no JSON, a case without platform, and one that waits for itself; an empty folder says so."""
    with pytest.raises(ScenarioError, match=r"holds no \*.json files"):
        check_cases(tmp_path)
    cycle = case_of_two_flows()
    cycle["tasks"][0]["deps"] = [2]
    cycle["tasks"][2]["deps"] = [0]
    for name, text in (("a.json", "{"), ("b.json", "{}"), ("c.json", json.dumps(cycle))):
        (tmp_path / name).write_text(text)
    with pytest.raises(ScenarioError) as raised:
        check_cases(tmp_path)
    assert [mistake.where for mistake in raised.value.mistakes] == ["a.json", "b.json", "c.json"]
    assert "never start" in str(raised.value)
