"""Data sources by name: each is defined in one file here and listed in `SOURCES`, nowhere else."""

from __future__ import annotations

from rmd_dist.data.sources.base import DataSource
from rmd_dist.data.sources.cifar import CIFAR10, CIFAR100
from rmd_dist.data.sources.digits import DIGITS

SOURCES: dict[str, DataSource] = {source.info.name: source for source in (CIFAR10, CIFAR100, DIGITS)}
