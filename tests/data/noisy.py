"""Labels of made-up data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.data.dataset import Dataset, DatasetInfo, dataset_info
from rmd_dist.data.labels import Labels, make_labels


def info_of(classes: int) -> DatasetInfo:
    """CIFAR-10 for 10 classes, CIFAR-100 for 100, else a data set whose classes mean nothing."""
    if classes in (10, 100):
        return dataset_info(f"cifar{classes}")
    names = tuple(str(c) for c in range(classes))
    return replace(dataset_info("digits"), name=f"{classes} classes", classes=names)


def noisy(
    labels: npt.ArrayLike,
    protocol: str,
    rate: float,
    seed: int,
    classes: int,
    dataset: str | None = None,
    root: str | Path = "data",
) -> Labels:
    """`make_labels` for the clean `labels` (N,) of `dataset`, or one of so many classes."""
    info = dataset_info(dataset) if dataset else info_of(classes)
    data = Dataset(info, "train", np.asarray(labels, dtype=np.int64))
    return make_labels(data, protocol, rate, seed, root)
