"""The shape of a whole scenario: defaults, base units, and the schema for editors."""

import json

import pytest

from chinchilla_sim.scenario.load import json_schema, parse_scenario
from chinchilla_sim.scenario.schema import Scenario
from tests.scenario.tables import PEAK, mistakes_of, tables, two_nodes


def test_smallest_scenario_has_the_documented_defaults() -> None:
    """Model, batch size and cluster are enough."""
    scenario = parse_scenario(tables(), "test.toml")
    assert (scenario.model.kind, scenario.model.options, scenario.question) == ("builtin", {}, "")
    assert (scenario.job.kind, scenario.job.epochs, scenario.job.steps) == ("training", 1, None)
    assert (scenario.job.optimizer, scenario.job.learning_rate, scenario.job.precision) == ("adam", 1e-3, "fp32")
    assert (scenario.cluster.ranks, scenario.cluster.node_names()) == (None, ())
    assert (scenario.search.objective, scenario.search.schedules, scenario.search.runner_ups) == ("step_time", ("gpipe", "1f1b"), 5)
    assert scenario.search.gradient_codecs == scenario.search.activation_codecs == ("none",)


def test_quantities_are_floats_in_base_units() -> None:
    """A unit in the file becomes a suffix of the attribute."""
    node = {"name": "big", **PEAK, "memory_bandwidth": "50 GB/s", "price": "1.8 USD/h", "power": "300 W"}
    intra_node = {"bandwidth": "300 GB/s", "latency": "5 us"}
    data = tables(cluster=two_nodes(nodes=[node, {"name": "small", **PEAK}], intra_node=intra_node, grid_intensity="360 g/kWh"))
    cluster = parse_scenario(data, "test.toml").cluster
    big = cluster.nodes[0]
    assert (big.peak_flop_per_s, big.memory_bytes, big.memory_bandwidth_bytes_per_s) == (1e13, 2.0**34, 5e10)
    assert (big.price_usd_per_s, big.power_watt, cluster.grid_intensity_kg_per_joule) == (0.0005, 300, 1e-7)
    assert (cluster.network.bandwidth_bytes_per_s, cluster.network.latency_s) == (1.25e9, 50e-6)
    assert cluster.intra_node is not None
    assert (cluster.intra_node.bandwidth_bytes_per_s, cluster.intra_node.latency_s) == (3e11, 5e-6)


def test_values_are_frozen() -> None:
    """A scenario cannot change after it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        parse_scenario(tables(), "x").job.seed = 1


def test_missing_tables_are_named() -> None:
    """An empty scenario says which tables to write."""
    assert mistakes_of({}) == [f"{name}: is missing; write a table [{name}]" for name in ("model", "job", "cluster")]


def test_json_schema_helps_editors_to_complete() -> None:
    """A quantity is a string with examples and units; no key is without a description; TOML has no null."""
    schema = json_schema()
    link = schema["$defs"]["LinkSpec"]["properties"]["bandwidth"]
    assert (link["type"], link["examples"]) == ("string", ["10 Gbit/s"])
    assert "B/s" in link["description"] and "Gbit/s" in link["description"]
    for table in [schema, *schema["$defs"].values()]:
        assert [key for key, value in table["properties"].items() if not value.get("description")] == []
    assert "null" not in json.dumps(schema)


def test_schema_documents_an_example_for_every_plain_key() -> None:
    """Cures are made of examples, and every example is one that the key accepts."""
    good = json_schema()["$defs"]
    for title in ("ModelSpec", "JobSpec", "NodeSpec", "NetworkSpec", "LinkSpec", "SearchSpec"):
        assert [key for key, value in good[title]["properties"].items() if "examples" not in value] == []
    job = {key: value["examples"][0] for key, value in good["JobSpec"]["properties"].items()}
    search = {key: value["examples"][0] for key, value in good["SearchSpec"]["properties"].items()}
    del job["concurrency"]  # the other way in which requests come
    del job["target_loss"]  # the other way to state a target
    search["stage_replicas"] = "equal"  # "free" is not for the requests that the job's example states
    assert isinstance(parse_scenario(tables(job={**job, "optimizer": "sgd", "kind": "inference"}, search=search), "x"), Scenario)
