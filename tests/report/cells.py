"""What tests of tables share: its cells by header and by row, and how studies are made."""

from collections.abc import Callable

from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import Table

MakeStudy = Callable[..., Study]


def column_of(table: Table, header: str) -> list[str]:
    """Cells of a column, from top to bottom."""
    return [row[table.headers.index(header)] for row in table.rows]


def row_of(table: Table, first: str) -> dict[str, str]:
    """Cells of the row that begins with `first`, by header."""
    return dict(zip(table.headers, next(row for row in table.rows if row[0] == first), strict=True))
