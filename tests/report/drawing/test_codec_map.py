"""The map of codecs: table, JSON and SVG of the same cells, through the command."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chinchilla_sim.cli import app
from chinchilla_sim.cli.codecs import default_batches
from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.explanation.codec_map import CodecCell, CodecMap
from chinchilla_sim.report.drawing.codec_map import CODEC_COLOR, LETTER, codec_map_svg, codec_map_table

SCENARIO = Path(__file__).parents[3] / "scenarios" / "mnist_mlp.toml"
MAP = CodecMap(
    "test",
    (1e8, 1e9),
    (8, 16),
    (
        (CodecCell(1e8, 8, {"none": 3.0, "top-k": 1.0}), CodecCell(1e9, 8, {"none": 1.0, "top-k": 1.0})),
        (CodecCell(1e8, 16, {"top-k": 1.0}), CodecCell(1e9, 16, {})),
    ),
)


def run(*arguments: str) -> None:
    """The command, raising its mistakes."""
    app(["codecs", *arguments], exit_on_error=False, result_action="return_value")


def test_cells_by_hand() -> None:
    """Winner and factor; no factor for none, and where none does not fit; a dash where nothing fits."""
    assert codec_map_table(MAP).rows == (("8", "top-k 3x", "none"), ("16", "top-k", "-"))


def test_every_codec_has_its_own_colour_and_letter() -> None:
    """Whoever sees no colours reads letters."""
    assert set(CODEC_COLOR) == set(CODECS)
    assert len(set(CODEC_COLOR.values())) == len(set(LETTER.values())) == len(CODECS)


def test_map_is_stable_and_tells_itself() -> None:
    """The same cells give the same bytes; title and description hold what the picture shows, cells hold letters."""
    svg = codec_map_svg(MAP)
    assert svg == codec_map_svg(MAP)
    root = ElementTree.fromstring(svg)
    words = {element.tag.rpartition("}")[2]: element.text or "" for element in root[:2]}
    assert words["title"] == "test: fastest codec of gradients by bandwidth and batch"
    assert "batch 8: 800 Mbit/s top-k 3x" in words["desc"]
    assert "T 3x" in svg and "currentColor" in svg and CODEC_COLOR["top-k"] in svg


def test_command_writes_table_json_and_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two bandwidths and two batches of the article's network on two ranks; compression pays over the slow one only."""
    output = tmp_path / "map"
    run(str(SCENARIO), "--bandwidths", "10 Mbit/s, 1000 Gbit/s", "--batches", "64,32", "-o", str(output))
    shown = capsys.readouterr().out
    assert "1000 Gbit/s" in shown or "1.00 Tbit/s" in shown
    written = json.loads((output / "codecs.json").read_text())
    assert [(cell["global_batch_size"], cell["bandwidth_bytes_per_s"]) for cell in written["cells"]] == [
        (32, 1.25e6), (32, 1.25e11), (64, 1.25e6), (64, 1.25e11),
    ]  # fmt: skip
    assert [cell["winner"] == "none" for cell in written["cells"]] == [False, True] * 2
    assert (output / "codecs.svg").read_text().startswith("<svg")
    run(str(SCENARIO), "--bandwidths", "10 Mbit/s", "--batches", "32", "--json")
    assert json.loads(capsys.readouterr().out)["cells"] == written["cells"][:1]


def test_mistakes_are_named() -> None:
    """Options, and scenarios that exchange no gradients."""
    for arguments, mistake in (
        (("--bandwidths", "fast"), "--bandwidths"),
        (("--bandwidths", "0 Mbit/s"), "--bandwidths"),
        (("--batches", "32,x"), "--batches: 'x' is no number of samples"),
        (("--set", "job.kind=inference"), r"job\.kind: inference exchanges no gradients"),
    ):
        with pytest.raises(ScenarioError, match=mistake):
            run(str(SCENARIO), *arguments)
    assert default_batches(6) == [3, 6, 12, 24, 48]
