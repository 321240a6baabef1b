"""CIFAR-10, CIFAR-100 (official python archives) and scikit-learn's digits as arrays of samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from rmd_dist.config import ConfigError
from rmd_dist.data import cifar
from rmd_dist.data.classes import CIFAR10_CLASSES, CIFAR100_CLASSES, DIGITS_CLASSES

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading it."""

    name: str
    classes: tuple[str, ...]
    image_size: int
    """Height and width in pixels."""
    mean: tuple[float, float, float]
    """Mean of each colour of the training images, in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of each colour of the training images, in units of 255."""
    train_count: int
    """Images of the complete training split; an archive may hold fewer."""
    test_count: int

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def count(self, split: str) -> int:
        """Images of the complete split."""
        return self.train_count if split == "train" else self.test_count


DATASET_INFO: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo(
        name="cifar10",
        classes=CIFAR10_CLASSES,
        image_size=cifar.SIZE,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        train_count=cifar.COUNTS["train"],
        test_count=cifar.COUNTS["test"],
    ),
    "cifar100": DatasetInfo(
        name="cifar100",
        classes=CIFAR100_CLASSES,
        image_size=cifar.SIZE,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        train_count=cifar.COUNTS["train"],
        test_count=cifar.COUNTS["test"],
    ),
    "digits": DatasetInfo(
        name="digits",
        classes=DIGITS_CLASSES,
        image_size=16,
        mean=(0.3058, 0.3058, 0.3058),
        std=(0.3188, 0.3188, 0.3188),
        train_count=1437,
        test_count=360,
    ),
}


@dataclass(frozen=True)
class Samples:
    """One split in memory."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3), C-contiguous."""
    labels: npt.NDArray[np.int64]
    """(N,), the given labels."""
    source: str = "array"
    """Where they came from."""
    source_sha256: str = ""
    """SHA-256 of the archive (of names and contents of an unpacked folder's files)."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[::3] != (n, 3):
            found = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"images must be uint8 ({n}, H, W, 3), got {found}")
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise ValueError(f"labels must be int64 (N,), got {self.labels.dtype} {self.labels.shape}")
        if not self.images.flags.c_contiguous:
            raise ValueError("images must be C-contiguous")

    def sha256(self) -> str:
        """SHA-256 of shape, images and labels: equal for equal samples, whatever they were read from."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(self.images.data)
        digest.update(self.labels.astype("<i8").data)
        return digest.hexdigest()


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
    """DATASET_INFO[name]; ConfigError with the allowed names when there is none."""
    if name not in DATASET_INFO:
        raise ConfigError(f"dataset {name!r} is unknown; choose one of {', '.join(DATASET_INFO)}")
    return DATASET_INFO[name]


def load_samples(name: str, split: Split, root: Path, source: Path | None = None) -> Samples:
    """Read one split of `name` into memory.

    `source` is an official python archive, its unpacked folder, or a folder that holds either; None:
    the archive in `root`, else torchvision's download into `root`. Archives with fewer images than the
    official ones are fine. Raises ConfigError with the remedy when the source is missing, empty,
    damaged or of another data set.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    if dataset_info(name).name == "digits":
        _refuse_source(source)
        return _load_digits(split)
    place = cifar.find(name, Path(root), source)
    images, labels = cifar.load(name, split, place)
    return Samples(images, labels, str(place), cifar.sha256(name, place))


def source_sha256(name: str, source: Path) -> str:
    """SHA-256 of a given source, as `load_samples` reports it."""
    if dataset_info(name).name == "digits":
        _refuse_source(source)
    return cifar.sha256(name, cifar.find(name, Path(), source))


def _refuse_source(source: Path | None) -> None:
    if source is not None:
        raise ConfigError(f"digits come with scikit-learn and take no source, got {source}; leave it out")


def _load_digits(split: Split) -> Samples:
    """scikit-learn's 1797 handwritten digits: 1437 to train on, 360 to test, as 16 x 16 RGB.

    Every fifth image in order of class is a test image, so that each class gives its share. Pixels
    0..16 become 0..255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    held_out = np.zeros(len(bunch.target), dtype=bool)
    held_out[np.argsort(bunch.target, kind="stable")[::5]] = True
    chosen = held_out if split == "test" else ~held_out
    grey = _double(bunch.images[chosen].astype(np.int64))  # 0..256, sixteenths
    images = np.repeat(((grey * 255 + 128) // 256).astype(np.uint8)[..., None], 3, axis=-1)
    labels = bunch.target[chosen].astype(np.int64)
    digest = hashlib.sha256(bunch.images.tobytes() + bunch.target.astype("<i8").tobytes())
    return Samples(np.ascontiguousarray(images), labels, "sklearn.datasets.load_digits", digest.hexdigest())


def _double(images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """16 times the images (N, H, W) at twice their size, bilinear between pixel centres, in whole numbers."""
    for _ in ("width", "height"):
        before = np.concatenate([images[..., :1], images[..., :-1]], axis=-1)
        after = np.concatenate([images[..., 1:], images[..., -1:]], axis=-1)
        doubled = np.stack([3 * images + before, 3 * images + after], axis=-1)
        images = doubled.reshape(*images.shape[:-1], -1).swapaxes(1, 2)
    return images
