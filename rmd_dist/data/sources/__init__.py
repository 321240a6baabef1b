"""Data sources by name: each is defined in one file here and listed in `SOURCES`, nowhere else."""

from __future__ import annotations

from rmd_dist.data.sources.base import DataSource
from rmd_dist.data.sources.cifar import CIFAR10, CIFAR100
from rmd_dist.data.sources.digits import DIGITS
from rmd_dist.errors import ConfigError

SOURCES: dict[str, DataSource] = {source.info.name: source for source in (CIFAR10, CIFAR100, DIGITS)}


def find_source(name: str) -> DataSource:
    """The data source `name`. Raises ConfigError with the known names when there is none."""
    if name not in SOURCES:
        raise ConfigError(f"dataset {name!r} is unknown; choose one of {', '.join(SOURCES)}")
    return SOURCES[name]
