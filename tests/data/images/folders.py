"""Small folders of images, made of whole cloth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """A smooth (H, W, 3) uint8 image, another one for each seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def content(seed: int, height: int = 20, width: int = 24, kind: str = "PNG") -> bytes:
    """The file of such an image."""
    file = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).save(file, kind)
    return file.getvalue()


def write(path: Path, seed: int, height: int = 20, width: int = 24) -> Path:
    """Such an image at `path`, whose folders are made; JPEG or PNG by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(seed, height, width, "JPEG" if path.suffix == ".jpg" else "PNG"))
    return path


def write_classes(root: Path, classes: dict[str, int], first: int = 0) -> Path:
    """`classes`: folder below `root` -> how many images of varying sizes are in it."""
    seed = first
    for name, count in classes.items():
        for k in range(count):
            write(root / name / f"{k:03d}.png", seed, 12 + seed % 9, 10 + seed % 13)
            seed += 1
    return root
