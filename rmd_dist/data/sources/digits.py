"""scikit-learn's handwritten digits: small, and in need of no files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from rmd_dist.data.sources.base import DatasetInfo, Samples, Split
from rmd_dist.errors import ConfigError


class Digits:
    """scikit-learn's 1797 handwritten digits: 1437 to train on, 360 to test, as 16 x 16 RGB.

    Every fifth image in order of class is a test image, so that each class gives its share. Pixels
    0..16 become 0..255.
    """

    info = DatasetInfo(
        name="digits",
        classes=tuple("0123456789"),
        image_size=16,
        mean=(0.3058, 0.3058, 0.3058),
        std=(0.3188, 0.3188, 0.3188),
        train_count=1437,
        test_count=360,
    )
    needs_files = False

    def is_here(self, root: Path, source: Path | None) -> bool:  # noqa: ARG002
        """Always: scikit-learn brings them."""
        return True

    def load(self, split: Split, root: Path, source: Path | None) -> Samples:  # noqa: ARG002
        """One split. Raises ConfigError if a `source` is given."""
        if source is not None:
            self.sha256(source)
        from sklearn.datasets import load_digits

        bunch = load_digits()
        held_out = np.zeros(len(bunch.target), dtype=bool)
        held_out[np.argsort(bunch.target, kind="stable")[::5]] = True
        chosen = held_out if split == "test" else ~held_out
        grey = _double(bunch.images[chosen].astype(np.int64))  # 0..256, sixteenths
        images = np.repeat(((grey * 255 + 128) // 256).astype(np.uint8)[..., None], 3, axis=-1)
        labels = bunch.target[chosen].astype(np.int64)
        digest = hashlib.sha256(bunch.images.tobytes() + bunch.target.astype("<i8").tobytes())
        return Samples(
            np.ascontiguousarray(images), labels, "sklearn.datasets.load_digits", digest.hexdigest()
        )

    def sha256(self, source: Path) -> NoReturn:
        """Always a ConfigError: there is no archive to name."""
        raise ConfigError(f"digits come with scikit-learn and take no source, got {source}; leave it out")


DIGITS = Digits()


def _double(images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """16 times the images (N, H, W) at twice their size, bilinear between pixel centres, in whole numbers."""
    for _ in ("width", "height"):
        before = np.concatenate([images[..., :1], images[..., :-1]], axis=-1)
        after = np.concatenate([images[..., 1:], images[..., -1:]], axis=-1)
        doubled = np.stack([3 * images + before, 3 * images + after], axis=-1)
        images = doubled.reshape(*images.shape[:-1], -1).swapaxes(1, 2)
    return images
