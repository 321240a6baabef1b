"""A study's folder: what is where, and what its runs have measured.

STUDY/specs/TABLE.yaml        the tables, resolved: nothing of them refers to a file elsewhere
STUDY/teachers/SHA/           encoder files that were given, instead of pretraining runs
STUDY/cells/CELL.yaml         the whole configuration of a run
STUDY/logs/CELL.log           what it printed
STUDY/runs/STAGE/CELL/        the run; its manifest says whether it has finished
STUDY/attempts/CELL.N.json    who began it for the Nth time, and how that ended
STUDY/references.json         what rmd report --references measured of teachers
STUDY/report/                 what rmd report wrote
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rmd_dist.config.convert import to_dict
from rmd_dist.errors import ConfigError
from rmd_dist.files import atomic_path
from rmd_dist.models.export import WEIGHTS
from rmd_dist.runs.curves import read_curve
from rmd_dist.study.cells import Cell, Entry, Table, content, plan
from rmd_dist.study.spec import StudySpec, load_spec
from rmd_dist.study.status import Status, read_status

KINDS = ("last", "selected", "best_on_test")
"""Of a run's accuracy: at the end; as noisy validation labels choose; as the test set would (oracle)."""


def teacher_folder(study: Path, file: str) -> Path:
    """Where the study keeps an encoder file that it was given, by content."""
    return study / "teachers" / content(file)[:12]


def write_specs(study: Path, specs: Sequence[StudySpec]) -> None:
    """Record the tables of a study, with the teachers that they name.

    A table that is there may have grown or changed. Raises ConfigError if the folder
    cannot be written.
    """
    try:
        (study / "specs").mkdir(parents=True, exist_ok=True)
        for spec in specs:
            values = to_dict(spec)
            for dataset, file in spec.teachers.items():
                kept = keep_teacher(study, file)
                values["teachers"][dataset] = f"../teachers/{kept.name}/{WEIGHTS}"
            with atomic_path(study / "specs" / f"{spec.name}.yaml") as temporary:
                text = yaml.safe_dump(values, sort_keys=False)  # the first method is the baseline
                temporary.write_text(f"# A table of this study, as it was asked for.\n{text}")
    except OSError as error:
        raise ConfigError(f"cannot write to {study} ({error.strerror}); give another --out") from error


def keep_teacher(study: Path, file: str) -> Path:
    """Copy an encoder file, and what lies beside it about its run, unless it is there; returns its folder."""
    folder, beside = teacher_folder(study, file), Path(file).parent
    if (folder / WEIGHTS).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "manifest.json"):
        if (beside / name).exists():
            shutil.copyfile(beside / name, folder / name)
    with atomic_path(folder / WEIGHTS) as temporary:
        shutil.copyfile(file, temporary)
    return folder


def read_specs(study: Path) -> list[StudySpec]:
    """The tables of a study, the paper's in its order, then others. Raises ConfigError if it is no study."""
    files = sorted((study / "specs").glob("*.yaml"))
    if not files:
        raise ConfigError(f"{study} is not a study: it has no specs/*.yaml; rmd study makes one")
    return sorted(map(load_spec, files), key=lambda spec: (spec.table or len(files) + 99, spec.name))


@dataclass(frozen=True)
class Study:
    """A study read back: its tables, and where each cell stands."""

    folder: Path
    cells: dict[str, Cell]
    tables: list[Table]
    status: dict[str, Status]

    def run(self, key: str) -> Path:
        """The run folder of a cell."""
        return self.cells[key].run_folder(self.folder)

    def finished(self, key: str) -> bool:
        """Whether a cell has run to its end."""
        return self.status[key].state == "finished"

    def accuracy(self, key: str, kind: str = "last") -> float | None:
        """Test accuracy (kNN accuracy of a pretraining) in [0, 1], of one of KINDS; None if unfinished."""
        return self.status[key].results.get(kind) if self.finished(key) else None

    def curve(self, key: str, tag: str) -> tuple[list[int], list[float]]:
        """(steps, values) of a scalar while the run went on; empty if it has not begun."""
        return curve_so_far(self.run(key), tag)

    def teacher(self, dataset: str, table: Table) -> Path | None:
        """The encoder that a table's students of a data set were drawn to; None if there is none (yet)."""
        if dataset in table.spec.teachers:
            return Path(table.spec.teachers[dataset])
        keys = {self.cells[e.key].needs for e in table.entries if e.dataset == dataset}
        found = [self.run(key) for key in keys if key is not None and self.finished(key)]
        return found[0] if found else None

    def entries(self, table: Table, **wanted: Any) -> list[Entry]:
        """The places of a table whose fields have the `wanted` values."""
        return [entry for entry in table.entries if all(getattr(entry, k) == v for k, v in wanted.items())]


def read_study(folder: Path) -> Study:
    """Read a study's tables and where its cells stand. Raises ConfigError if there is none."""
    cells, tables = plan(read_specs(folder))
    return study_of(folder, cells, tables)


def study_of(folder: Path, cells: Sequence[Cell], tables: list[Table]) -> Study:
    """The study of these cells as it stands now."""
    return Study(folder, {cell.key: cell for cell in cells}, tables, read_status(folder, cells))


def curve_so_far(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a scalar of a run; empty if it has measured nothing yet."""
    try:
        return read_curve(run, tag)
    except ConfigError:
        return [], []
