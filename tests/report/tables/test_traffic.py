"""Tables of who talks to whom, and the tree that the cluster is drawn as."""

import json
from dataclasses import replace

import pytest

from chinchilla_sim.report.drawing.cluster_figure import draw_cluster
from chinchilla_sim.report.drawing.cluster_tree import MOST_ROWS, ClusterTree
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.tables.traffic import links_table, traffic_dict, traffic_table
from chinchilla_sim.units import format_bytes, format_seconds
from tests.report.cells import MakeStudy, column_of


def tree_of(study: Study) -> ClusterTree:
    """The tree of the chosen plan."""
    return ClusterTree(study.cluster, study.plan, study.traffic, study.search.best.step_s)


def test_table_tells_what_goes_where(pipeline: Study) -> None:
    """Two stages on two nodes: activations there, gradients back, both leave the node; the sums are those of the simulation."""
    table = traffic_table(pipeline)
    assert table
    assert [row[:4] for row in table.rows] == [("activations", "0", "1", "1"), ("gradients of activations", "1", "0", "1")]
    assert set(column_of(table, "between nodes")) == {"100.0 %"}
    timeline = pipeline.search.best.timeline
    assert column_of(table, "all") == [format_bytes(timeline.sent_bytes(rank)) for rank in (0, 1)]


def test_links_are_told_with_the_time_that_they_are_busy(pipeline: Study) -> None:
    """Both uplinks carry as many bytes each way, at 10 Gbit/s: one row for all four directions."""
    table = links_table(pipeline)
    assert table
    (row,) = table.rows
    assert row[0] == "switch to node-0 (4 links)"
    size = pipeline.search.best.timeline.sent_bytes(0)
    assert row[1] == format_bytes(float(f"{size:.2e}")) and row[3] == format_seconds(float(f"{size:.2e}") / 1.25e9)


def test_one_rank_talks_to_nobody(make_study: MakeStudy) -> None:
    """No table, but the cluster is still drawn with the node that idles."""
    alone = make_study(search__data_parallel_degrees=[1], search__pipeline_parallel_degrees=[1])
    assert traffic_table(alone) is None and links_table(alone) is None
    assert "idle" in draw_cluster(alone).description


def test_equal_nodes_share_a_row(racks: Study) -> None:
    """64 devices in 32 nodes and four racks are at most MOST_ROWS rows, which together hold every device once."""
    rows = tree_of(racks).branches().rows()
    assert len(rows) <= MOST_ROWS
    slots = sorted(slot for branch in rows for slots in branch.slots for slot in slots)
    assert slots == list(range(racks.cluster.rank_count))
    vertices = [vertex for branch in rows for vertex in branch.vertices]
    assert len(vertices) == len(set(vertices)) == 32 + 4 + 1


def test_many_stages_that_talk_alike_share_a_row_of_the_table(racks: Study) -> None:
    """The bytes of all rows are those of all flows."""
    table = traffic_table(racks)
    assert table and len(table.rows) < 4 * racks.plan.stage_count
    told = json.loads(json.dumps(traffic_dict(racks)))["traffic"]
    assert sum(row["bytes"] for row in told) == pytest.approx(sum(flow.bytes for flow in racks.traffic.flows))
    assert sum(int(cell) for cell in column_of(table, "pairs of devices")) == sum(row["pairs"] for row in told)


def test_load_of_a_link_is_what_its_node_sends(pipeline: Study) -> None:
    """Out of the first node go its activations, in come gradients; the share is time at full speed over the step."""
    tree, timeline = tree_of(pipeline), pipeline.search.best.timeline
    load = tree.load("node-0")
    assert (load.out_bytes, load.in_bytes) == (timeline.sent_bytes(0), timeline.sent_bytes(1))
    assert load.busy_share == pytest.approx(max(load.out_bytes, load.in_bytes) / 1.25e9 / timeline.step_s)


@pytest.mark.parametrize("topology", ["ring", "full-mesh", "bus", "switch"])
def test_any_network_can_be_drawn(make_study: MakeStudy, topology: str) -> None:
    """A network that is no tree stands in the middle; every node has a row or shares one."""
    study = make_study(cluster__nodes__0__count=4, cluster__network__topology=topology, search__minimum_ranks=4)
    rows = tree_of(study).branches().rows()
    assert sum(len(branch.vertices) for branch in rows if branch.slots[0]) == 4
    drawing = draw_cluster(study)
    assert drawing.svg() == draw_cluster(study).svg() and "node-0" in drawing.description


def test_names_are_cut_to_their_column(make_study: MakeStudy) -> None:
    """A node with a long name does not run into its devices; the text alternative has the whole name."""
    study = make_study(cluster__nodes__0__name="n" * 60, search__minimum_ranks=2)
    drawing = draw_cluster(replace(study))
    assert "n" * 60 in drawing.description and "n" * 40 not in drawing.svg().replace(drawing.description, "")
