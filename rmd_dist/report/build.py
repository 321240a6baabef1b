"""The report of a study: its tables and figures, and what is unfinished."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.report.conditions import conditions
from rmd_dist.report.embedding import embeddings
from rmd_dist.report.pictures import Picture
from rmd_dist.report.plots import plots
from rmd_dist.report.results import References, Results
from rmd_dist.report.tables import Grid, csv_rows, grids
from rmd_dist.study import tune
from rmd_dist.study.folder import Study
from rmd_dist.study.spec import load_spec


@dataclass
class Section:
    """A table of the study."""

    name: str
    title: str
    remarks: list[str]
    """What was run, and what is missing."""
    grids: list[Grid]
    pictures: list[Picture] = field(default_factory=list)
    verdict: list[str] = field(default_factory=list)
    """Of a search: what was tried, what is chosen, what the choice cost."""


@dataclass
class Report:
    """All that is to be written."""

    name: str
    summary: str
    commands: list[str]
    sections: list[Section]
    unfinished: list[tuple[str, str, str]]
    """(cell, state, why)"""
    rows: list[dict[str, str]]
    """Of the CSV file, by column."""


def make_report(study: Study, configs: str | None = None, references: References | None = None) -> Report:
    """Put a study's report together.

    `configs`: the folder of YAML files that the printed commands name; None: the study's own copies.
    `references`: what stands below the methods, see `report.references`; None: nothing.
    Raises ConfigError if one of the tables is not there.
    """
    left = _unfinished(study, study.cells)
    total, done = len(study.cells), len(study.cells) - len(left)
    name = study.folder.resolve().name
    summary = f"Study {name}: {done} of {total} cells have finished."
    if left:
        summary += " It is unfinished: the others are listed at the end, and none is filled in."
    sections, rows = [], []
    for table in study.tables:
        results = Results(study, table, references)
        sections.append(_section(results))
        rows += csv_rows(results)
    commands = _commands(study, configs, ["--references"] * (references is not None))
    return Report(name, summary, commands, sections, left, rows)


def _section(results: Results) -> Section:
    study, spec = results.study, results.spec
    remarks = [conditions(results, dataset) for dataset in results.datasets]
    keys = dict.fromkeys(entry.key for entry in results.table.entries)
    if missing := _unfinished(study, keys):
        states = ", ".join(f"{n} {state}" for state, n in Counter(state for _, state, _ in missing).items())
        remarks.append(f"{len(missing)} of its {len(keys)} cells are unfinished ({states}).")
    drawn, undrawn = embeddings(results)
    pictures = [*plots(results), *drawn]
    title = spec.title or spec.name
    if spec.table is not None:
        title += f" (Table {spec.table} of the paper)"
    verdict = tune.verdict(study, results.table) if spec.tune else []
    return Section(spec.name, title, [*remarks, *undrawn], grids(results), pictures, verdict)


def _unfinished(study: Study, keys: Iterable[str]) -> list[tuple[str, str, str]]:
    """(key, state, why) of each cell of `keys` that has no result yet."""
    left = ((key, study.status[key]) for key in keys if not study.finished(key))
    return [(key, status.state, status.why or "") for key, status in left]


def _commands(study: Study, configs: str | None, asked: list[str]) -> list[str]:
    folder = f"studies/{study.folder.resolve().name}"
    files = {table.spec.name: f"{folder}/specs/{table.spec.name}.yaml" for table in study.tables}
    if configs is not None:
        found = {}
        for path in sorted(Path(configs).glob("*.yaml")):
            with contextlib.suppress(ConfigError):  # other files lie there, too
                found[load_spec(path).name] = str(path)
        if absent := [name for name in files if name not in found]:
            raise ConfigError(
                f"{configs} has no table called {absent[0]}; give the folder of the YAML files that "
                "the study was made of"
            )
        files = {name: found[name] for name in files}
    return [
        shlex.join(["python", "launch/study.py", *files.values(), "--out", str(folder)]),
        shlex.join(["python", "launch/report.py", str(folder), *asked]),
    ]
