"""A split of a data set, ready for a loader, and what is known of data sets by their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.config.datasets import name_of_place
from rmd_dist.data.images.source import ImageFiles, SampleFiles
from rmd_dist.data.images.store import Store
from rmd_dist.data.sources import SOURCES
from rmd_dist.data.sources.base import DatasetInfo, DataSource, Samples, Split
from rmd_dist.errors import ConfigError

__all__ = [
    "Dataset",
    "DatasetInfo",
    "Samples",
    "Split",
    "dataset_info",
    "find_source",
    "load_samples",
]


@dataclass(frozen=True)
class Dataset:
    """One split, ready for a loader: in a beton, or in memory."""

    info: DatasetInfo
    split: str
    labels: npt.NDArray[np.int64]
    """(N,), the given labels of all samples, by sample index; -1 where there are none."""
    beton: Path | None = None
    """Checked beton file, the first of its shards; None for the memory loader."""
    images: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    """(N, H, W, 3), C-contiguous; None when the samples are in a beton."""
    sha256: str = ""
    """SHA-256 of the samples, see Samples.sha256; tells data of one name apart."""
    store: Store | None = field(default=None, repr=False)
    """Images that each have a size of their own; None: all have `info.image_size`."""
    files: SampleFiles | None = field(default=None, repr=False)
    """Which file each sample is, of own images."""

    def __len__(self) -> int:
        return len(self.labels)


def find_source(dataset: str, root: Path) -> DataSource | ImageFiles:
    """What `dataset` names: a known data set, a folder or table of images, or one prepared below `root`.

    Raises ConfigError with what it may be when it is none of them.
    """
    if dataset in SOURCES:
        return SOURCES[dataset]
    place = Path(dataset)
    if place.exists():
        return ImageFiles.at(place)
    prepared = ImageFiles(dataset, None)
    if "/" not in dataset and prepared.is_prepared(root):
        return prepared
    name = name_of_place(place)
    hint = f"; what was prepared of {name} is there: give --dataset {name}"
    hint = hint if ImageFiles(name, None).is_prepared(root) else ""
    raise ConfigError(
        f"dataset {dataset!r} is unknown: it is none of {', '.join(SOURCES)}, no folder or table of images, "
        f"and has not been prepared in {root} (--data-root){hint}"
    )


def dataset_info(dataset: str, root: str | Path = "data") -> DatasetInfo:
    """What is known of a data set without reading its images.

    Raises ConfigError where there is none of that name, or own images have not been prepared.
    """
    source = find_source(dataset, Path(root))
    return source.info(Path(root)) if isinstance(source, ImageFiles) else source.info


def load_samples(name: str, split: Split, root: Path, source: Path | None = None) -> Samples:
    """Read one split of the known data set `name` into memory.

    `source` is what the data set is read from, such as an official python archive or its folder; None: what
    is found in `root`, else a download into `root`. Raises ConfigError with the remedy when the source is
    missing, empty, damaged or of another data set.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if name not in SOURCES:
        raise ConfigError(f"dataset {name!r} is unknown; choose one of {', '.join(SOURCES)}")
    return SOURCES[name].load(split, Path(root), source)
