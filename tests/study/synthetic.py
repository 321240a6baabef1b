"""A study that was never run: its folder, its attempts, and runs with made-up figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rmd_dist.config.convert import save_yaml
from rmd_dist.files import write_json
from rmd_dist.models.export import create, export
from rmd_dist.study.attempts import Attempt
from rmd_dist.study.cells import CLEAN, Cell, Entry, plan
from rmd_dist.study.folder import write_specs
from rmd_dist.study.spec import StudySpec

Accuracy = Callable[[Entry], float]
"""Last accuracy of a cell, in [0, 1]."""


def small_spec(**changes: Any) -> StudySpec:
    """Two losses, two methods, two noises, three seeds, on digits; `changes` replace fields."""
    settings: dict[str, Any] = {
        "name": "table1",
        "title": "Table 1",
        "datasets": ("digits",),
        "losses": ("ce", "gce"),
        "noise": {"symmetric": (0.2, 0.4)},
        "pretrain": {"optim": {"epochs": 2, "lr": 0.03}},
        "distill": {"optim": {"epochs": 4, "lr": 0.05}, "data": {"train_samples": 960}},
    }
    return StudySpec(**settings | changes)


def name_of(key: str) -> str:
    """A cell's key without its digest."""
    return key.rpartition("-")[0]


def make_study(
    folder: Path,
    specs: list[StudySpec],
    accuracy: Accuracy,
    *,
    failed: Collection[str] = (),
    waiting: Collection[str] = (),
    curves: bool = False,
    models: bool = False,
) -> Path:
    """Write the study; cells of `failed` and `waiting` are left so, by name, all others are finished.

    `curves`: with metrics; `models`: with untrained weights and a configuration.
    """
    write_specs(folder, specs)
    cells, tables = plan(specs)
    (folder / "attempts").mkdir()
    places = {entry.key: entry for table in tables for entry in table.entries}
    for cell in cells:
        name = name_of(cell.key)
        if name in waiting:
            continue
        if name in failed:
            _write_attempts(
                folder, cell, Attempt("host:1", 0.0, "failed", "loss was <nan> & the run stopped")
            )
            continue
        last = accuracy(places[cell.key]) if cell.key in places else 0.6
        results = {"last": last, "selected": last + 0.005, "best_on_test": last + 0.02}
        if cell.stage == "pretrain":
            results = {"last": last, "best_on_test": last}
        # Cut short once, and continued: what it took is the sum of both.
        cut_short = Attempt("host:1", 0.0, "waiting", "the study was stopped", seconds=30.0)
        _write_attempts(folder, cell, cut_short, Attempt("host:1", 0.0, "finished", seconds=60.0))
        _write_run(folder, cell, results)
        if curves and cell.key in places:
            _write_curves(folder, cell, places[cell.key], last)
        if models:
            _write_model(folder, cell)
    return folder


def _write_attempts(folder: Path, cell: Cell, *attempts: Attempt) -> None:
    for number, attempt in enumerate(attempts, start=1):
        write_json(folder / "attempts" / f"{cell.key}.{number}.json", asdict(attempt))


def _write_run(folder: Path, cell: Cell, results: dict[str, float]) -> None:
    """The manifest of a finished run."""
    run = cell.run_folder(folder)
    run.mkdir(parents=True)
    found = {kind: {"tag": "test/accuracy", "value": value, "step": 9} for kind, value in results.items()}
    write_json(run / "manifest.json", {"status": "finished", "stage": cell.stage, "results": found})


def _write_curves(folder: Path, cell: Cell, entry: Entry, last: float) -> None:
    """Metrics that rise, and fall where wrong labels are memorised."""
    epochs, records = cell.config.optim.epochs, []
    for epoch in range(1, epochs + 1):
        share = epoch / epochs
        rise = 1 - math.exp(-5 * share)
        forgotten = 0.25 * entry.rate * max(0.0, 1 - share) * (entry.method == "")
        record = {
            "step": cell.steps * epoch // epochs,
            "test/accuracy": last * rise + forgotten,
            "memorisation/clean_fitted": 0.95 * rise,
        }
        if entry.method != CLEAN:
            memorised = (0.9 if entry.method == "" else 0.5) * share**2
            record |= {
                "memorisation/wrong_memorised": memorised,
                "memorisation/wrong_recovered": 0.8 * rise * (1 - memorised),
            }
        records.append(json.dumps(record))
    (cell.run_folder(folder) / "metrics.jsonl").write_text("\n".join(records) + "\n")


def _write_model(folder: Path, cell: Cell) -> None:
    """An untrained model of the cell's architecture."""
    run = cell.run_folder(folder)
    save_yaml(cell.config, run / "config.yaml")
    name, classes = cell.config.model.name, 10 if cell.stage == "distill" else 0
    torch.manual_seed(0)
    export(
        run, create(name, classes), name, classes, {"dataset": cell.config.data.dataset, "stage": cell.stage}
    )
