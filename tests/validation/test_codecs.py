"""Throughput with gradient compression: steps by hand, laws, the command and its mistakes."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cli import app
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.codecs import COLUMNS, COPY_S, LATENCY_S, METHODS, CodecRow, check_codecs, codec_step_s, read_codec_rows

ROW = CodecRow("a", "ncf", 2, 1.25e9, "TCP", "mpi", "allreduce", "none", "", False, 120e6, 1.0, 60e6)
names = st.sampled_from(sorted(METHODS))


def run(method: str, **changes: object) -> CodecRow:
    """Two workers of NCF with 30 million gradients, on 10 Gbit/s."""
    gathered = "allreduce" if method in ("none", "randomk", "powersgd") else "allgather"
    return replace(ROW, **{"method": method, "collective": gathered, "parameter": "ratio=0.01"} | changes)


def test_a_step_without_compression_by_hand() -> None:
    """10 tensors of 12 MB: negotiation, copies to the host and back at 6 GB/s, sums at 4 GB/s, 12 MB over the wire in two hops."""
    exchange_s = 2 * LATENCY_S + 2 * COPY_S + 24e6 / 6e9 + 12e6 / 4e9 + 2 * LATENCY_S + 12e6 / 1.25e9
    assert codec_step_s(run("none"), 0.0) == pytest.approx(10 * exchange_s)
    # A long backward pass hides all but the last tensor.
    assert codec_step_s(run("none"), 30.0) == pytest.approx(30.0 + exchange_s)


@given(names, st.floats(1e7, 1e10), st.floats(1.0, 10.0))
def test_more_bandwidth_is_never_slower_and_makes_compression_pay_less(method: str, bandwidth: float, factor: float) -> None:
    """Law: without computation, what sends fewer bytes than none gains less from a faster link."""
    slow, fast = (codec_step_s(run(method, bandwidth_bytes_per_s=rate), 0.0) for rate in (bandwidth, bandwidth * factor))
    none_slow, none_fast = (codec_step_s(run("none", bandwidth_bytes_per_s=rate), 0.0) for rate in (bandwidth, bandwidth * factor))
    assert fast <= slow * (1 + 1e-12)
    assert none_slow - slow >= none_fast - fast - 1e-12


@given(names, st.integers(2, 16))
def test_more_workers_never_make_a_step_shorter(method: str, workers: int) -> None:
    """Law: with powers of two, every hop and every payload more takes time."""
    assert codec_step_s(run(method, workers=workers), 0.1) <= codec_step_s(run(method, workers=workers * 16), 0.1)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """A file of measured runs."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def measured(method: str, throughput: float, workers: int = 8, mode: str = "throughput", **changes: str) -> dict[str, str]:
    """A row of ResNet-50 on 10 Gbit/s."""
    row = {
        "id": method, "model": "resnet50", "n_workers": str(workers), "inter_node_gbps": "10", "transport": "TCP", "backend": "mpi",
        "comm_method": "allreduce" if method == "none" else "allgather", "method": method, "method_param": "", "error_feedback": "0",
        "grad_mb_uncompressed": "102.2", "throughput_per_s": str(throughput), "sent_mb_per_step": "", "mode": mode,
    }  # fmt: skip
    return row | changes


def test_command_tells_ranks_and_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight runs make a group; a method nobody knows, a byte count that is missing and a broken baseline are told."""
    known = ["signsgd", "onebit", "natural", "8bit", "efsignsgd", "terngrad", "sketch"]
    rows = [measured("none", 400.0, 1), measured("none", 2000.0), *(measured(name, 1500.0 - i) for i, name in enumerate(known))]
    rows += [measured("zip", 1.0), measured("adaq", 1.0), measured("none", 1.0, model="vgg19"), measured("none", 1.0, model="x")]
    rows += [measured("none", 1.0, mode="accuracy"), measured("signsgd", 1.0, inter_node_gbps="25")]
    path = write(tmp_path / "rows.csv", rows)
    output = tmp_path / "out.csv"
    app(["validate", "codecs", str(path), "-o", str(output), "--json"], exit_on_error=False, result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    (group,) = told["groups"]
    assert (group["model"], group["rows"], told["predicted_rows"]) == ("resnet50", 8, 8)
    assert told["median_spearman"] == group["spearman"] > 0.5
    assert sorted(told["unused"].values()) == [1] * 6
    lines = output.read_text().splitlines()
    assert len(lines) == 9 and lines[1].startswith("none,") and lines[1].endswith(",1,1")
    app(["validate", "codecs", str(path)], exit_on_error=False, result_action="return_value")
    assert "Spearman" in capsys.readouterr().out


def test_bytes_are_those_that_the_benchmark_counted(tmp_path: Path) -> None:
    """A row of mode data-volume gives its bytes to the runs of the same model, method and parameter."""
    path = write(tmp_path / "rows.csv", [measured("adaq", 5.0), measured("adaq", 0.0, mode="data-volume", sent_mb_per_step="2.5")])
    (row,), unused = read_codec_rows(path)
    assert row.sent_bytes == 2.5e6 and unused == {"mode data-volume": 1}


@pytest.mark.parametrize("change", [{"throughput_per_s": "fast"}, {"inter_node_gbps": "-1"}, {"n_workers": "0"}, {"inter_node_gbps": ""}])
def test_wrong_files_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    """The file and what it lacks are named."""
    with pytest.raises(ScenarioError, match=r"rows\.csv: cannot be read"):
        check_codecs(write(tmp_path / "rows.csv", [measured("none", 1.0, **change)]))
    with pytest.raises(ScenarioError, match="no row of mode throughput"):
        check_codecs(write(tmp_path / "rows.csv", [measured("none", 1.0, mode="accuracy")]))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ScenarioError, match="give columns id, model"):
        check_codecs(tmp_path / "rows.csv")
