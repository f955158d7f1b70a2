"""Small scenarios as tables, and what is wrong with a scenario."""

from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.load import parse_scenario

Tables = dict[str, Any]
PEAK = {"peak": "10 Tflop/s", "memory": "16 GiB"}
SERVING = {"kind": "inference", "global_batch_size": 8, "arrival_rate": "90 requests/min"}


def tables(**changes: Any) -> Tables:
    """The smallest scenario, with whole tables replaced."""
    smallest = {
        "name": "test",
        "model": {"builtin": "mnist_mlp"},
        "job": {"global_batch_size": 128},
        "cluster": {"kind": "this-machine"},
    }
    return {**smallest, **changes}


def two_nodes(**changes: Any) -> Tables:
    """A cluster of two joined nodes, with keys replaced; None takes a key away."""
    cluster = {
        "nodes": [{"name": "big", **PEAK}, {"name": "small", **PEAK}],
        "network": {"bandwidth": "10 Gbit/s", "latency": "50 us"},
        **changes,
    }
    return {key: value for key, value in cluster.items() if value is not None}


def mistakes_of(data: Tables) -> list[str]:
    """What is wrong with a scenario, one line per mistake, without the file."""
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(data, "test.toml")
    return [str(mistake) for mistake in caught.value.mistakes]
