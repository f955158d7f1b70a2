"""`chinchilla report` from the shell."""

import json
from pathlib import Path

from tests.test_cli import FOUR_NODES, ROOT, chinchilla, printed

FILES = {"plan.json", "report.json", "summary.txt", "trace.json"}


def test_page_is_the_default_form(tmp_path: Path) -> None:
    """Without --format the page is written, its path printed; JSON on request has what the page shows."""
    told = chinchilla("report", FOUR_NODES, "-o", "out", cwd=tmp_path)
    assert told.stdout.split() == ["out/report.html"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"report.html"}
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"front", "traffic", "links", "idle_s", "why_not", "provenance", "sensitivity"} <= set(found)
    assert (tmp_path / "out" / "summary.txt").read_bytes() == (ROOT / "reports" / "seed_four_nodes" / "summary.txt").read_bytes()


def test_several_forms_at_once(tmp_path: Path) -> None:
    """Each is written once, pictures as files that the Markdown shows; --json prints report.json."""
    forms = ["--format", "md", "--format", "csv", "--format", "png", "--format", "json"]
    found = printed(chinchilla("report", FOUR_NODES, "-o", "out", *forms, "--json", cwd=tmp_path))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {*FILES, "report.md", "report.csv", "step.png", "cluster.png"} <= names and "report.html" not in names
    assert "](step.png)" in (tmp_path / "out" / "report.md").read_text()
    assert found == json.loads((tmp_path / "out" / "report.json").read_text())


def test_unknown_form_is_refused(tmp_path: Path) -> None:
    """Exit code 2, and nothing is planned."""
    told = chinchilla("report", FOUR_NODES, "--format", "docx", cwd=tmp_path)
    assert told.returncode == 2 and "docx" in told.stderr + told.stdout and not (tmp_path / "reports").exists()
