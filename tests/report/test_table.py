"""A table as text and in a terminal."""

import subprocess
import sys

from chinchilla_sim.report.table import Table, to_rich, to_text


def test_text_is_aligned_without_trailing_blanks() -> None:
    """Text columns start, number columns end, at the same place in every row."""
    table = Table("Title", ("name", "bytes"), (("a", "1 B"), ("longer", "20 MB")), note="a note")
    expected = ["Title", "", "name    bytes", "------  -----", "a         1 B", "longer  20 MB", "(a note)"]
    assert to_text(table).splitlines() == expected


def test_rich_shows_markup_as_text() -> None:
    """A name in brackets is a name, not a style."""
    from rich.console import Console

    console = Console(width=60, no_color=True)
    with console.capture() as captured:
        console.print(to_rich(Table("T", ("name",), (("[red]node[/red]",),))))
    assert "[red]node[/red]" in captured.get()


def test_importing_tables_is_light() -> None:
    """Neither matplotlib nor jinja2, rich or torch is imported before it is needed."""
    names = ("pages.page", "pages.result", "pages.summary", "drawing.trace")
    code = f"import sys, {', '.join(f'chinchilla_sim.report.{name}' for name in names)}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "jinja2", "rich", "torch"} & set(modules)
