"""What simple classifiers of a teacher's features make of the labels that its students are given.

Test accuracy by logistic regression, by kNN and by logistic regression through a noise matrix, for every
noise setting and seed of a table: what a student should at least reach. No clean label and no test image
decides anything in them. They are kept in STUDY/references.json, by what decides them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmd_dist.config import DistillConfig, needs_teacher
from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.files import read_json, write_json
from rmd_dist.report.results import REFERENCES, Place, References, Results
from rmd_dist.report.teacher_alone import Measure
from rmd_dist.runs.folder import read_manifest
from rmd_dist.study.folder import Study
from rmd_dist.study.runner import Data
from rmd_dist.tasks.base import Tell
from rmd_dist.tasks.teacher import FrozenEncoder, named_source, open_source

FILE = "references.json"


def find_references(study: Study, data: Data, tell: Tell) -> References:
    """References of all tables of a study whose students have a pretrained teacher.

    `data`: where the images are, if not where the runs had them. `tell` gets a line for each place that is
    measured; what an earlier call has measured is read back. Raises ConfigError where a teacher is missing,
    or data that are still needed.
    """
    kept = _Kept(study.folder / FILE, tell)
    measure = Measure(data)
    found: dict[Place, dict[str, float]] = {}
    for table in study.tables:
        results = Results(study, table)
        for dataset in results.datasets:
            if not (configs := _taught(results, dataset)):
                continue
            teacher = _teacher(results, dataset, configs[0], data)
            for place, key in _places(results, dataset):
                decides = key and teacher and _decides(study, key, teacher, configs[0].teacher_image_size)
                if not (key and teacher and decides):
                    found[place] = {}
                    continue
                if (known := kept.get(decides)) is None:
                    start = time.monotonic()
                    known = measure(study.run(key), teacher)
                    kept.put(decides, known)
                    where = f"{place.table}, {dataset}, {place.column.label}, seed {place.seed}"
                    tell(f"references of {where}: {time.monotonic() - start:.0f} s")
                found[place] = known
    return found


def _taught(results: Results, dataset: str) -> list[DistillConfig]:
    """The configurations of a table's students of a data set that have a teacher, not an untrained one."""
    cells = [results.study.cells[e.key].config for e in results.table.entries if e.dataset == dataset]
    configs = [config for config in cells if isinstance(config, DistillConfig)]
    return [config for config in configs if needs_teacher(config) and config.teacher != "random"]


def _teacher(results: Results, dataset: str, taught: DistillConfig, data: Data) -> FrozenEncoder | None:
    """The table's encoder, else the one that the first taught student names; None: not pretrained yet."""
    source: Any = results.study.teacher(dataset, results.table)
    if source is None and taught.teacher:
        source = named_source(taught.teacher, taught.teacher_weights)
    if source is None:
        return None
    info = dataset_info(dataset, data.root or taught.data.root)
    wanted = Preprocess.for_dataset(info, taught.data.image_size)
    size = taught.teacher_image_size
    return open_source(source, info, taught.model.name, wanted.to_cfg(), image_size=size)


def _places(results: Results, dataset: str) -> Iterator[tuple[Place, str | None]]:
    """Each noise setting and seed with the first of its cells that has finished, if one has."""
    keys: dict[Place, list[str]] = {}
    for row in results.rows:
        for column in results.columns if row.dataset == dataset else ():
            for entry in results.entries(row, column):
                place = Place(results.spec.name, dataset, column, entry.seed)
                keys.setdefault(place, []).append(entry.key)
    for place, those in keys.items():
        yield place, next((key for key in those if results.study.finished(key)), None)


@dataclass(frozen=True)
class _Decides:
    """All that decides the references of a place."""

    teacher_sha256: str
    data_sha256: str
    labels_sha256: str
    train_samples: int
    validation_samples: int
    test_samples: int | None
    """None: all."""
    teacher_image_size: int | None = None
    """None: as the teacher's weights want."""


def _decides(study: Study, key: str, teacher: FrozenEncoder, size: int | None) -> _Decides | None:
    """By a finished run's manifest; None of an old one that does not say."""
    manifest = read_manifest(study.run(key))
    names = ("data_sha256", "labels_sha256", "train_samples", "validation_samples")
    if any(name not in manifest for name in names):
        return None
    tested = study.cells[key].config.data.test_samples
    facts = {name: manifest[name] for name in names}
    return _Decides(teacher.sha256, test_samples=tested, teacher_image_size=size, **facts)


class _Kept:
    """The references that a study's folder keeps."""

    def __init__(self, file: Path, tell: Tell) -> None:
        self._file, self._tell = file, tell
        try:
            listed = read_json(file, missing_ok=True).get("references", [])
            self._known = {
                _Decides(**line["by"]): {name: float(line["accuracy"][name]) for name in REFERENCES}
                for line in listed
            }
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{file} is damaged ({error!r}); delete it, it is made anew") from None

    def get(self, by: _Decides) -> dict[str, float] | None:
        return self._known.get(by)

    def put(self, by: _Decides, accuracy: dict[str, float]) -> None:
        self._known[by] = accuracy
        lines = [{"by": asdict(by), "accuracy": found} for by, found in self._known.items()]
        try:
            write_json(self._file, {"references": lines})
        except OSError as error:  # a study may lie where nothing can be written
            self._tell(f"references are not kept: {self._file} cannot be written ({error.strerror})")
