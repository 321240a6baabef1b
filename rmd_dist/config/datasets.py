"""What data sets are called: known ones by name, own images after their folder or table."""

from __future__ import annotations

import re
from pathlib import Path

SMALL = ("cifar10", "cifar100", "digits")
"""Data sets that are known by name, whose images are small; all others are somebody's own."""

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of tables of images."""

_SAYS_NOTHING = ("labels", "metadata", "train", "images", "data", "dataset", "index", "img")


def dataset_name(dataset: str) -> str:
    """The short name of what `dataset` names, by which runs, manifests and betons go.

    Of a folder or table it is the last part of its path that says something, which `labels` or `images` do
    not, in plain letters.
    """
    place = Path(dataset)
    return dataset if dataset in SMALL or not place.exists() else name_of_place(place)


def name_of_place(place: Path) -> str:
    """What images that lie at `place` are called, whether it is there or not."""
    whole = place.resolve()
    names = [
        whole.stem if whole.suffix.lower() in TABLES else whole.name,
        *(parent.name for parent in whole.parents),
    ]
    text = next((name for name in names if name and name.lower() not in _SAYS_NOTHING), names[0])
    name = re.sub(r"[^A-Za-z0-9-]+", "_", text).strip("_-").lower()[:60] or "images"
    return f"{name}_images" if name in SMALL else name
