"""A report as text, by the templates beside this module: Markdown, and one HTML page."""

from __future__ import annotations

from rmd_dist.report.build import Report
from rmd_dist.templates import environment


def to_markdown(report: Report) -> str:
    """The whole report; pictures are files beside it."""
    return _render("report.md", report)


def to_html(report: Report) -> str:
    """The whole report as a page that needs no other file: style and pictures are in it."""
    return _render("report.html", report)


def _render(template: str, report: Report) -> str:
    return environment(__package__).get_template(template).render(report=report).strip() + "\n"
