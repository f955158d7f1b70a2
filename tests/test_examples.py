"""The scenarios that come with the package: listed, copied with what they read, and in the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.examples import copy_examples, list_examples
from chinchilla_sim.scenario.load import load_scenario

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT / "scenarios").as_posix() for path in (ROOT / "scenarios").rglob("*") if path.is_file())


def test_each_has_a_line() -> None:
    """Every scenario file is listed by its stem, each with one line of its own; folders last."""
    listed = {example.name: example for example in list_examples()}
    stems = {path.stem for path in (ROOT / "scenarios").glob("*.toml")}
    assert stems <= set(listed) and set(listed) - stems == {path.parent.name for path in (ROOT / "scenarios").glob("*/*.toml")}
    lines = [example.line for example in listed.values()]
    assert all(len(line) > 20 and "\n" not in line for line in lines) and len(set(lines)) == len(lines)
    assert listed["text_classification"].line == "Text classification: BERT-base (Devlin et al. 2018) on a rack of mixed old cards"


def test_copies_are_whole(tmp_path: Path) -> None:
    """Every example is read from where it was copied to, with the files that it names."""
    copied = copy_examples([example.name for example in list_examples()], tmp_path)
    for path in copied:
        if path.suffix == ".toml":
            load_scenario(path)
    for table in (ROOT / "scenarios" / "accuracy").iterdir():  # named from the folder itself, and as ../accuracy from one below
        assert (tmp_path / "accuracy" / table.name).read_bytes() == table.read_bytes()


def test_nothing_is_replaced(tmp_path: Path) -> None:
    """A copy that would replace a file is refused whole; an unknown name brings the nearest one."""
    copy_examples(["edge_5g"], tmp_path)
    (tmp_path / "edge_5g.toml").write_text("mine")
    with pytest.raises(ScenarioError, match="is there already; name another folder by --output, or replace them by --force"):
        copy_examples(["serving", "edge_5g"], tmp_path)
    assert (tmp_path / "edge_5g.toml").read_text() == "mine" and not (tmp_path / "serving.toml").exists()
    copy_examples(["edge_5g"], tmp_path, force=True)
    assert (tmp_path / "edge_5g.toml").read_text() != "mine"
    with pytest.raises(ScenarioError, match="did you mean 'edge_5g'"):
        copy_examples(["edge_5"], tmp_path)


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """A wheel built from this checkout holds every file of scenarios/, and lists them where it is installed alone."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = [name.removeprefix("chinchilla_sim/example_scenarios/") for name in archive.namelist() if "example_scenarios" in name]
        assert sorted(packed) == FILES
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "chinchilla_sim.cli", "examples", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True, timeout=120)
    assert json.loads(told.stdout)["examples"] == [example.to_dict() for example in list_examples()]
