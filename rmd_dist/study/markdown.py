"""A report as Markdown: sections from ## on, so that a document can include it as it is."""

from __future__ import annotations

from rmd_dist.study.report import Report, Section
from rmd_dist.study.tables import NOTHING, Grid
from rmd_dist.study.tables import Cell as GridCell


def to_markdown(report: Report) -> str:
    """The whole report; pictures are files beside it."""
    parts = [report.summary, "", "```", *report.commands, "```", ""]
    for section in report.sections:
        parts += _section(section)
    parts += _unfinished(report)
    return "\n".join(parts).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {escape(section.title)}", ""]
    for remark in section.remarks:
        lines += [escape(remark), ""]
    for grid in section.grids:
        lines += [f"### {grid.title}: {escape(section.name)}", "", *_grid(grid), ""]
        for note in grid.notes:
            lines += [escape(note), ""]
    if section.verdict:
        lines += [f"### Choice of K: {escape(section.name)}", "", "```", *section.verdict, "```", ""]
    for picture in section.pictures:
        lines += [
            f"### {escape(picture.title)}",
            "",
            f"![{escape(picture.title)}]({picture.name}.png)",
            "",
            escape(picture.caption),
            "",
        ]
    return lines


def _grid(grid: Grid) -> list[str]:
    rule = ["---"] * grid.stubs + ["---:"] * (len(grid.columns) - grid.stubs)
    lines = [_row([escape(column) for column in grid.columns]), _row(rule)]
    return lines + [_row([_cell(cell) for cell in row]) for row in grid.rows]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: GridCell) -> str:
    text = escape(f"{cell.text} / {cell.paper}" if cell.paper else cell.text)
    main = escape(cell.main)
    return f"**{main}**{text.removeprefix(main)}" if cell.clear else text


def _unfinished(report: Report) -> list[str]:
    if not report.unfinished:
        return []
    lines = ["## Unfinished cells", "", _row(["cell", "state", "why"]), _row(["---"] * 3)]
    return [
        *lines,
        *(_row([f"`{key}`", state, escape(why) or NOTHING]) for key, state, why in report.unfinished),
    ]


def escape(text: str) -> str:
    """`text` as one line that Markdown shows as it stands."""
    plain = " ".join(text.split())
    for character in "\\`*|<>":
        plain = plain.replace(character, f"\\{character}")
    return plain
