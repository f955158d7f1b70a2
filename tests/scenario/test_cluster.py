"""[cluster]: names, quotas and spot prices, and what is refused."""

import json

import pytest

from chinchilla_sim.scenario.load import parse_scenario
from tests.scenario.tables import PEAK, Tables, mistakes_of, tables, two_nodes


def test_equal_nodes_are_numbered() -> None:
    """A count above one appends -0, -1, ... to the name."""
    nodes = [{"name": "big", "count": 2, **PEAK}, {"name": "small", "device": "a100"}]
    assert parse_scenario(tables(cluster=two_nodes(nodes=nodes)), "x").cluster.node_names() == ("big-0", "big-1", "small")


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
            two_nodes(nodes=[{"name": "a", "device": "a100", "cpu_share": 0.5}]),
            'cluster.nodes.0.cpu_share: is for nodes that are emulated on this machine; leave it out, or write device = "this-machine"',
        ),
        (
            two_nodes(nodes=[{"name": "a", "device": "this-machine", "cpu_share": 1.5}]),
            "cluster.nodes.0.cpu_share: must be at most 1.0, not 1.5; write for example cpu_share = 0.5",
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
