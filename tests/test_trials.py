"""Trials on emulated links: which plans of a scenario are run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chinchilla_sim import trials

ROOT = Path(__file__).parent.parent


def test_choices_are_of_any_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scenario that keeps to two replicas is asked for its first plans of any split; the regret is that of the first."""
    monkeypatch.setenv("CHINCHILLA_CALIBRATION", str(ROOT / "tests" / "data" / "calibration.json"))
    monkeypatch.setenv("CHINCHILLA_CACHE", str(tmp_path))
    measured = iter([0.3, 0.2, 0.4])

    def run(setting: Any, candidate: Any, steps: int) -> tuple[Any, int]:
        return SimpleNamespace(step_s=(next(measured),)), 1

    monkeypatch.setattr(trials, "_run", run)
    choice = trials.run_choices(ROOT / "scenarios" / "testbed" / "mlp-dp2-1gbit.toml", 25, 3)
    assert len(set(choice.plans)) == len(choice.plans) >= 2
    assert {"stages" in plan for plan in choice.plans} == {True, False}
    assert list(choice.simulated_s) == sorted(choice.simulated_s)
    assert choice.regret == pytest.approx(0.5)
