"""What the documentation shows is run or checked: code, commands, keys of scenarios, links and paths."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclopts import MissingArgumentError
from pydantic import BaseModel, ValidationError

from chinchilla_sim.cli import app
from chinchilla_sim.graph.contract import TrainingJob
from chinchilla_sim.scenario.cluster import ClusterSpec, IntraNodeSpec, LinkSpec, NetworkSpec, NodeSpec
from chinchilla_sim.scenario.disturbances import DisturbanceSpec, FailureSpec, LinkChangeSpec, TrafficSpec
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.load import load_scenario
from chinchilla_sim.scenario.model import CompressionSpec, ModelSpec
from chinchilla_sim.scenario.schema import Scenario
from chinchilla_sim.scenario.search import SearchSpec

ROOT = Path(__file__).parents[1]
FILES = [ROOT / name for name in ("README.md", "README.zh-CN.md", "scenarios/README.md", "reports/README.md")]
SMALLEST = {"model": {"builtin": "mnist_mlp"}, "job": {"global_batch_size": 64}, "cluster": {"kind": "this-machine"}}
TABLES: dict[str, type[BaseModel]] = {
    "": Scenario,
    "model": ModelSpec,
    "model.compression": CompressionSpec,
    "job": JobSpec,
    "cluster": ClusterSpec,
    "cluster.nodes": NodeSpec,
    "cluster.network": NetworkSpec,
    "cluster.links": LinkSpec,
    "cluster.intra_node": IntraNodeSpec,
    "search": SearchSpec,
    "disturbances": DisturbanceSpec,
    "disturbances.links": LinkChangeSpec,
    "disturbances.traffic": TrafficSpec,
    "disturbances.failures": FailureSpec,
}
OTHER_PROGRAMS = {"python3", ".venv/bin/pip", ".venv/bin/python", "pip", "git", "cd", "sudo", "flock"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\bS\.toml\b")
NAMED_PATH = re.compile(r"\.?[\w-]+(?:/[\w.*-]+)*\.(?:py|toml|md|json|csv|jsonl|txt)|\.?[\w-]+(?:/[\w.-]+)*/[\w.-]*")

in_every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def blocks(file: Path, language: str) -> list[str]:
    """Code blocks of a language."""
    return [block for name, block in BLOCK.findall(file.read_text()) if name == language]


def inline_code(file: Path) -> list[str]:
    """Code between backticks, outside of blocks; a table's escapes are taken back."""
    return [code.replace("\\|", "|") for code in CODE.findall(BLOCK.sub("", file.read_text()))]


@in_every_file
def test_every_block_says_its_language(file: Path) -> None:
    """Blocks are python, toml or sh, which are checked here, or plain output."""
    text = file.read_text()
    assert {name for name, _ in BLOCK.findall(text)} <= {"python", "toml", "sh", ""}
    assert text.count("\n```") % 2 == 0


@in_every_file
def test_python_runs(file: Path, tmp_path: Path) -> None:
    """A block that imports something ends without an error beside the scenarios, and prints what comments behind prints say."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    for block in blocks(file, "python"):
        compile(block, str(file), "exec")
        if not re.search(r"^(import|from) ", block, re.MULTILINE):
            methods = re.findall(r"^def (\w+)", block, re.MULTILINE)
            assert methods and {*methods} <= {name for name in vars(TrainingJob) if name[0] != "_"} | {"evaluate"}, block
            continue
        told = subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert told.returncode == 0, told.stderr
        for expected in re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE):
            assert expected in told.stdout.splitlines(), told.stdout


@in_every_file
def test_scenarios_load(file: Path, tmp_path: Path) -> None:
    """A block is a scenario, or tables of one; one that is a file "shortened" says nothing that the file does not."""
    for block in blocks(file, "toml"):
        tables, first = tomllib.loads(block), block.partition("\n")[0]
        text = block
        for name, table in SMALLEST.items():
            if name not in tables:
                inline = ", ".join(f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in table.items())
                text = f"{name} = {{ {inline} }}\n{text}"
        (tmp_path / "block.toml").write_text(text)
        load_scenario(tmp_path / "block.toml")
        if "shortened" in first:
            (whole,) = re.findall(r"[\w/]+\.toml", first)
            assert is_part(tables, tomllib.loads((ROOT / whole).read_text())), f"{whole} says something else than\n{block}"


def is_part(some: Any, whole: Any) -> bool:
    """Whether all values of some tables are those of others."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in some.items())
    return bool(some == whole)


@in_every_file
def test_keys_of_scenarios_are_known(file: Path) -> None:
    """`key = value`, with `[table]` in front or not, stands in some table of a scenario, with a value that it accepts there."""
    for code in inline_code(file):
        match = re.fullmatch(r"(?:\[([\w.]+)\] )?([a-z]\w*(?:\.\w+)*) = (.+)", code)
        if not match or "..." in code:
            continue
        table, key, value = match.groups()
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            pytest.fail(f"`{code}` is no TOML")
        path, _, key = f"{table}.{key}".rpartition(".") if table else key.rpartition(".")
        candidates = [TABLES[path]] if path else list(TABLES.values())
        problems = [accepts(spec, key, value) for spec in candidates]
        assert None in problems, f"`{code}`: {problems}"


def accepts(spec: type[BaseModel], key: str, value: Any) -> str | None:
    """What a table has against a value, whatever else is missing there."""
    if key not in {field.alias or name for name, field in spec.model_fields.items()}:
        return f"no key {key}"
    try:
        spec.model_validate({key: value})
    except ValidationError as error:
        return next((details["msg"] for details in error.errors() if details["loc"][:1] == (key,)), None)
    return None


def commands_in(line: str) -> Iterator[list[str]]:
    """Words of every command of a line of shell, each with the values of `a|b` and with and without what is in brackets."""
    for command in re.split(r"\s*(?:&&|\|\||;)\s*|\s\|\s", line.partition("  #")[0].strip()):
        texts = {re.sub(r" \[[^\]]*\]", "", command), command.replace(" [", " ").replace("]", "")} if " [-" in command else {command}
        for text in texts:
            choices = re.search(r"\b\w+(?:\|\w+)+\b", text)
            for choice in choices[0].split("|") if choices else [""]:
                yield shlex.split(text.replace(choices[0], choice) if choices else text)


def command_lines(file: Path) -> Iterator[list[str]]:
    """Every command in blocks and between backticks; in tables and beside another command `chinchilla` may be left out."""
    for block in blocks(file, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield from commands_in(line)
    for code in inline_code(file):
        first, _, rest = code.partition(" ")
        if first == "chinchilla" and rest:
            yield from commands_in(code)
        elif first in known_commands() and " = " not in code and re.search(r"[A-Z]{2,}|--\w|\bS\.toml|\.toml\b", rest):
            yield from commands_in(f"chinchilla {code}")


@cache
def known_commands() -> frozenset[str]:
    """Commands of the first level."""
    return frozenset(name for name in app if not name.startswith("-"))


@in_every_file
def test_commands_are_understood(file: Path) -> None:
    """The real application takes each of them apart without running it: commands, options and the kinds of their values are right."""
    for words in command_lines(file):
        words = [word for word in words if word != "..." and not re.fullmatch(r"[A-Z_]+=.*", word)]
        if not words[0].endswith("chinchilla"):
            assert words[0] in OTHER_PROGRAMS, f"what is {' '.join(words)}?"
            continue
        given = ["1" if word == "N" else word for word in words[1:]]
        names, _, arguments = app.parse_commands(given)
        assert names or given[0].startswith("-"), f"there is no command {' '.join(words)}"
        if arguments:
            try:
                app.parse_args(given, exit_on_error=False, print_error=False)
            except MissingArgumentError:  # a mention of an option leaves the file out
                app.parse_args([*given, "FILE"], exit_on_error=False, print_error=False)
        for word in given:
            if (
                re.search(r"\w/", word)
                and word.endswith((".toml", ".json"))
                and not PLACEHOLDER.search(word)
                and word.startswith("scenarios/")
            ):
                assert list(ROOT.glob(word)), f"{word} is not there"


@in_every_file
def test_links_lead_somewhere(file: Path) -> None:
    """Every relative link is a file, and every anchor a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = file.parent / path if path else file
        assert found.exists(), f"{target} in {file}"
        assert not anchor or anchor in anchors(found), f"{target} in {file}"


@cache
def anchors(file: Path) -> frozenset[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
    return frozenset("".join(c for c in title.lower() if c.isalnum() or c in "-_ ").replace(" ", "-") for title in headings)


@in_every_file
def test_named_paths_exist(file: Path) -> None:
    """A path between backticks that starts in a folder of ours is there; what runs write has a placeholder for a name."""
    bases = [ROOT, ROOT / "chinchilla_sim", file.parent]
    for code in inline_code(file):
        first = code.partition("/")[0]
        if (
            "/" not in code
            or not NAMED_PATH.fullmatch(code)
            or PLACEHOLDER.search(code)
            or not any((base / first).is_dir() for base in bases)
        ):
            continue
        assert any(list(base.glob(code.rstrip("/"))) for base in bases), f"{code} is not there"


def test_the_two_commands_of_a_newcomer() -> None:
    """The README says in one line each how to run the first example and how to run the tests, and CI runs the latter."""
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    (first,) = [line for line in lines if ".venv/bin/chinchilla run scenarios/" in line]
    (tests,) = [line for line in lines if line.endswith("-m pytest")]
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install -q ") for line in (first, tests))
    assert tests in (ROOT / ".ci" / "run").read_text()


def all_commands(one: Any = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words and application of every command of `chinchilla --help` and of the groups in it."""
    for name in one:
        if name.startswith("-"):
            continue
        if one[name].default_command is None:
            yield from all_commands(one[name], (*path, name))
        else:
            yield (*path, name), one[name]


def test_every_command_takes_json() -> None:
    """All but `schema`, which prints JSON or Markdown as it is."""
    silent = [path for path, one in all_commands() if not any("--json" in it.names for it in one.assemble_argument_collection())]
    assert silent == [("schema",)]


def table_below(file: Path, heading: str) -> str:
    """The first table below a heading."""
    found = re.search(r"(?:^\|.*\n)+", file.read_text().partition(f"\n{heading}\n")[2], re.MULTILINE)
    assert found, f"no table below {heading} in {file}"
    return found[0]


def rows_below(file: Path, heading: str) -> list[dict[str, str]]:
    """Its rows, by column."""
    headers, _, *rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table_below(file, heading).splitlines()]
    return [dict(zip(headers, row, strict=True)) for row in rows]


@pytest.mark.parametrize(("name", "heading"), [("README.md", "## The commands"), ("README.zh-CN.md", "## 命令")])
def test_every_command_is_in_the_readme(name: str, heading: str) -> None:
    """The table of commands names all there are, and none that is not: `chinchilla a b`, then `c` for `chinchilla a c`."""
    named = set()
    for row in rows_below(ROOT / name, heading):
        (first, *words), *others = (code.split() for code in CODE.findall(next(iter(row.values()))))
        assert first == "chinchilla" and words
        named |= {tuple(words)} | {(*words[:-1], *other) for other in others}
    assert named == {path for path, _ in all_commands()}


def figures_in(text: str) -> set[str]:
    """Numbers as they are written, with sign, without what only separates."""
    return set(re.findall(r"(?<![\w.])[+-]?\d[\d,]*\d(?:\.\d+)?(?:e-\d+)?|(?<![\w.])[+-]?\d(?:\.\d+)?(?:e-\d+)?", text))


def test_the_readme_s_figures_are_those_of_the_ledger() -> None:
    """Each row of its table has the ledger's label, rows and target, and no figure that is not in the ledger's row."""
    ledger = {row["what"]: row for row in rows_below(ROOT / "reports" / "README.md", "## The ledger")}
    for row in rows_below(ROOT / "README.md", "## Is it true?"):
        assert row["what"] in ledger, f"{row['what']} is not in the ledger"
        known = ledger[row["what"]]
        assert (row["rows"], row["target"]) == (known["rows"], known["target"]), row["what"]
        assert figures_in(row["figure"]) and figures_in(row["figure"]) <= figures_in(known["figure"]), row["what"]


def test_figures_of_the_ledger_are_told_in_detail() -> None:
    """Every figure with decimals of the ledger stands a second time, where its source is told: one of both cannot be changed alone."""
    page, readme = ROOT / "reports" / "README.md", ROOT / "README.md"
    told = figures_in(page.read_text().replace(table_below(page, "## The ledger"), ""))
    told |= figures_in(readme.read_text().replace(table_below(readme, "## Is it true?"), ""))
    for row in rows_below(page, "## The ledger"):
        figures = {figure for figure in figures_in(row["figure"]) if "." in figure}
        assert figures <= told, f"{row['what']}: {figures - told} stands in the ledger alone"


def test_the_readme_is_short() -> None:
    """A newcomer reads it to the end; details are in reports/README.md and behind --help."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 280


def test_figures_of_the_translation_are_those_of_the_english_pages() -> None:
    """No measured per cent stands in README.zh-CN.md that the English pages do not state; its table has the same figures row by row."""
    english = {number for file in FILES if "zh" not in file.name for number in re.findall(r"\d+(?:\.\d+)?", file.read_text())}
    assert set(re.findall(r"(\d+(?:\.\d+)?) ?%", (ROOT / "README.zh-CN.md").read_text())) <= english
    rows = [rows_below(ROOT / name, heading) for name, heading in (("README.md", "## Is it true?"), ("README.zh-CN.md", "## 有多准"))]
    for ours, theirs in zip(*rows, strict=True):
        (_, *cells), (_, *others) = ours.values(), theirs.values()
        assert [figures_in(cell) for cell in cells] == [figures_in(cell) for cell in others], ours


def test_the_reference_of_scenarios_is_printed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """scenarios/README.md is byte for byte `chinchilla schema --markdown`."""
    app("schema --markdown", result_action="return_value")
    assert capsys.readouterr().out == (ROOT / "scenarios" / "README.md").read_text()
