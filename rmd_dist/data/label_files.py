"""Labels in files of their own: read for the images of a data set, and written for them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.config.datasets import TABLES
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.images.listing import shown
from rmd_dist.data.images.table import records
from rmd_dist.errors import ConfigError, a_few, writing
from rmd_dist.files import regular_size, write_csv, write_npy

Ints = npt.NDArray[np.int64]

MAX_NPY_BYTES = 1 << 30

LEFT_OUT = -1
"""Label of an image that is neither trained on nor held out."""


def read_labels(file: Path, dataset: Dataset, *, may_be_absent: bool = False) -> Ints:
    """The labels (N,) that `file` gives the images of a split; what it does not name keeps its own.

    NPY: integers (N,), in the order of the split. CSV, TSV, JSON lines or parquet: a column `label`, of class
    names or numbers, and a column `path` (own images) or `index` (of the sample, from 0). An empty label
    there is LEFT_OUT, -1 in NPY: the image is to be left out. Raises ConfigError for other labels that are
    no classes, and images that the split does not have or that come twice; where the file names none of its
    images, too, unless they `may_be_absent`.
    """
    if file.suffix.lower() == ".npy":
        return _read_npy(file, dataset)
    if file.suffix.lower() not in TABLES:
        raise ConfigError(f"{file}: labels are read from .npy, {', '.join(TABLES)}; give one of these")
    labels, seen = dataset.labels.copy(), np.zeros(len(dataset), dtype=bool)
    by_path = _by_path(dataset)
    classes = _classes(dataset)
    for number, line in records(file, "label"):
        sample = _sample(line, by_path, len(dataset), f"{file}, line {number}")
        if sample is None:
            continue
        if seen[sample]:
            raise ConfigError(f"{file}, line {number} names an image that came before; give it one label")
        label = classes.get(line["label"]) if line["label"] else LEFT_OUT
        if label is None:
            raise ConfigError(
                f"{file}, line {number}: label {line['label']!r} is no class of {dataset.info.name}; its "
                f"classes are {a_few(dataset.info.classes)}"
            )
        labels[sample], seen[sample] = label, True
    if not seen.any() and not may_be_absent:
        raise ConfigError(f"{file} names none of the {len(dataset)} training images of {dataset.info.name}")
    return labels


def _by_path(dataset: Dataset) -> dict[bytes, int]:
    """Path -> sample; of samples in the test split, too, -1: a file of all labels may name them."""
    if dataset.files is None:
        return {}
    others = dict.fromkeys(dataset.files.others(), -1)
    return others | {path: k for k, path in enumerate(dataset.files.paths())}


def _classes(dataset: Dataset) -> dict[str, int]:
    """What a label may be called -> class: its name or, where no name is a number, its number."""
    names = {name: k for k, name in enumerate(dataset.info.classes)}
    numbered = any(name.isdecimal() for name in names)
    return names if numbered else {str(k): k for k in range(len(names))} | names


def _sample(line: dict[str, str], by_path: dict[bytes, int], count: int, where: str) -> int | None:
    """The sample that a line is about; None: one of another split."""
    if line.get("path") and by_path:
        path = os.path.normpath(os.fsencode(line["path"]))
        if path not in by_path:
            raise ConfigError(
                f"{where}: {shown(path)} is no image that was prepared; paths are as in index.parquet"
            )
        return None if by_path[path] < 0 else by_path[path]
    text = line.get("index", "")
    if not text:
        wanted = "path or index" if by_path else "index"
        raise ConfigError(f"{where} does not say which image it is about; add a column {wanted}")
    if not text.isdecimal() or int(text) >= count:
        raise ConfigError(f"{where}: index {text!r} is not in 0 to {count - 1}")
    return int(text)


def _read_npy(file: Path, dataset: Dataset) -> Ints:
    try:
        if regular_size(file) > MAX_NPY_BYTES:
            raise ValueError("it is too large")
        labels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read as NPY: {error!s:.200}") from error
    if labels.dtype.kind not in "iu" or labels.shape != (len(dataset),):
        raise ConfigError(
            f"{file} holds {labels.dtype} {labels.shape}; labels of {dataset.info.name} are integers of "
            f"shape ({len(dataset)},), in the order of its training images"
        )
    if labels.min() < LEFT_OUT or labels.max() >= dataset.info.num_classes:
        most = dataset.info.num_classes - 1
        raise ConfigError(f"{file} has labels outside 0 to {most}, and {LEFT_OUT} for images to leave out")
    whole: Ints = labels.astype(np.int64)
    return whole


def write_labels(file: Path, labels: Ints, dataset: Dataset) -> None:
    """Write labels (N,) as `read_labels` takes them: NPY, or CSV of path or index and the class's name.

    In a CSV the label of an image that is left out is empty.
    """
    with writing(file):
        if file.suffix.lower() == ".npy":
            write_npy(file, labels)
            return
        keys = [os.fsdecode(p) for p in dataset.files.paths()] if dataset.files else range(len(labels))
        header = ["path" if dataset.files else "index", "label"]
        names = ("" if k == LEFT_OUT else dataset.info.classes[k] for k in labels)
        write_csv(file, header, zip(keys, names, strict=True))
