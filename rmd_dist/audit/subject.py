"""What is audited: images, the labels they have, their names, and which of them are equal."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rmd_dist.config.datasets import TABLES
from rmd_dist.config.schema import NoiseConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.label_files import LEFT_OUT, read_labels
from rmd_dist.data.labels import labels_sha256, make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.sources.beton import check_beton, read_images
from rmd_dist.errors import ConfigError

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """N images in a fixed order: of own images those of both splits, of others the training images."""

    datasets: tuple[Dataset, ...]
    given: Ints
    """(N,), the labels to be audited; LEFT_OUT for images without one."""
    clean: Ints | None
    """(N,), the true ones, where they are known."""
    protocol: str
    """Where the labels come from, as `noise.protocol`."""

    def __len__(self) -> int:
        return len(self.given)

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.datasets[0].info.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by class number."""
        return tuple(self.datasets[0].info.classes)

    @property
    def own(self) -> bool:
        """Whether the images have files, by which they are named."""
        return self.datasets[0].files is not None

    @functools.cached_property
    def rows(self) -> Ints:
        """(n,), the numbers of the images that have a label."""
        return np.flatnonzero(self.given != LEFT_OUT)

    @functools.cached_property
    def paths(self) -> list[str]:
        """(N,), relative to the folder or table; empty where images have no files."""
        found: list[str] = []
        for dataset in self.datasets:
            files = dataset.files
            found += [os.fsdecode(path) for path in files.paths()] if files else [""] * len(dataset)
        return found

    @functools.cached_property
    def first_equal(self) -> Ints:
        """(N,), the number of the first image of equal content: an image's own where it is the first."""
        if not self.own:
            return np.arange(len(self))
        contents = [digest for d in self.datasets if d.files for digest in d.files.digests()]
        first: dict[bytes, int] = {}
        return np.array([first.setdefault(c, k) for k, c in enumerate(contents)], np.int64)

    @functools.cached_property
    def conflicts(self) -> npt.NDArray[np.bool_]:
        """(N,), whether images of equal content have different labels."""
        low, high = np.full(len(self), np.iinfo(np.int64).max), np.full(len(self), -1, np.int64)
        np.minimum.at(low, self.first_equal[self.rows], self.given[self.rows])
        np.maximum.at(high, self.first_equal[self.rows], self.given[self.rows])
        found: npt.NDArray[np.bool_] = (low < high)[self.first_equal]
        return found

    def duplicate_of(self, index: int) -> str:
        """What the first image of equal content is called; "" for the first itself."""
        first = int(self.first_equal[index])
        return "" if first == index else self.title(first)

    def title(self, index: int) -> str:
        """What an image is called: its path, or its number."""
        return self.paths[index] or f"image {index}"

    def splits(self) -> list[str]:
        """(N,), which split each image is in."""
        return [dataset.split for dataset in self.datasets for _ in range(len(dataset))]

    def pixels(self, index: int) -> Pixels:
        """Image `index`, (H, W, 3) RGB."""
        for dataset in self.datasets:
            if index < len(dataset):
                return dataset.store.load(index) if dataset.store else _images(dataset)[index]
            index -= len(dataset)
        raise IndexError(index)

    def labels_sha256(self) -> str:
        """SHA-256 of the labels, as a run's manifest has it for the training images."""
        return labels_sha256(self.given[: len(self.datasets[0])])

    def fingerprint(self) -> str:
        """32 hex digits, a letter first, of what a decision about an image's label refers to."""
        known = [self.name, *self.classes, *(d.sha256 for d in self.datasets)]
        digest = hashlib.sha256("\n".join(known).encode("utf-8", "surrogateescape"))
        digest.update(self.given.astype("<i8").tobytes())
        return f"a{digest.hexdigest()[:31]}"  # a spreadsheet would take digits for a number


@functools.lru_cache(maxsize=2)
def _read(beton: Path) -> Pixels:
    return read_images(check_beton(beton))


def _images(dataset: Dataset) -> Pixels:
    if dataset.images is not None:
        return dataset.images
    assert dataset.beton is not None
    return _read(dataset.beton)


def open_subject(name: str, root: Path, source: Path | None, loader: str, noise: NoiseConfig) -> Subject:
    """The images of a data set and the labels that `noise` says: their own, with noise, or of a file.

    Raises ConfigError if the data set has no labels, or the file does not fit.
    """

    def split_of(split: str) -> Dataset:
        return open_dataset(name, split, root=root, source=source, loader=loader)  # type: ignore[arg-type]

    train = split_of("train")
    file = Path(noise.labels) if noise.labels else None
    labels = make_labels(train, noise.protocol, noise.rate, noise.seed, root, file)
    if train.files is None:
        return Subject((train,), labels.given, labels.clean, noise.protocol)
    test = split_of("test")
    named = file is not None and file.suffix.lower() in TABLES
    held_out = read_labels(file, test, may_be_absent=True) if file and named else test.labels
    clean = None if labels.clean is None else np.concatenate([labels.clean, test.labels])
    return Subject((train, test), np.concatenate([labels.given, held_out]), clean, noise.protocol)


def check_classes(subject: Subject) -> None:
    """ConfigError where nothing can be audited."""
    if len(np.unique(subject.given[subject.rows])) < 2:
        raise ConfigError(
            f"all labels of {subject.name} are of one class: there is nothing to confuse them with"
        )
