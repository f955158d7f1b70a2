"""The doctor: every check tells what is, and what would fail with its cure."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from chinchilla_sim import doctor
from chinchilla_sim.cluster.calibration import cache_path, describe_machine
from chinchilla_sim.doctor import CHECKS, examine
from chinchilla_sim.planner.signature import key_path, sign
from chinchilla_sim.report.tables.findings import Finding, is_ready
from tests.test_cli import chinchilla


def test_the_command_tells_everything_and_is_ready_here(tmp_path: Path) -> None:
    """Table and JSON name every check; on this machine jobs can run: exit 0."""
    told = chinchilla("doctor", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    found = json.loads(told.stdout)
    names = {finding["name"] for finding in found["findings"]}
    assert found["ready"] and {"torch", "backends", "calibration", "testbed", "signing key", "extra onnx"} <= names
    assert all(finding["cure"] for finding in found["findings"] if finding["state"] in ("failed", "warning", "missing"))
    assert len(found["findings"]) >= len(CHECKS)
    table = chinchilla("doctor", cwd=tmp_path).stdout
    assert all(name in table for name in names)


def test_a_machine_that_cannot_run_jobs_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gloo, or no loopback: failed, with the cure, and not ready; a check that breaks is told, and the others go on."""
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    assert doctor.check_backends().state == "failed" and "gloo" in doctor.check_backends().cure

    def refuse(*_: object) -> None:
        raise PermissionError("no sockets here")

    monkeypatch.setattr("chinchilla_sim.doctor.socket.create_server", refuse)
    assert doctor.check_loopback() == Finding(
        "loopback", "failed", "no ports on 127.0.0.1: no sockets here", "bring the interface lo up, or allow sockets on it"
    )

    def check_broken() -> Finding:
        raise ValueError("cannot count")

    monkeypatch.setattr(doctor, "CHECKS", (check_broken, doctor.check_python))
    broken, python = examine()
    assert (broken.name, broken.state) == ("broken", "failed") and "cannot count" in broken.found and python.state == "ok"
    assert not is_ready([broken, python])


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        (lambda data: None, "ok", "0 days old"),
        (lambda data: data.update(date=(date.today() - timedelta(days=200)).isoformat()), "warning", "200 days old"),
        (lambda data: data.update(other_cores=0.9), "warning", "other programs kept 0.90 cores busy"),
        (lambda data: data["key"].update(cpu="another"), "warning", "of another machine (another"),
        (lambda data: data.update(format="x"), "warning", "cannot be read"),
    ],
    ids=["good", "old", "busy", "foreign", "damaged"],
)
def test_calibrations_are_judged(
    change: Callable[[dict[str, object]], None], state: str, words: str, monkeypatch: pytest.MonkeyPatch, stored_calibration: Path
) -> None:
    """Of this machine, of today and measured in peace: ok; else what is wrong and to calibrate again."""
    from dataclasses import asdict
    from importlib.metadata import version

    monkeypatch.delenv("CHINCHILLA_CALIBRATION")
    assert doctor.check_calibration().state == "warning" and "chinchilla calibrate" in doctor.check_calibration().cure
    key = describe_machine(version("torch"))
    data = json.loads(stored_calibration.read_text()) | {"date": date.today().isoformat(), "key": asdict(key)}
    data["devices"][str(key.cores)] = data["devices"]["2"]
    change(data)
    path = cache_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    found = doctor.check_calibration()
    assert found.state == state and words in found.found, found
    assert bool(found.cure) == (state != "ok")


def test_a_key_that_others_can_read_is_a_warning() -> None:
    """None yet, private, and readable by others."""
    assert "none yet" in doctor.check_signing_key().found
    assert sign({"a": 1})
    assert doctor.check_signing_key().state == "ok"
    key_path().chmod(0o644)
    assert doctor.check_signing_key().state == "warning" and "chmod 600" in doctor.check_signing_key().cure
