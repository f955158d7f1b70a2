"""The report as Markdown: the same sections as the page, tables as pipes, pictures as files beside it."""

from __future__ import annotations

from collections.abc import Iterator

from chinchilla_sim.report.pages.page import question_of
from chinchilla_sim.report.pages.sections import Block, Bullets, Code, Facts, Paragraph, Picture, key_figures, sections_of
from chinchilla_sim.report.sketch import sketch
from chinchilla_sim.report.study import Study
from chinchilla_sim.report.table import Table, one_line
from chinchilla_sim.report.verdict import answer


def render_markdown(study: Study, pictures: bool = False) -> str:
    """The whole report; with `pictures` it shows the files that `pictures_of` names, else their descriptions."""
    parts = [f"# {_escape(question_of(study))}", f"**{_escape(answer(study))}**", _block(key_figures(study), pictures)]
    for section in sections_of(study):
        parts.append(f"## {section.title}")
        if section.title.startswith("One step"):
            parts.append(_fenced(sketch(study.search.best.timeline)))
        parts += [_block(block, pictures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def pictures_of(study: Study) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every picture of the report."""
    for section in sections_of(study):
        for block in section.blocks:
            if isinstance(block, Picture):
                yield f"{block.name}.png", block.drawing.png()


def _block(block: Block, pictures: bool) -> str:
    if isinstance(block, Table):
        return table_text(block)
    if isinstance(block, Picture):
        shown = f"![{_escape(block.drawing.title)}]({block.name}.png)\n\n" if pictures else ""
        return f"{shown}*{_escape(block.drawing.title)}: {_escape(block.drawing.description)}*"
    if isinstance(block, Facts):
        return "\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in block.rows)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_escape(line)}" for line in block.lines)
    if isinstance(block, Code):
        return (f"{block.summary}:\n\n" if block.summary else "") + _fenced(block.text)
    assert isinstance(block, Paragraph)
    return _escape(block.text)


def table_text(table: Table) -> str:
    """A table between pipes.

    >>> print(table_text(Table("Ranks", ("rank", "use"), (("0", "90 %"),))))
    **Ranks**
    <BLANKLINE>
    | rank | use |
    | :--- | ---: |
    | 0 | 90 % |
    """
    rules = [":---" if column in table.text_columns else "---:" for column in range(len(table.headers))]
    rows = [[_cell(text) for text in table.headers], rules, *([_cell(text) for text in row] for row in table.rows)]
    lines = [f"**{_escape(table.title)}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, *(["", f"*{_escape(table.note)}*"] if table.note else [])])


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|")


def _escape(text: str) -> str:
    """Text that is shown as it is: nothing in it becomes markup."""
    for letter in "\\`*_<>[]#":
        text = text.replace(letter, f"\\{letter}")
    return one_line(text)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
