"""The shape of a scenario: defaults, base units, and the rules of each table."""

import json
from typing import Any, get_args

import pytest

from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.load import json_schema, parse_scenario
from chinchilla_sim.scenario.schema import Codec, Scenario

Tables = dict[str, Any]
PEAK = {"peak": "10 Tflop/s", "memory": "16 GiB"}


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


def test_equal_nodes_are_numbered() -> None:
    """A count above one appends -0, -1, ... to the name."""
    nodes = [{"name": "big", "count": 2, **PEAK}, {"name": "small", "device": "a100"}]
    assert parse_scenario(tables(cluster=two_nodes(nodes=nodes)), "x").cluster.node_names() == ("big-0", "big-1", "small")


def test_values_are_frozen() -> None:
    """A scenario cannot change after it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        parse_scenario(tables(), "x").job.seed = 1


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"builtin": "mnist_mlp", "options": {"widths": [784, 10]}, "weights": "/w.pt"}, "builtin"),
        ({"factory": "package.module:build", "options": {"depth": 2}}, "factory"),
        ({"factory": "/some where/net.py:build"}, "factory"),
        ({"formula": "mlp", "widths": [784, 10]}, "formula"),
        ({"formula": "chain", "task_count": 8, "parameter_count": 100, "work": "1e10 flop", "output": "4 MB"}, "formula"),
        ({"graph": "/graph.json", "format": "chinchilla"}, "graph"),
        ({"formula": "mlp", "widths": [784, 10], "compression": {"prune": 0.5, "quantize": "bf16"}}, "formula"),
    ],
)
def test_each_way_to_give_a_model_is_accepted_and_survives_to_dict(model: Tables, kind: str) -> None:
    """builtin, factory, both formulas and graph: `kind` says which."""
    scenario = parse_scenario(tables(model=model), "x")
    assert scenario.model.kind == kind
    assert parse_scenario(json.loads(json.dumps(scenario.to_dict())), "plan.json") == scenario


@pytest.mark.parametrize(
    ("model", "mistake"),
    [
        ({}, "model: names no model; write exactly one of builtin, factory, formula, graph"),
        (
            {"builtin": "mnist_mlp", "factory": "a:b"},
            "model: names 2 models: builtin, factory; write exactly one of builtin, factory, formula, graph",
        ),
        ({"builtin": "mnist_mlp", "widths": [1, 2]}, 'model.widths: does not belong to builtin; leave it out; it is for formula "mlp"'),
        (
            {"formula": "mlp", "widths": [1, 2], "weights": "w"},
            'model.weights: does not belong to formula "mlp"; leave it out; it is for builtin or factory',
        ),
        ({"formula": "mlp"}, 'model.widths: is missing for formula "mlp"; write for example widths = [784, 512, 10]'),
        ({"formula": "mlp", "widths": [1]}, "model.widths: needs at least 2 entries, has 1; write for example widths = [784, 512, 10]"),
        (
            {"formula": "formula"},
            'model.formula: must be "mlp", "chain", "alexnet", "bert", "gpt", "inception_v3", "llama", "mixture_of_experts", "mpt", '
            '"resnet", "t5", "transformer_xl", "vgg16" or "vit", not "formula"',
        ),
        ({"graph": "g.json"}, 'model.format: is missing for graph; write for example format = "chinchilla"'),
        (
            {"factory": "net.py"},
            'model.factory: "net.py" does not name a function; write "package.module:function" or "path/to/file.py:function"',
        ),
    ],
)
def test_a_wrong_model_is_refused_with_a_cure(model: Tables, mistake: str) -> None:
    """Exactly one kind, all that it needs, and nothing that belongs to another."""
    assert mistakes_of(tables(model=model)) == [mistake]


@pytest.mark.parametrize(
    ("compression", "mistake"),
    [
        ({"quantize": "int8"}, "model.compression.quantize: is 'int8', but integer weights have no gradient and cannot be trained; "
         'write job.kind = "inference", or quantize = "bf16"'),
        ({"quantize": "int3"}, 'model.compression.quantize: must be "bf16", "int8" or "int4", not "int3"'),
        ({"prune": 1.0}, "model.compression.prune: must be less than 1, not 1.0"),
    ],
)  # fmt: skip
def test_a_wrong_compression_is_refused_with_a_cure(compression: Tables, mistake: str) -> None:
    """Integer weights cannot be trained, and nothing can be pruned whole."""
    (found,) = mistakes_of(tables(model={"builtin": "mnist_mlp", "compression": compression}))
    assert found.startswith(mistake)


def test_a_chain_names_everything_that_it_misses() -> None:
    """Four keys make a chain, and each missing one is its own mistake."""
    assert [line.split(":")[0] for line in mistakes_of(tables(model={"formula": "chain"}))] == [
        "model.task_count",
        "model.parameter_count",
        "model.work",
        "model.output",
    ]


def test_options_hold_only_what_json_can_hold() -> None:
    """plan.json embeds the scenario: nan has no place there, however deep."""
    lines = mistakes_of(tables(model={"builtin": "mnist_mlp", "options": {"a": [{"b": float("nan")}]}}))
    assert [line.split(";")[0] for line in lines] == ["model.options.a.0.b: NaN cannot be stored in plan.json"]


LINK = {"bandwidth": "1 Gbit/s", "latency": "10 us"}


@pytest.mark.parametrize(
    ("cluster", "mistake"),
    [
        ({}, 'cluster: has no nodes; add [[cluster.nodes]], or write kind = "this-machine"'),
        ({"kind": "this-machine", "switches": ["s"]}, "cluster.switches: does not belong to this-machine; leave it out; it is for nodes"),
        (two_nodes(ranks=2), "cluster.ranks: does not belong to nodes; leave it out; it is for this-machine"),
        (
            two_nodes(network={"latency": "50 us"}),
            'cluster.network.bandwidth: is missing for more than one node; write for example bandwidth = "10 Gbit/s"',
        ),
        (
            two_nodes(intra_node={"bandwidth": "10 GB/s"}),
            'cluster.intra_node.latency: is missing; write for example latency = "5 us"',
        ),
        (
            two_nodes(links=[{"between": ["big", "small"], "latency": "10 us"}]),
            'cluster.links.0.bandwidth: is missing; write for example bandwidth = "10 Gbit/s"',
        ),
        (
            two_nodes(network={"topology": "links", "link": "wifi-6"}, links=[{"between": ["big", "small"], "link": "5g"}]),
            'cluster.network.link: is not used by topology "links"; leave it out, or choose another topology',
        ),
        (
            two_nodes(network={"bandwidth": "10", "latency": "50 us"}),
            'cluster.network.bandwidth: "10" has no unit; write for example "10 Gbit/s"',
        ),
        (
            two_nodes(network={"topology": "links"}),
            'cluster.links: is missing for topology "links"; add [[cluster.links]], or choose another topology',
        ),
        (
            two_nodes(nodes=[{"name": "a", "count": 2, **PEAK}, {"name": "a-1", **PEAK}]),
            'cluster.nodes.1.name: "a-1" is already given by cluster.nodes.0.name; give each its own name',
        ),
        (
            two_nodes(switches=["small"]),
            'cluster.switches.0: "small" is already given by cluster.nodes.1.name; give each its own name',
        ),
        (
            two_nodes(nodes=[{"name": "a", "peak": "1 Tflop/s"}]),
            'cluster.nodes.0.memory: is missing for a node with peak; write for example memory = "16 GiB"',
        ),
        (
            two_nodes(nodes=[{"name": "a", "device": "a100", "peak": "1 Tflop/s"}]),
            "cluster.nodes.0.peak: is given twice, here and by device; leave out device or peak",
        ),
        (
            two_nodes(links=[{"between": ["big", "smal"], **LINK}]),
            "cluster.links.0.between.1: \"smal\" is no node or switch; did you mean 'small'?",
        ),
        (
            two_nodes(links=[{"between": ["big", "big"], **LINK}]),
            'cluster.links.0.between: joins "big" with itself; write two different names',
        ),
        (
            two_nodes(links=[{"between": ["big"], **LINK}]),
            'cluster.links.0.between: needs 2 entries, has 1; write for example between = ["big", "small"]',
        ),
    ],
)
def test_a_wrong_cluster_is_refused_with_a_cure(cluster: Tables, mistake: str) -> None:
    """Each rule of the cluster names its dotted path and what to write."""
    assert mistakes_of(tables(cluster=cluster)) == [mistake]


SPOT = {"spot_price": "0.9 USD/h", "time_between_interruptions": "6 h"}


def test_quotas_and_spot_prices_are_read() -> None:
    """By hand: a quota of 3 of 4 devices, 0.9 USD/h until taken away after 6 h; saving takes 30 s, restarting 5 minutes."""
    data = tables(
        job={"global_batch_size": 8, "checkpoint": "30 s", "restart": "5 min"},
        cluster=two_nodes(nodes=[{"name": "a", "count": 2, "devices": 2, **PEAK, "quota": 3, **SPOT}]),
    )
    scenario = parse_scenario(data, "x")
    node, job = scenario.cluster.nodes[0], scenario.job
    assert (node.quota, node.spot_price_usd_per_s, node.time_between_interruptions_s) == (3, 0.9 / 3600, 21600.0)
    assert (job.checkpoint_s, job.restart_s, scenario.search.spot) == (30.0, 300.0, "auto")
    assert parse_scenario(json.loads(json.dumps(scenario.to_dict())), "plan.json") == scenario


@pytest.mark.parametrize(
    ("node", "search", "mistakes"),
    [
        (
            {"quota": 5},
            {},
            ["cluster.nodes.0.quota: is 5, more than the 4 devices that the entry lists; write a smaller quota, or leave it out"],
        ),
        ({"quota": 0}, {}, ["cluster.nodes.0.quota: must be at least 1, not 0; write for example quota = 4"]),
        (
            {"quota": 2},
            {"minimum_ranks": 3},
            ["search.minimum_ranks: is 3, but the quotas leave 2 of 4 devices; write at most 2, or raise a quota"],
        ),
        (
            {"spot_price": "1 USD/h"},
            {},
            ["cluster.nodes.0.time_between_interruptions: is missing for a node with spot_price; "
             'write for example time_between_interruptions = "6 h"'],
        ),
        (
            SPOT,
            {"spot": "sometimes"},
            ['search.spot: must be "auto", "always" or "never", not "sometimes"',
             'job.checkpoint: is missing for nodes with a spot price; write for example checkpoint = "30 s"',
             'job.restart: is missing for nodes with a spot price; write for example restart = "5 min"'],
        ),
    ],
)  # fmt: skip
def test_wrong_quotas_and_spot_prices_are_refused_with_a_cure(node: Tables, search: Tables, mistakes: list[str]) -> None:
    """Quotas limit something and leave enough; a spot price comes with all that an interruption costs."""
    cluster = two_nodes(nodes=[{"name": "a", "count": 2, "devices": 2, **PEAK, **node}])
    assert mistakes_of(tables(cluster=cluster, search=search)) == mistakes


def test_links_alone_make_the_topology_links() -> None:
    """Without a bandwidth of the network, only the listed links exist; with one they are extra."""
    links = [{"between": ["big", "core"], **LINK}, {"between": ["small", "core"], **LINK}]
    alone = parse_scenario(tables(cluster=two_nodes(network=None, switches=["core"], links=links)), "x").cluster
    extra = parse_scenario(tables(cluster=two_nodes(switches=["core"], links=links)), "x").cluster
    assert (alone.network.topology, extra.network.topology) == ("links", "switch")
    assert alone.links[0].between == ("big", "core")


def test_a_single_node_needs_no_network() -> None:
    """Nothing joins one node to itself."""
    scenario = parse_scenario(tables(cluster={"nodes": [{"name": "a", "devices": 8, **PEAK}]}), "x")
    assert scenario.cluster.network.bandwidth_bytes_per_s is None


@pytest.mark.parametrize(
    ("search", "mistake"),
    [
        (
            {"minimum_ranks": 4, "maximum_ranks": 2},
            "search.minimum_ranks: is 4, more than maximum_ranks = 2; write a maximum_ranks that is at least minimum_ranks",
        ),
        (
            {"stage_replicas": "free", "schedules": ["zb-h1"]},
            'search.stage_replicas: is "free", but schedules has neither 1f1b nor gpipe; '
            'add one of them, or write stage_replicas = "equal"',
        ),
        (
            {"stage_replicas": "unequal"},
            'search.stage_replicas: must be "equal" or "free", not "unequal"; did you mean \'equal\'?',
        ),
        (
            {"schedules": ["1f1B"]},
            'search.schedules.0: must be "gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb", '
            '"zb-1p", "zb-2p", "zb-v" or "dualpipe-v", not "1f1B"; did you mean \'1f1b\'?',
        ),
        (
            {"gradient_codecs": []},
            'search.gradient_codecs: needs at least 1 entry, has 0; write for example gradient_codecs = ["none", "fp16"]',
        ),
        (
            {"activation_codecs": ["none", "top-k"]},
            'search.activation_codecs.1: "top-k" is for gradients only: what it leaves out is made up for in later steps; '
            "write none, fp16, bf16 or int8 here, and allow it in gradient_codecs",
        ),
        (
            {"microbatch_counts": [1, 0]},
            "search.microbatch_counts.1: must be at least 1, not 0; write for example microbatch_counts = [1, 4]",
        ),
    ],
)
def test_a_wrong_search_is_refused_with_a_cure(search: Tables, mistake: str) -> None:
    """Limits fit together and lists hold known names and counts."""
    assert mistakes_of(tables(search=search)) == [mistake]


@pytest.mark.parametrize(
    ("job", "mistake"),
    [
        ({}, "job.global_batch_size: is missing; write for example global_batch_size = 128"),
        ({"global_batch_size": "64"}, 'job.global_batch_size: must be a whole number, not "64"; write for example global_batch_size = 128'),
        ({"global_batch_size": True}, "job.global_batch_size: must be a whole number, not true; write for example global_batch_size = 128"),
        ({"global_batch_size": 64, "data": 3}, 'job.data: must be a text in quotes, not 3; write for example data = "digits"'),
        (
            {"global_batch_size": 64, "learning_rate": 0},
            "job.learning_rate: must be more than 0, not 0; write for example learning_rate = 0.001",
        ),
        (
            {"global_batch_size": 64, "momentum": 0.9},
            'job.momentum: is not used by optimizer adam; write optimizer = "sgd", or leave momentum out',
        ),
    ],
)
def test_a_wrong_job_says_what_is_expected(job: Tables, mistake: str) -> None:
    """Types are not guessed: a number in quotes is a text, true is no number."""
    assert mistakes_of(tables(job=job)) == [mistake]


def test_every_gradient_codec_can_be_allowed() -> None:
    """The scenario knows the codecs that have prices, each by its name."""
    assert set(get_args(Codec)) == set(CODECS)
    found = parse_scenario(tables(search={"gradient_codecs": sorted(CODECS)}), "x")
    assert found.search.gradient_codecs == tuple(sorted(CODECS))


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
    assert isinstance(parse_scenario(tables(job={**job, "optimizer": "sgd", "kind": "inference"}, search=search), "x"), Scenario)


SERVING = {"kind": "inference", "global_batch_size": 8, "arrival_rate": "90 requests/min"}


def test_a_load_is_a_rate_of_requests() -> None:
    """Requests per second inside, whatever the file counts by; and back to the last bit."""
    scenario = parse_scenario(tables(job=SERVING, search={"objective": "latency", "maximum_latency": "50 ms"}), "x")
    assert (scenario.job.arrivals_per_s, scenario.search.maximum_latency_s) == (1.5, 0.05)
    assert parse_scenario(json.loads(json.dumps(scenario.to_dict())), "plan.json") == scenario


@pytest.mark.parametrize(
    ("job", "search", "mistake"),
    [
        (
            {**SERVING, "kind": "training"},
            {},
            'job.arrival_rate: is for inference; nobody waits for a step of training; write kind = "inference"',
        ),
        ({**SERVING, "arrival_rate": "5"}, {}, 'job.arrival_rate: "5" has no unit; write for example "200 requests/s"'),
        (
            {"global_batch_size": 8},
            {"objective": "latency"},
            'search.objective: is about requests, and job.arrival_rate is missing; write for example arrival_rate = "200 requests/s"',
        ),
        (
            {"global_batch_size": 8},
            {"maximum_latency": "1 ms"},
            'search.maximum_latency: is about requests, and job.arrival_rate is missing; write for example arrival_rate = "200 requests/s"',
        ),
    ],
)
def test_latency_needs_requests_and_requests_need_inference(job: Tables, search: Tables, mistake: str) -> None:
    """Each half without the other is refused with what to write."""
    assert mistakes_of(tables(job=job, search=search)) == [mistake]


def test_limits_of_the_whole_job_need_its_length() -> None:
    """A deadline or budget without steps is a mistake with its cure; a limit per step or sample is none; limits have units."""
    cure = "write job.target_samples = 1000000, or job.steps, or limit one step by search.maximum_step_time"
    assert mistakes_of(tables(search={"deadline": "7 d", "budget": "100 USD"})) == [
        f"search.{key}: is for the whole job, whose steps are not stated; {cure}" for key in ("deadline", "budget")
    ]
    parsed = parse_scenario(tables(search={"maximum_step_time": "1 ms", "maximum_cost_per_sample": "0.001 USD"}), "x").search
    assert (parsed.maximum_step_time_s, parsed.maximum_cost_per_sample_usd, parsed.deadline_s) == (0.001, 0.001, None)
    job = {"global_batch_size": 128, "target_samples": 1000}
    scenario = parse_scenario(tables(job=job, search={"deadline": "7 d", "budget": "100 USD"}), "x")
    assert (scenario.search.deadline_s, scenario.search.budget_usd, scenario.job.total_steps) == (604800, 100, 8)
    assert parse_scenario(scenario.to_dict(), "x") == scenario
    (wrong,) = mistakes_of(tables(job=job, search={"budget": 100}))
    assert wrong.startswith("search.budget: 100 has no unit")
    assert mistakes_of(tables(job=job, search={"deadline": "0 s"})) == [
        'search.deadline: must be more than 0, not "0 s"; write for example "7 d"'
    ]


def test_the_first_of_steps_and_samples_ends_the_job() -> None:
    """Both may be stated; without either only epochs end it."""
    for job, steps in (({"steps": 5}, 5), ({"target_samples": 1280}, 10), ({"steps": 5, "target_samples": 1280}, 5), ({}, None)):
        assert parse_scenario(tables(job={"global_batch_size": 128, **job}), "x").job.total_steps == steps


@pytest.mark.parametrize("shape", [{"graph": "g.txt", "format": "pipedream"}, {"graph": "g.json", "format": "piper"}])
def test_variants_need_shapes(shape: dict[str, str]) -> None:
    """A graph file of times alone cannot be made smaller; one with operands may."""
    (mistake,) = mistakes_of(tables(model=shape, search={"variants": [{"prune": 0.5}]}))
    assert mistake.startswith(f'search.variants: makes smaller variants, but a graph file of format "{shape["format"]}" does not say')
    assert parse_scenario(tables(model=shape, search={"variants": []}), "x").search.variants == ()
    assert len(parse_scenario(tables(model=shape | {"format": "onnx"}, search={"variants": [{"prune": 0.5}]}), "x").search.variants) == 1
