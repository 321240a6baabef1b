"""The report of a study: its tables and figures, and what is unfinished."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rmd_dist.config import ConfigError
from rmd_dist.study import tune
from rmd_dist.study.conditions import conditions
from rmd_dist.study.embedding import embeddings
from rmd_dist.study.folder import Study
from rmd_dist.study.listing import csv_rows, unfinished
from rmd_dist.study.pictures import Picture
from rmd_dist.study.places import Places
from rmd_dist.study.plots import plots
from rmd_dist.study.spec import load_spec
from rmd_dist.study.tables import Grid, grids


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
    """Of a search for K: the values tried, the one chosen, what the choice cost."""


@dataclass
class Report:
    """All that is to be written."""

    name: str
    summary: str
    commands: list[str]
    sections: list[Section]
    unfinished: list[tuple[str, str, str]]
    """(cell, state, why)"""
    rows: list[list[str]]
    """Of the CSV file, by CSV_COLUMNS."""


def make_report(study: Study, configs: str | None = None) -> Report:
    """Put a study's report together.

    `configs`: the folder of YAML files that the printed commands name; None: the study's own copies.
    Raises ConfigError if one of the tables is not there.
    """
    left = unfinished(study)
    total, done = len(study.cells), len(study.cells) - len(left)
    name = study.folder.resolve().name
    summary = f"Study {name}: {done} of {total} cells have finished."
    if left:
        summary += " It is unfinished: the others are listed at the end, and none is filled in."
    sections, rows = [], []
    for table in study.tables:
        places = Places(study, table)
        sections.append(_section(study, places))
        rows += csv_rows(study, places)
    return Report(name, summary, _commands(study, configs), sections, left, rows)


def _section(study: Study, places: Places) -> Section:
    spec = places.spec
    remarks = [conditions(study, places, dataset) for dataset in places.datasets]
    keys = dict.fromkeys(entry.key for entry in places.table.entries)
    if missing := unfinished(study, list(keys)):
        states = ", ".join(f"{n} {state}" for state, n in Counter(state for _, state, _ in missing).items())
        remarks.append(f"{len(missing)} of its {len(keys)} cells are unfinished ({states}).")
    drawn, undrawn = embeddings(study, places)
    pictures = [*plots(study, places), *drawn]
    title = spec.title or spec.name
    if spec.table is not None:
        title += f" (Table {spec.table} of the paper)"
    entered = all(key in study.status for key in keys)
    verdict = tune.verdict(spec, places.table, study.status) if spec.tune and entered else []
    return Section(spec.name, title, [*remarks, *undrawn], grids(places), pictures, verdict)


def _commands(study: Study, configs: str | None) -> list[str]:
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
        f"python launch/study.py {' '.join(files.values())} --out {folder}",
        f"python launch/report.py {folder}",
    ]
