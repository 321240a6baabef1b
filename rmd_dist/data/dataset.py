"""A split of a data set, ready for a loader, and what is known of data sets by their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.data.sources import find_source
from rmd_dist.data.sources.base import DatasetInfo, Samples, Split

__all__ = ["Dataset", "DatasetInfo", "Samples", "Split", "dataset_info", "load_samples"]


@dataclass(frozen=True)
class Dataset:
    """One split, ready for a loader: in a beton, or in memory."""

    info: DatasetInfo
    split: str
    labels: npt.NDArray[np.int64]
    """(N,), the given labels of all samples, by sample index."""
    beton: Path | None = None
    """Checked beton file; None for the memory loader."""
    images: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    """(N, H, W, 3), C-contiguous; None when the samples are in a beton."""
    sha256: str = ""
    """SHA-256 of the samples, see Samples.sha256; tells data of one name apart."""

    def __len__(self) -> int:
        return len(self.labels)


def dataset_info(name: str) -> DatasetInfo:
    """What is known of the data set `name`. Raises ConfigError with the known names when there is none."""
    return find_source(name).info


def load_samples(name: str, split: Split, root: Path, source: Path | None = None) -> Samples:
    """Read one split of `name` into memory.

    `source` is what the data set is read from, such as an official python archive or its folder; None: what
    is found in `root`, else a download into `root`. Raises ConfigError with the remedy when the source is
    missing, empty, damaged or of another data set.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    return find_source(name).load(split, Path(root), source)
