"""Measured collectives: thinned tables by hand, both kinds of files, and their mistakes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cli import app
from chinchilla_sim.cost.collective import interpolate_s
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.collectives import Series, check_collectives, left_out_error, read_collectives, thin

BEND = tuple((float(2**e), 10.0 + max(0.0, 2.0**e - 64.0)) for e in range(12))
"""10 s up to 64 B, from there a second more for each byte."""

NODE = "op_name,num_gpus,message_size_elems_fp16,latency_ms\n"
MANY = "device,version,nodes,gpus_per_node,n_gpus,op,size_bytes,time_us\n"


def test_three_rows_tell_a_bend() -> None:
    """Constant, then a line: where it bends, and its end, say all; on sizes left out only the bend itself is missed."""
    assert thin(BEND, 2) == (BEND[6], BEND[-1])
    assert all(interpolate_s(thin(BEND, 2), size) == seconds for size, seconds in BEND)
    assert left_out_error(BEND, 3) == pytest.approx(sum((32 / 10, 0.0)) / 12, abs=0.3)


@given(st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(0.1, 10.0)), min_size=1, max_size=9), st.integers(2, 6))
def test_thinned_rows_are_some_of_the_table_and_never_fall(steps: list[tuple[float, float]], count: int) -> None:
    """However noisy the table: its own rows, the last among them, by bytes and by seconds."""
    table = tuple((sum(size for size, _ in steps[: index + 1]), seconds) for index, (_, seconds) in enumerate(steps))
    rows = thin(table, count)
    assert set(rows) <= set(table) and rows[-1] == table[-1] and len(rows) <= max(count, 2)
    assert list(rows) == sorted(rows)
    if len(table) > 2:
        assert [s for _, s in rows] == sorted(s for _, s in rows)


def test_sizes_are_those_of_nccl_tests(tmp_path: Path) -> None:
    """256 elements of 2 bytes: the whole result of an all-gather, of which each of 4 ranks gives a quarter."""
    path = tmp_path / "node.csv"
    path.write_text(NODE + "all_gather,4,256,0.01\nall_reduce,4,256,0.02\n")
    found, unused = read_collectives(path, "a100-sxm-80gb")
    gather, reduce = (Series("a100-sxm-80gb", "", kind, 1, 4) for kind in ("all_gather", "all_reduce"))
    assert found == {gather: {128.0: pytest.approx(1e-5)}, reduce: {512.0: pytest.approx(2e-5)}}
    assert not unused


def test_several_nodes_need_a_network(tmp_path: Path) -> None:
    """4 GB over two nodes of two at 1 GB/s: 1.5 times the bytes; without the network the row is not predicted, and says why."""
    path = tmp_path / "nodes.csv"
    path.write_text(MANY + "V100,,2,2,4,all_reduce,4e9,6e6\nV100,,1,8,8,p2p,1,1\nabacus,,1,8,8,all_reduce,1,1\nV100,,1,8,8,all_reduce,,1\n")
    result = check_collectives(path)
    assert {line.simulated_error for line in result.lines} == {None}
    assert sorted(result.unused.values()) == [1, 1, 1, 1]
    simulated = [line.simulated_error for line in check_collectives(path, network_bytes_per_s=1e9).lines]
    assert simulated == [pytest.approx(0.0, abs=1e-4), None]


def test_command_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One shipped row through the command; wrong files are refused."""
    path = tmp_path / "table.csv"
    path.write_text(NODE + "all_reduce,8,268435456,4.2259\n")
    app(["validate", "collectives", str(path), "--json"], exit_on_error=False, result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert told["lines"][0]["kind"] == "all_reduce" and told["mean"]["simulated_error"] == pytest.approx(0.0, abs=1e-6)
    app(["validate", "collectives", str(path)], exit_on_error=False, result_action="return_value")
    assert "all_reduce" in capsys.readouterr().out
    for text in (
        "",
        "a,b\n1,2\n",
        NODE,
        NODE + "all_reduce,8,x,1\n",
        NODE + "all_reduce,1,8,1\n",
        NODE + "all_reduce,8,-8,1\n",
        NODE + "x,8,8,1\n",
    ):
        path.write_text(text)
        with pytest.raises(ScenarioError, match=r"table\.csv"):
            check_collectives(path)
    with pytest.raises(ScenarioError, match="--network"):
        app(["validate", "collectives", str(path), "--network", "fast"], exit_on_error=False, result_action="return_value")
    with pytest.raises(ScenarioError, match="not in the catalogue"):
        check_collectives(path, "a101")
