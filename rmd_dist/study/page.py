"""A report as one HTML page that needs nothing else: its style and its pictures are in it."""

from __future__ import annotations

from html import escape

from rmd_dist.study.pictures import Picture
from rmd_dist.study.report import Report, Section
from rmd_dist.study.tables import Cell as GridCell
from rmd_dist.study.tables import Grid

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5d666f; --line: #d9dee3; --ground: #fff;
  --band: #f4f6f8; --warn: #8a4b00; --warn-ground: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #39414a;
  --ground: #15181b; --band: #1e2328; --warn: #ffc46b; --warn-ground: #33260f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p, figcaption { max-width: 52rem; }
nav ul { padding-left: 1.2rem; }
a { color: inherit; }
pre { background: var(--band); padding: .7rem .9rem; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.warning { background: var(--warn-ground); color: var(--warn); padding: .6rem .9rem; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: top; }
td { vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); }
th.stub, td.stub { text-align: left; }
tr.block > * { border-top: 2px solid var(--soft); }
td small { display: block; color: var(--soft); }
td.partial { color: var(--warn); }
td.why { white-space: normal; text-align: left; min-width: 14rem; }
figure { margin: 1rem 0 2rem; }
figcaption { margin-top: .5rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  overflow-x: auto; }
.card svg, .card img { display: block; width: 100%; height: auto; min-width: 32rem; margin: 0 auto; }
details { margin: 1.5rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) { th, td { padding: .3rem .35rem; font-size: .8rem; } }
@media print { body { max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; }
  .wide, .card { overflow: visible; } .card svg, .card img { min-width: 0; } nav { display: none; } }
"""


def to_page(report: Report) -> str:
    """The whole report."""
    links = [(f"table-{n}", section.title) for n, section in enumerate(report.sections)]
    if report.unfinished:
        links.append(("unfinished", "Unfinished cells"))
    nav = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in links)
    kind = "warning" if report.unfinished else "soft"
    body = [
        f"<h1>Study {escape(report.name)}</h1>",
        f'<p class="{kind}">{escape(report.summary)}</p>',
        f"<pre>{escape(chr(10).join(report.commands))}</pre>",
        f"<nav><ul>{nav}</ul></nav>",
        *(_section(f"table-{n}", section) for n, section in enumerate(report.sections)),
        _unfinished(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Study {escape(report.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _section(anchor: str, section: Section) -> str:
    parts = [f'<section id="{anchor}">', f"<h2>{escape(section.title)}</h2>"]
    parts += [f'<p class="soft">{escape(remark)}</p>' for remark in section.remarks]
    parts += [_grid(grid) for grid in section.grids]
    if section.verdict:
        parts.append(f"<h3>Choice of K</h3><pre>{escape(chr(10).join(section.verdict))}</pre>")
    parts += [_figure(picture) for picture in section.pictures]
    return "\n".join([*parts, "</section>"])


def _grid(grid: Grid) -> str:
    head = "".join(
        f'<th scope="col"{_stub_class(n, grid.stubs)}>{escape(column)}</th>'
        for n, column in enumerate(grid.columns)
    )
    rows = []
    for n, row in enumerate(grid.rows):
        block = ' class="block"' if n in grid.blocks else ""
        rows.append(f"<tr{block}>{''.join(_cell(cell, m, grid.stubs) for m, cell in enumerate(row))}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table>"
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in grid.notes)
    inside = f'<div class="wide">{table}</div>{notes}'
    if grid.long:
        return f"<details><summary>{escape(grid.title)}</summary>{inside}</details>"
    return f"<h3>{escape(grid.title)}</h3>{inside}"


def _cell(cell: GridCell, column: int, stubs: int) -> str:
    if column < stubs:
        return f'<th scope="row" class="stub">{escape(cell.text)}</th>'
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    paper = f"<small>paper {escape(cell.paper)}</small>" if cell.paper else ""
    main = f"<strong>{escape(cell.main)}</strong>" if cell.clear else escape(cell.main)
    figure = f"{main} {escape(cell.seeds)}".strip()
    partial = ' class="partial"' if cell.partial else ""
    return f"<td{partial}>{figure}{interval}{paper}</td>"


def _stub_class(column: int, stubs: int) -> str:
    return ' class="stub"' if column < stubs else ""


def _figure(picture: Picture) -> str:
    return (
        f'<figure><h3>{escape(picture.title)}</h3><div class="card">{picture.inline()}</div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _unfinished(report: Report) -> str:
    if not report.unfinished:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row" class="stub">{escape(key)}</th><td class="stub">{escape(state)}</td>'
        f'<td class="why">{escape(why)}</td></tr>'
        for key, state, why in report.unfinished
    )
    return (
        '<section id="unfinished"><h2>Unfinished cells</h2><div class="wide"><table><thead><tr>'
        '<th class="stub" scope="col">cell</th><th class="stub" scope="col">state</th>'
        f'<th class="stub" scope="col">why</th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )
