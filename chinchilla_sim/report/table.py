"""A table as plain data, so that a terminal, HTML and summary.txt show the same cells, and the words in its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

NOT_STATED = "not stated"
NONE = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the columns listed in `text_columns` are left-aligned, the others hold numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    note: str = ""


def to_text(table: Table) -> str:
    """Aligned plain text: title, headers, a rule, rows, note."""
    lines = [[one_line(cell) for cell in row] for row in (table.headers, *table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headers))]
    lines.insert(1, ["-" * width for width in widths])
    aligned = [
        "  ".join(
            cell.ljust(width) if column in table.text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, "", *aligned, *([f"({table.note})"] if table.note else [])])


def to_rich(table: Table) -> RichTable:
    """The same table for a terminal; cells are shown as they are, not as rich's markup."""
    from rich.table import Table as RichTable
    from rich.text import Text

    note = Text(table.note) if table.note else None
    drawn = RichTable(title=Text(table.title), title_justify="left", caption=note, caption_justify="left")
    for column, header in enumerate(table.headers):
        drawn.add_column(Text(header), justify="left" if column in table.text_columns else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn


def shorten(names: Sequence[str]) -> str:
    """A list that fits into a cell.

    >>> shorten(["a", "b"]), shorten(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b .. e (5)')
    """
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} .. {names[-1]} ({len(names)})"


MANY_ROWS = 8


def fold_rows(table: Table, names: tuple[int, ...] = (0,)) -> Table:
    """Rows that are equal but for their names as one with all names; small tables as they are.

    >>> fold_rows(Table("", ("rank", "use"), tuple((str(n), "90 %") for n in range(9)))).rows
    (('0, 1 .. 8 (9)', '90 %'),)
    """
    if len(table.rows) <= MANY_ROWS:
        return table
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in table.rows:
        groups.setdefault(tuple(cell for column, cell in enumerate(row) if column not in names), []).append(row)
    folded = tuple(
        tuple(_folded_names([row[column] for row in rows]) if column in names else cell for column, cell in enumerate(rows[0]))
        for rows in groups.values()
    )
    return replace(table, rows=folded, text_columns=tuple(sorted({*table.text_columns, *names})))


def _folded_names(cells: Sequence[str]) -> str:
    """Names in one cell; of cells that are lists themselves the first stands for all."""
    if len(cells) > 1 and any(", " in cell for cell in cells):
        return f"{cells[0]} and {len(cells) - 1} like it"
    return shorten(cells)


def percent(fraction: float) -> str:
    """A fraction as people read it.

    >>> percent(0.4567), percent(0.0001), percent(-1e-12)
    ('45.7 %', '< 0.1 %', '0.0 %')
    """
    return "< 0.1 %" if 1e-9 < fraction < 0.0005 else f"{100 * fraction:.1f} %".replace("-0.0 ", "0.0 ")


def signed_percent(fraction: float) -> str:
    """The same with its sign.

    >>> signed_percent(0.05), signed_percent(-0.00001)
    ('+5.0 %', '0.0 %')
    """
    return f"{100 * fraction:+.1f} %".replace("-0.0 ", "0.0 ").replace("+0.0 ", "0.0 ")


def one_line(text: str) -> str:
    """Text whose line breaks and runs of blanks are single blanks."""
    return " ".join(text.split())
