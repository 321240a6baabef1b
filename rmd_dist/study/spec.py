"""What a study is: a YAML file of a table's losses, methods, noise, seeds and settings.

A file may build on others (`extends: table1.yaml`, or a list, relative to it) and then holds only what
differs: groups of keys are merged, everything else is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.cli import from_dict
from rmd_dist.config.convert import flatten
from rmd_dist.config.fields import facts_of
from rmd_dist.config.text import read_yaml
from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.noise import PROTOCOLS
from rmd_dist.data.sources import SOURCES
from rmd_dist.errors import ConfigError
from rmd_dist.files import expanded
from rmd_dist.losses import LOSSES

MAX_PARENTS = 8  # of a chain of `extends`

METHODS: dict[str, dict[str, Any]] = {"": {"K": 0}, "+RMDNet": {"K": 1}}


@dataclass
class Tuning:
    """The search for K, log-spaced coarsely between two bounds, then finely around the best; or for a row."""

    among: Literal["K", "methods"] = "K"
    """What is chosen: a value of K on a grid of its own, or one of the table's `methods`."""

    low: float = 1e-4
    """Smallest K above 0."""

    high: float = 2.0
    """Largest K."""

    coarse: int = 6
    """Values of the coarse grid, both bounds included; K = 0 is always tried beside them."""

    fine: int = 3
    """Values between the best and each of its neighbours."""

    select: Literal["validation/accuracy_noisy", "test/accuracy"] = "validation/accuracy_noisy"
    """What the choice goes by: held-out noisy labels, or an oracle that reads the test set."""

    prune: bool = True
    """Stop a run whose accuracy falls below the median of the earlier runs at the same step."""

    prune_after: float = 0.3
    """Share of training during which no run is stopped."""

    prune_margin: float = 0.02
    """How far below the median."""


@dataclass
class Embedding:
    """Figures 5 to 7: t-SNE of the features of training samples of two classes."""

    classes: tuple[str, str] = ("ship", "truck")
    """The classes, by name; samples are chosen by the label that was given."""

    samples: int = 1000
    """At most so many samples of each class."""

    perplexity: float = 30.0
    """Of t-SNE."""


@dataclass
class StudySpec:
    """One table of a study: a grid of distillation runs over a shared pretraining run of each data set."""

    name: str = ""
    """Name of the table, of letters, digits, - and _; unset: the file's."""

    title: str = ""
    """What the report writes above the table."""

    table: int | None = None
    """Number of the table of the paper whose figures are printed beside; unset: none."""

    layout: Literal["methods", "K"] = "methods"
    """`methods`: a row of each method, a column of each noise. `K`: one row of each K, with curves."""

    datasets: tuple[str, ...] = ("cifar10",)
    """Data sets, by name."""

    losses: tuple[str, ...] = ("ce",)
    """Classification losses, by name."""

    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(METHODS))
    """What is added to a loss's name -> keys of a distillation that it changes. The first is the baseline.

    K is a number, or a mapping by data set, loss or noise (`{nce_agce: 0.001, default: 1}`), also nested.
    """

    noise: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"symmetric": (0.4,)})
    """Noise protocol -> rates."""

    clean: bool = True
    """Train with CE on the clean labels too: the upper end of the noise gap."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training; each draws its own wrong labels."""

    pretrain: dict[str, Any] = field(default_factory=dict)
    """Keys of the pretraining runs that differ from the defaults (the paper's)."""

    distill: dict[str, Any] = field(default_factory=dict)
    """Keys of all distillation runs that differ from the defaults (the paper's)."""

    per_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Data set -> {pretrain: ..., distill: ...}, on top of the two above."""

    teachers: dict[str, str] = field(default_factory=dict)
    """Data set -> encoder file, relative to the YAML file, used instead of a pretraining run."""

    embedding: Embedding | None = None
    """Draw t-SNE of each method's features, and of the teacher's."""

    tune: Tuning | None = None
    """Search for K instead of running `methods`, or for the best of them: one data set, loss and noise."""


def load_spec(path: Path) -> StudySpec:
    """Read a study's YAML file. Raises ConfigError, one line, for whatever is wrong with it."""
    values = _read(path, MAX_PARENTS)
    spec: StudySpec = from_dict(StudySpec, values, str(path))
    spec.name = spec.name or path.stem
    _check(spec, path)
    return spec


def _read(path: Path, parents: int) -> dict[str, Any]:
    """The keys of a file merged into those of the file it extends."""
    try:
        values = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a study: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a study: give keys such as losses: [ce, gce]")
    parent = values.pop("extends", None)
    teachers = values.get("teachers")
    if isinstance(teachers, dict):  # what is not is told of by name below
        values["teachers"] = {n: str(path.parent / expanded(str(file))) for n, file in teachers.items()}
    if parent is not None and parents == 0:
        raise ConfigError(f"{path}: extends = {parent} goes round in a circle, or is too long a chain")
    merged: dict[str, Any] = {}
    for name in parent if isinstance(parent, list) else [parent] if parent is not None else []:
        merged = merge(merged, _read(path.parent / expanded(str(name)), parents - 1))
    return merge(merged, values)


def merge(base: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """`delta` on top of `base`: groups of keys are merged, everything else is replaced.

    A group whose keys are the choice itself (`methods`, `noise`) is replaced as a whole.
    """
    merged = dict(base)
    for key, value in delta.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both and key not in ("methods", "noise") else value
    return merged


def _check(spec: StudySpec, path: Path) -> None:
    """ConfigError for names that do not exist and choices that leave nothing to run."""
    if not all(c.isalnum() or c in "-_" for c in spec.name):
        raise ConfigError(f"{path}: name = {spec.name!r} must be of letters, digits, - and _")
    for key in ("datasets", "losses", "methods", "noise", "seeds"):
        if not getattr(spec, key):
            raise ConfigError(f"{path}: {key} is empty, so there is nothing to run; give at least one")
    for dataset in {*spec.datasets, *spec.per_dataset, *spec.teachers}:
        dataset_info(dataset, flatten(spec.distill).get("data.root", "data"))
    for loss in spec.losses:
        if loss not in LOSSES:
            raise ConfigError(f"{path}: losses: {loss!r} is not known; use some of {', '.join(LOSSES)}")
    for protocol in spec.noise:
        if protocol not in PROTOCOLS and not protocol.startswith("human:"):
            raise ConfigError(f"{path}: noise: {protocol!r} is not known; use some of {', '.join(PROTOCOLS)}")
    if not all(spec.noise.values()):
        raise ConfigError(f"{path}: noise has a protocol without a rate; give one, such as symmetric: [0.4]")
    for key in ("datasets", "losses", "seeds"):
        if len(set(values := getattr(spec, key))) < len(values):
            raise ConfigError(f"{path}: {key} has a value twice; each counts once")
    _check_settings(spec, path)
    for dataset, groups in spec.per_dataset.items():
        if unknown := set(groups) - {"pretrain", "distill"}:
            raise ConfigError(
                f"{path}: per_dataset.{dataset}.{min(unknown)} is not known; give pretrain or distill"
            )
    if (tune := spec.tune) and not (0 < tune.low < tune.high and tune.coarse >= 2 and tune.fine >= 0):
        raise ConfigError(
            f"{path}: tune needs 0 < low < high, coarse >= 2 and fine >= 0; got low {tune.low:g}, "
            f"high {tune.high:g}, coarse {tune.coarse}, fine {tune.fine}"
        )
    of_K = ("low", "high", "coarse", "fine")
    if tune and tune.among == "methods" and any(getattr(tune, key) != getattr(Tuning(), key) for key in of_K):
        raise ConfigError(
            f"{path}: tune.{', '.join(of_K)} are of the grid of K; leave them out among methods"
        )


def _check_settings(spec: StudySpec, path: Path) -> None:
    """ConfigError for settings that a run would refuse, or that the grid would overwrite."""
    settings = {"pretrain": spec.pretrain, "distill": spec.distill}
    settings |= {f"methods.{name}": delta for name, delta in spec.methods.items()}
    for dataset, groups in spec.per_dataset.items():
        settings |= {f"per_dataset.{dataset}.{stage}": delta for stage, delta in groups.items()}
    for where, delta in settings.items():
        if not isinstance(delta, dict):
            raise ConfigError(
                f"{path}: {where} = {delta!r} must be a group of keys, such as optim: {{lr: 0.1}}"
            )
        pretrain = where.endswith("pretrain")
        _check_K(delta.get("K", {}), spec, f"{path}: {where}.K")
        # K may be a mapping here, which is settled cell by cell.
        plain = {key: value for key, value in delta.items() if key != "K" or not isinstance(value, dict)}
        from_dict(PretrainConfig if pretrain else DistillConfig, plain, f"{path}: {where}")
        for key, facts in facts_of(DistillConfig).items():
            allowed = pretrain and key == "run.seed"  # one teacher, of a seed of its own
            if facts.study and key in flatten(delta) and not allowed:
                raise ConfigError(f"{path}: {where}.{key} is set by the study; use {facts.study}")


def _check_K(value: Any, spec: StudySpec, where: str) -> None:
    """ConfigError for a key of a mapping of K that is no data set, loss or noise."""
    rates = {f"{noise}{rate:g}" for noise, values in spec.noise.items() for rate in values}
    known = {"default", *SOURCES, *LOSSES, *PROTOCOLS, *spec.noise, *rates}
    for key, below in value.items() if isinstance(value, dict) else ():
        noise = str(key).rstrip("0123456789.")
        if key not in known and noise not in PROTOCOLS:
            raise ConfigError(f"{where}: {key!r} is no data set, loss, noise (symmetric0.2) or default")
        _check_K(below, spec, where)
