"""What the runs of a study were made of, opened again: configuration, images, splits."""

from __future__ import annotations

from pathlib import Path

from rmd_dist.config import DistillConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.splits import Splits
from rmd_dist.errors import ConfigError


def run_config(run: Path) -> DistillConfig:
    """The configuration of a student's run folder. Raises ConfigError if there is none."""
    from rmd_dist.config.cli import parse

    return parse(DistillConfig, ["--config", str(run / "config.yaml")])


def open_data(config: DistillConfig) -> tuple[Dataset, Dataset, Splits]:
    """(training split, test split, which of their samples a run uses).

    Raises ConfigError if they are not there: nothing is downloaded.
    """
    from rmd_dist.tasks.parts import build_data

    _require_data(config)
    return build_data(config, config.validation)


def _require_data(config: DistillConfig) -> None:
    """ConfigError where reading the data set would first fetch it or write a beton."""
    from rmd_dist.data.dataset import find_source
    from rmd_dist.data.images.source import ImageFiles
    from rmd_dist.data.sources.beton import beton_path

    data, root = config.data, Path(config.data.root)
    data_source = find_source(data.dataset, root)
    if isinstance(data_source, ImageFiles):
        data_source.info(root)
        return
    if not data_source.needs_files:
        return
    given = Path(data.source) if data.source else None
    betons = all(beton_path(root, data.dataset, split).exists() for split in ("train", "test"))
    if not betons and (data.loader == "ffcv" or not data_source.is_here(root, given)):
        raise ConfigError(f"the data of {data.dataset} that its runs used are not where they were")
