"""Which plans were made here: those that this user's key signed, and whose content has not changed since."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.contract import BUILTIN_FACTORIES
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, load_plan
from chinchilla_sim.planner.signature import key_path, sign, signed_here
from chinchilla_sim.scenario.load import parse_scenario

PLAN = Plan((("linear",),), ((0,),), (0,), 8, 1, "1f1b", ("none",), ())


def file_with(factory: str) -> PlanFile:
    """A plan whose scenario names this factory."""
    tables: dict[str, Any] = {
        "name": "own", "model": {"factory": factory}, "job": {"global_batch_size": 8}, "cluster": {"kind": "this-machine", "ranks": 1},
    }  # fmt: skip
    return PlanFile(PLAN, parse_scenario(tables, "own.toml"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A plan made here that names a factory."""
    file_with("/jobs/job.py:build").save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_plan_made_here_may_use_its_factory(saved: Path) -> None:
    """What was saved here reads back as made here, also formatted anew, and needs no permission."""
    assert load_plan(saved).made_here and load_plan(saved).allow_factory(False, "plan.json").made_here
    saved.write_text(json.dumps(json.loads(saved.read_text())))
    assert load_plan(saved).made_here


@pytest.mark.parametrize("edit", ["factory", "options", "unsigned", "number", "not-ascii"])
def test_changed_plan_is_foreign(saved: Path, edit: str) -> None:
    """Any other content, or a signature that is missing or no signature at all, makes the plan a foreign one."""
    data = json.loads(saved.read_text())
    if edit == "factory":
        data["scenario"]["model"]["factory"] = "/tmp/other.py:build"
    elif edit == "options":
        data["scenario"]["model"]["options"] = {"path": "x"}
    elif edit == "unsigned":
        del data["signature"]
    elif edit == "number":
        data["plan"]["receives_in_flight"] += 1
    else:
        data["signature"] = "ä" * 64
    saved.write_text(json.dumps(data))
    with pytest.raises(ScenarioError, match=r"not made here .*--allow-factory"):
        load_plan(saved).allow_factory(False, str(saved))
    assert load_plan(saved).allow_factory(True, str(saved)).made_here


def test_plan_of_another_user_is_foreign(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another key folder is another user: the plan is refused there, before and after that user has a key."""
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path / "another"))
    assert not load_plan(saved).made_here
    assert sign({"a": 1}) and not load_plan(saved).made_here


def test_key_that_others_may_read_is_replaced(saved: Path) -> None:
    """The key is the user's alone (0600); once it was not, what it signed is foreign, and the next plan gets a new one."""
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    key_path().chmod(0o644)
    assert not load_plan(saved).made_here
    data = {"plan": 1}
    signature = sign(data)
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600 and signed_here({**data, "signature": signature})
    assert not load_plan(saved).made_here


def test_foreign_plan_is_never_signed(saved: Path, tmp_path: Path) -> None:
    """Reading and writing a foreign plan leaves it foreign; allowing it signs what is written then."""
    data = json.loads(saved.read_text()) | {"signature": "0" * 64}
    saved.write_text(json.dumps(data))
    load_plan(saved).save(tmp_path / "copy.json")
    assert "signature" not in json.loads((tmp_path / "copy.json").read_text())
    load_plan(saved).allow_factory(True, "plan").save(tmp_path / "allowed.json")
    assert load_plan(tmp_path / "allowed.json").made_here


def test_no_place_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no key can be kept plans are written unsigned."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path / "file"))
    assert sign({}) is None
    file_with("/jobs/job.py:build").save(tmp_path / "plan.json")
    assert not load_plan(tmp_path / "plan.json").made_here


def test_built_in_jobs_need_no_permission(tmp_path: Path) -> None:
    """A plan from elsewhere may name a job that comes with the package."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(file_with(BUILTIN_FACTORIES["gpt"]).to_dict()))
    assert not load_plan(path).made_here and load_plan(path).allow_factory(False, "plan.json") == load_plan(path)
