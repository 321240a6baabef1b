"""A report as text, by the templates beside this module: Markdown, and one HTML page."""

from __future__ import annotations

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rmd_dist.report.build import Report


def to_markdown(report: Report) -> str:
    """The whole report; pictures are files beside it."""
    return _render("report.md", report)


def to_html(report: Report) -> str:
    """The whole report as a page that needs no other file: style and pictures are in it."""
    return _render("report.html", report)


def plain(text: str) -> str:
    """`text` as one line that Markdown shows as it stands."""
    line = " ".join(text.split())
    for character in "\\`*|<>":
        line = line.replace(character, f"\\{character}")
    return line


def _render(template: str, report: Report) -> str:
    return _environment().get_template(template).render(report=report).strip() + "\n"


@functools.cache
def _environment() -> Environment:
    """Of templates/: what goes into HTML is escaped; Markdown has the filter `plain` for it."""
    environment = Environment(
        loader=PackageLoader("rmd_dist.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment
