"""What a data source is: a few facts about a data set, and a way to read its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set without reading its images."""

    name: str
    classes: tuple[str, ...]
    image_size: int
    """Height and width in pixels of what models get."""
    mean: tuple[float, float, float]
    """Mean of each colour of the training images, in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of each colour of the training images, in units of 255."""
    train_count: int
    """Images of the complete training split; an archive may hold fewer."""
    test_count: int
    crop_pct: float = 1.0
    """Share of the shorter side that an evaluation's central crop has (timm's crop_pct)."""
    varied: bool = False
    """Whether each image has a size of its own; else they are stored at `image_size`."""
    stored: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """How own images were stored (StoreOptions), by which others are read to be predicted."""
    confusions: Mapping[str, Mapping[int, int]] = field(default_factory=dict, repr=False, hash=False)
    """What each class is taken for, by the noise protocol that needs to know what classes mean."""

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def count(self, split: str) -> int:
        """Images of the complete split."""
        return self.train_count if split == "train" else self.test_count


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


class DataSource(Protocol):
    """One data set: what is known of it, and how its samples are read.

    `source`, in each method, is the archive or folder that the user named, None if none was; `root` is
    the folder where a source looks by itself, and where it puts what it downloads.
    """

    @property
    def info(self) -> DatasetInfo:
        """Classes, image size and the like; a source may find them by reading."""

    @property
    def needs_files(self) -> bool:
        """False where the samples come with an installed package."""

    def is_here(self, root: Path, source: Path | None) -> bool:
        """Whether `load` would find its files without downloading them."""

    def load(self, split: Split, root: Path, source: Path | None) -> Samples:
        """One split, read into memory. Raises ConfigError with the remedy when it cannot be."""

    def sha256(self, source: Path) -> str:
        """The `source_sha256` of the samples that `source` holds. Raises ConfigError as `load` does."""
