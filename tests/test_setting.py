"""Scenarios on this machine: which calibration and which measured times they are prepared with."""

import json

import pytest

from chinchilla_sim import setting
from chinchilla_sim.graph.profile import Profile, TaskTime
from chinchilla_sim.planner.pricing.task_seconds import TaskSeconds
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.setting import build_graph, prepare, profile_path


def scenario(share: float, count: int = 2) -> setting.Scenario:
    """The article's network over emulated nodes."""
    nodes = [{"name": "n", "count": count, "device": "this-machine", "cpu_share": share}]
    network = {"bandwidth": "200 Mbit/s", "latency": "1 ms", "backend": "gloo"}
    model, job = {"builtin": "mnist_mlp"}, {"global_batch_size": 64}
    return parse_scenario({"name": "t", "model": model, "job": job, "cluster": {"nodes": nodes, "network": network}}, "t.toml")


def test_emulated_nodes_are_calibrated() -> None:
    """The stored calibration of this machine holds for nodes that it emulates."""
    prepared = prepare(scenario(0.5))
    assert prepared.calibration is not None and prepared.hashes["calibration"] == prepared.calibration.digest
    assert prepared.cluster.devices[0].flop_per_s == prepared.calibration.devices[1].flop_per_s * 0.5


def test_too_many_shares_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of more than 0.8 of the cores leave too little for the links: a note, not an error."""
    monkeypatch.setattr(setting, "core_count", lambda: 2)
    assert prepare(scenario(0.8)).notes == ()
    (note,) = prepare(scenario(0.9)).notes
    assert "ask for 1.8 of 2 cores" in note and "below 1.6" in note


def test_measured_times_of_whole_cores_are_stretched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `chinchilla calibrate SCENARIO` measured with as many busy ranks counts, four times as long on a quarter of a core."""
    quarter = scenario(0.25)
    graph, _ = build_graph(quarter)
    names = [task.name for task in graph.compute_tasks]
    times = tuple(TaskTime(name, 64, float(busy), 2.0 * busy, busy_ranks=busy) for name in names for busy in (1, 2))
    path = profile_path(graph)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(Profile(times).to_dict()))
    prepared = prepare(quarter)
    assert {row.busy_ranks for row in prepared.profile.times} == {0} and len(prepared.profile.times) == len(names)
    seconds = TaskSeconds(64, prepared.profile).of_kernel(graph.compute_tasks[0], 64, prepared.cluster.devices[0], 2)
    assert seconds == (4.0, 8.0)
