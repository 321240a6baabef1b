"""A report on disk: Markdown with its pictures, CSV, and one HTML page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.files import atomic_path
from rmd_dist.report.build import Report
from rmd_dist.report.render import to_html, to_markdown


def write_report(report: Report, out: Path) -> list[Path]:
    """Write report.md with its pictures, cells.csv and report.html into `out`; returns the three files.

    Raises ConfigError if `out` cannot be written.
    """
    try:
        return _write(report, out)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}); give another --out") from error


def _write(report: Report, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for picture in section.pictures:
            picture.write(out)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(report.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.rows)
    files = {"report.md": to_markdown(report), "cells.csv": table.getvalue(), "report.html": to_html(report)}
    for name, text in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / name for name in files]
