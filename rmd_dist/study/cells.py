"""The cells of a study: every run that its tables need, each once, with its whole configuration."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmd_dist.config import AnyConfig, DistillConfig, PretrainConfig, is_path, needs_teacher, starts_from_file
from rmd_dist.config.checks import validate
from rmd_dist.config.cli import from_dict
from rmd_dist.config.convert import flatten, later_defaults
from rmd_dist.config.fields import facts_of
from rmd_dist.data.dataset import dataset_info
from rmd_dist.errors import ConfigError
from rmd_dist.files import sha256
from rmd_dist.models.export import WEIGHTS
from rmd_dist.runs.folder import default_name
from rmd_dist.study.spec import StudySpec, merge

CLEAN = "clean labels"
"""Method of the cell that the noise gap is measured against."""


@dataclass(frozen=True)
class Cell:
    """One run of a study. `key` names it, its run folder and its attempts, and ends in its digest."""

    key: str
    config: AnyConfig
    """Complete, but for where the study is: run.root and, of a student, the teacher's path."""
    needs: str | None = None
    """Key of the pretraining cell whose encoder is this one's teacher."""

    @property
    def stage(self) -> str:
        """`pretrain` or `distill`."""
        return self.config.stage

    def run_folder(self, study: Path) -> Path:
        """Where its run is in the folder of a study."""
        return study / "runs" / self.stage / self.key

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        data, optim = self.config.data, self.config.optim
        count = data.train_samples or dataset_info(data.dataset, data.root).train_count
        if isinstance(self.config, DistillConfig):
            count -= round(self.config.validation * count)
        steps = count // data.batch_size * optim.epochs
        return min(steps, self.config.run.max_steps or steps)

    @property
    def digest(self) -> str:
        """Hex digest of what is computed; cells of equal digest are the same run."""
        facts = facts_of(type(self.config))
        matters = {
            key: value
            for key, value in flatten(self.config).items()
            if key not in facts or not facts[key].free or facts[key].reported
        }
        # Cells that were run before there was such a key keep their digest.
        for key, default in later_defaults(type(self.config)).items():
            if matters.get(key) == default:
                del matters[key]
        matters |= {"needs": self.needs}
        files = [key for key in ("teacher", "teacher_weights") if is_path(matters.get(key))]
        files += ["student_init"] if starts_from_file(matters.get("student_init")) else []
        matters |= {key: content(str(matters[key])) for key in files}  # wherever they lie
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """Where a table shows a cell."""

    dataset: str
    loss: str
    method: str
    """What is added to the loss's name; the spec's first is the baseline. CLEAN: trained on clean labels."""
    noise: str
    rate: float
    K: float
    seed: int
    key: str

    @property
    def label(self) -> str:
        """As the paper writes it: CE+RMDNet, NCE_AGCE."""
        return self.loss.upper() + self.method


@dataclass(frozen=True)
class Table:
    """A spec, and which cell each place of its table shows."""

    spec: StudySpec
    entries: tuple[Entry, ...]


def plan(specs: Sequence[StudySpec]) -> tuple[list[Cell], list[Table]]:
    """All cells that `specs` need, pretraining first, cells they share once; and their tables.

    Raises ConfigError for settings that cannot work, naming the spec and the cell.
    """
    cells: dict[str, Cell] = {}

    def add(cell: Cell) -> str:
        # With the digest a key says the same in whatever order, and with whatever else, tables are planned.
        named = replace(cell, key=f"{cell.key}-{cell.digest[:6]}")
        return cells.setdefault(named.key, named).key

    tables: list[Table] = []
    for spec in specs:
        if any(table.spec.name == spec.name for table in tables):
            raise ConfigError(f"two tables are called {spec.name}; give one another name")
        builder = _Builder(spec)
        entries = []
        for dataset in spec.datasets:
            teacher = builder.pretraining(dataset)
            needs = add(teacher) if teacher else None
            for entry, cell in builder.students(dataset, needs):
                entries.append(replace(entry, key=add(cell)))
        tables.append(Table(spec, tuple(entries)))
    ordered = sorted(cells.values(), key=lambda cell: cell.stage != "pretrain")
    return ordered, tables


class _Builder:
    """Cells of one spec."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self._cache: dict[str, DistillConfig] = {}

    def pretraining(self, dataset: str) -> Cell | None:
        """The pretraining run of a data set; None where an encoder file is given or no method needs one."""
        spec = self.spec
        if dataset in spec.teachers or not any(self._taught(dataset, m) for m in spec.methods.values()):
            return None
        values = self._settings("pretrain", dataset)
        config = validated(PretrainConfig, values, f"{spec.name}: pretrain")
        return Cell(f"{dataset}-{config.objective}-seed{config.run.seed}", config)

    def students(self, dataset: str, needs: str | None) -> Iterator[tuple[Entry, Cell]]:
        """Each place of the table with its cell, the runs on clean labels first."""
        spec = self.spec
        for seed in spec.seeds if spec.clean else ():
            cell = self._student(dataset, "ce", {"K": 0}, "none", 0.0, seed, needs)
            yield Entry(dataset, "ce", CLEAN, "none", 0.0, 0.0, seed, cell.key), cell
        for method, delta in spec.methods.items():
            for loss in spec.losses:
                for noise, rates in spec.noise.items():
                    for rate in rates:
                        for seed in spec.seeds:
                            cell = self._student(dataset, loss, delta, noise, rate, seed, needs)
                            assert isinstance(cell.config, DistillConfig)
                            entry = Entry(dataset, loss, method, noise, rate, cell.config.K, seed, cell.key)
                            yield entry, cell

    def _student(
        self,
        dataset: str,
        loss: str,
        delta: dict[str, Any],
        noise: str,
        rate: float,
        seed: int,
        needs: str | None,
    ) -> Cell:
        where = f"{self.spec.name}: {loss}, {noise}"
        values = merge(self._settings("distill", dataset), delta)
        values["K"] = choose(values.get("K", 1.0), (f"{noise}{rate:g}", noise, loss, dataset), where)
        config = copy.deepcopy(self._parsed(loss, values, where))
        config.noise.protocol, config.noise.rate, config.noise.seed = noise, rate, seed
        config.run.seed = seed
        check(config, where)
        file = self.spec.teachers.get(dataset)
        taught = config.teacher is None and needs_teacher(config)
        if taught and file:
            config.teacher = str(Path(file).resolve())
        if not needs_teacher(config):  # no part of it, and would tell equal cells apart
            config.teacher = config.teacher_weights = config.teacher_image_size = None
        if starts_from_file(config.student_init):
            config.student_init = str(Path(config.student_init).resolve())
        return Cell(_short(default_name(config), config), config, needs if taught and not file else None)

    def _parsed(self, loss: str, values: dict[str, Any], where: str) -> DistillConfig:
        """`values` as a typed config; parsed once for equal values, which is slow."""
        key = json.dumps([loss, values], sort_keys=True, default=str)
        if key not in self._cache:
            self._cache[key] = validated(DistillConfig, values | {"loss": loss}, where)
        return self._cache[key]

    def _taught(self, dataset: str, delta: dict[str, Any]) -> bool:
        """Whether a method needs a pretrained teacher."""
        values = merge(self._settings("distill", dataset), delta)
        return values.get("teacher") is None and (
            any(_leaves(values.get("K", 1.0)))
            or values.get("student_init") == "teacher"
            or values.get("targets", {}).get("kind") == "relations"
        )

    def _settings(self, stage: str, dataset: str) -> dict[str, Any]:
        own = self.spec.per_dataset.get(dataset, {}).get(stage, {})
        return merge(merge(getattr(self.spec, stage), own), {"data": {"dataset": dataset}})


@functools.cache
def content(file: str) -> str:
    """SHA-256 of an encoder file. Raises ConfigError if there is none."""
    path = Path(file)
    try:
        return sha256(path / WEIGHTS if path.is_dir() else path)
    except OSError as error:
        raise ConfigError(
            f"encoder {file} cannot be read ({error.strerror}); give another file, or pretrain teachers anew "
            "by rmd study --fresh-teachers"
        ) from error


def _leaves(value: Any) -> list[Any]:
    """What a nested mapping holds in the end."""
    return [leaf for v in value.values() for leaf in _leaves(v)] if isinstance(value, dict) else [value]


def choose(value: Any, names: Sequence[str], where: str) -> float:
    """A number, or of a mapping what stands at the first of `names` in it, else at `default`; repeatedly.

    Raises ConfigError where the mapping has none of them.
    """
    while isinstance(value, dict):
        found = [name for name in (*names, "default") if name in value]
        if not found:
            raise ConfigError(f"{where}: K has none of {', '.join(names)} and no default; add one of them")
        value = value[found[0]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where}: K = {value!r} is not a number")
    return float(value)


def validated(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    """A typed and checked config. Raises ConfigError that begins with `where`."""
    return check(from_dict(cls, values, where), where)


def check(config: Any, where: str) -> Any:
    """`config`, if its values can work; else ConfigError that begins with `where`."""
    try:
        return validate(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _short(name: str, config: AnyConfig) -> str:
    """The default name of a run without the model's, which all cells of a data set share."""
    return name.replace(f"-{config.model.name}", "", 1)
