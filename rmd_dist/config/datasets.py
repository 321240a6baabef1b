"""What data sets are called: known ones by name, own images after their folder or table."""

from __future__ import annotations

import re
from pathlib import Path

SMALL = ("cifar10", "cifar100", "digits")
"""Data sets that are known by name, whose images are small; all others are somebody's own."""

_SAYS_NOTHING = ("labels", "metadata", "train", "images", "data", "index")  # names of tables


def dataset_name(dataset: str) -> str:
    """The short name of what `dataset` names, by which runs, manifests and betons go.

    Of a folder or table it is the last part of its path, in plain letters; of a table called `labels` or the
    like it is that of its folder.
    """
    place = Path(dataset)
    if dataset in SMALL or not place.exists():
        return dataset
    whole = place.resolve()
    text = whole.stem if whole.is_file() else whole.name
    if whole.is_file() and text.lower() in _SAYS_NOTHING:
        text = whole.parent.name
    return re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_-").lower()[:60] or "images"
