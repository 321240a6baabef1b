"""From a folder or a table to a list of image files with labels and splits, in a fixed order.

    ROOT/class/**            ROOT/{train,val,test}/class/**          images in ROOT alone, without labels
    TABLE.csv (or .tsv, .jsonl, .parquet) with path, label and perhaps split; a folder that has metadata.csv

File names are bytes, as the file system has them; text only where people read it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config.datasets import TABLES
from rmd_dist.data.images.read import SUFFIXES
from rmd_dist.data.images.table import SPLIT_NAMES, Row, read_table
from rmd_dist.errors import ConfigError

TRAIN, TEST, UNUSED, UNDECIDED = 0, 1, 2, -1
"""Codes of a file's split; what is UNDECIDED goes by its content."""

METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)
_NAMED = 3  # examples in a message


@dataclass
class Listing:
    """Files in their order, before any of them has been opened."""

    root: Path
    """What their paths are relative to."""
    paths: list[bytes] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    """Of `classes`; -1: none."""
    splits: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes; -1: there is no such file."""
    times: list[int] = field(default_factory=list)
    """Of the last change, in nanoseconds."""
    classes: tuple[str, ...] = ()
    """By code point."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was seen beside them, for the report: hidden files, links, other files by suffix."""

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides what a preparation gives, but for the contents of the files."""
        digest = hashlib.sha256(repr((len(self), self.classes)).encode())
        digest.update(b"\0".join(self.paths))
        for numbers in (self.labels, self.splits, self.sizes, self.times):
            digest.update(_array(numbers).data)
        return digest.hexdigest()


def shown(name: bytes | str) -> str:
    """A file name for people to read: NFC, one line, whatever bytes it has."""
    import unicodedata

    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text))


def list_images(place: Path, class_level: int = 1) -> Listing:
    """The images that a folder holds or a table names.

    A folder's classes are its folders at `class_level` (1: the first) below the root or the split. Raises
    ConfigError, one line that says what was found and what is expected, where there is no image, or where
    a table names one path with two labels.
    """
    try:
        if place.is_file():
            return _of_table(place)
        if not place.is_dir():
            raise ConfigError(
                f"{place} does not exist; give a folder of images, or a table of path and label"
            )
        return _of_folder(place, class_level)
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error}") from error


def _of_folder(root: Path, class_level: int) -> Listing:
    top = {entry.name: entry for entry in os.scandir(root)}
    if tables := [name for name in METADATA if name in top]:
        return _of_table(root / tables[0])
    folders = {name for name, entry in top.items() if _is_folder(entry)}
    parts = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    if "train" in parts.values():
        described = [root / name / table for name in sorted(parts) for table in METADATA]
        if found := [table for table in described if table.is_file()]:
            return _of_tables(root, {table: parts[table.parent.name] for table in found})
    else:
        parts = {}
    listing, names = Listing(root), []
    for path, status in _walk(os.fsencode(root), listing.counts):
        folder = [*path.split(b"/")[:-1]]
        split = None
        if parts:
            split = parts.get(os.fsdecode(folder[0])) if folder else None
            if split is None:
                listing.counts["beside the folders of splits"] += 1
                continue
            folder = folder[1:]
        listing.paths.append(path)
        listing.splits.append(_split_code(split))
        listing.sizes.append(status.st_size)
        listing.times.append(status.st_mtime_ns)
        names.append(folder[class_level - 1] if len(folder) >= class_level else None)
    _refuse_empty(listing, f"{root} holds no image")
    if class_level > 1 and not any(names):
        raise ConfigError(
            f"{root}: class-level = {class_level}, but no image lies in so many folders; the first, "
            f"{shown(listing.paths[0])}, lies in {listing.paths[0].count(b'/')}"
        )
    if any(name is not None for name in names) and None in names:  # loose files beside folders of classes
        kept = [k for k, name in enumerate(names) if name is not None]
        listing.counts["above the folders of classes"] += len(names) - len(kept)
        rows: Any
        for rows in (listing.paths, listing.splits, listing.sizes, listing.times, names):
            rows[:] = [rows[k] for k in kept]
    return _with_classes(listing, [None if name is None else _class_name(name) for name in names])


def _class_name(name: bytes) -> str:
    """Text that JSON can hold; two names are equal if and only if their bytes are."""
    return name.decode("utf-8", "backslashreplace")


def _walk(root: bytes, counts: Counter[str]) -> Iterator[tuple[bytes, os.stat_result]]:
    """(path relative to `root`, status) of each image file, in the order of names, folder by folder.

    Links are followed: to a file that the walk meets anyway, or has met, not again; nor to a folder, which
    is what a loop comes to. Hidden files and folders and files of other suffixes are counted.
    """
    home, met = os.path.realpath(root), set[tuple[int, int]]()
    folders: list[bytes] = [b""]
    entered = {_identity(os.stat(root))}  # noqa: PTH116
    while folders:
        folder = folders.pop()
        below = []
        for entry in sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name):  # noqa: PTH118
            path = folder + entry.name
            linked = entry.is_symlink()
            if entry.name.startswith(b"."):
                counts["hidden"] += 1
                continue
            try:
                status = entry.stat()
            except OSError:
                counts["dead links"] += 1
                continue
            if stat.S_ISDIR(status.st_mode):
                if _identity(status) in entered:
                    counts["links to folders met before, loops among them"] += 1
                    continue
                entered.add(_identity(status))
                below.append(path + b"/")
            elif not stat.S_ISREG(status.st_mode) or not _is_image(entry.name):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                counts[f"other files: {shown(suffix) or 'no suffix'}"] += 1
            elif linked and (_identity(status) in met or _met_anyway(os.path.realpath(entry.path), home)):
                counts["links to images listed anyway"] += 1
            else:
                if linked:
                    met.add(_identity(status))
                yield path, status
        folders += reversed(below)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_image(name: bytes) -> bool:
    return os.fsdecode(os.path.splitext(name)[1]).lower() in SUFFIXES  # noqa: PTH122


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir()


def _met_anyway(target: bytes, home: bytes) -> bool:
    """Whether a walk of `home` comes to the file `target` by itself."""
    below = target[len(home) + 1 :] if target.startswith(home + b"/") else b""
    return _is_image(below) and not any(part.startswith(b".") for part in below.split(b"/"))


def _of_table(table: Path) -> Listing:
    return _of_tables(table.parent, {table: None})


def _of_tables(root: Path, tables: dict[Path, str | None]) -> Listing:
    """What tables name: paths are relative to each; `tables` has the split of each, None: its own column."""
    listing, names, place = Listing(root), list[str | None](), dict[bytes, int]()
    for table, split in tables.items():
        prefix = os.fsencode(table.parent.relative_to(root))
        for row in read_table(table):
            path = os.path.normpath(os.path.join(prefix, row.path))  # noqa: PTH118
            if path in place:
                before = names[place[path]]
                if before != row.label:
                    raise ConfigError(
                        f"{table}, line {row.number}: {shown(row.path)} has the label {row.label!r} here and "
                        f"{before!r} before; give each image one label"
                    )
                listing.counts["lines that repeat others"] += 1
                continue
            place[path] = len(names)
            names.append(row.label)
            listing.paths.append(path)
            listing.splits.append(_split_code(split or _split_of(row, table)))
            try:
                status = os.stat(os.path.join(os.fsencode(root), path))  # noqa: PTH116, PTH118
            except OSError:
                status = None
            regular = status is not None and stat.S_ISREG(status.st_mode)
            listing.sizes.append(status.st_size if status and regular else -1)
            listing.times.append(status.st_mtime_ns if status and regular else 0)
    first = next(iter(tables))
    _refuse_empty(listing, f"{first} names no image")
    if not any(size >= 0 for size in listing.sizes):
        raise ConfigError(
            f"{first} names {len(listing)} files, none of which exists (looked for "
            f"{root / os.fsdecode(listing.paths[0])}); paths are relative to the table"
        )
    if any(name is None for name in names) and any(names):
        line = names.index(None)
        raise ConfigError(
            f"{first}: {sum(name is None for name in names)} images have no label, such as "
            f"{shown(listing.paths[line])}; give all of them one, or leave the column out"
        )
    return _with_classes(listing, names)


def _split_of(row: Row, table: Path) -> str | None:
    if not row.split:
        return None
    split = SPLIT_NAMES.get(row.split.lower())
    if split is None:
        known = ", ".join(SPLIT_NAMES)
        raise ConfigError(f"{table}, line {row.number}: split {row.split!r} is unknown; use one of {known}")
    return split


def _split_code(split: str | None) -> int:
    """`val` for now, which `_with_classes` makes the test split or what is not used."""
    return {None: UNDECIDED, "train": TRAIN, "test": TEST, "val": _VALIDATION}[split]


_VALIDATION = 3


def _with_classes(listing: Listing, names: list[str | None]) -> Listing:
    listing.classes = tuple(sorted({name for name in names if name is not None}))
    number = {name: k for k, name in enumerate(listing.classes)}
    listing.labels = [-1 if name is None else number[name] for name in names]
    # A validation split is measured on where there is no test split, and otherwise left alone.
    validation = UNUSED if TEST in listing.splits else TEST
    if validation == UNUSED and (unused := listing.splits.count(_VALIDATION)):
        listing.counts["of a validation split, not used beside a test split"] += unused
    listing.splits = [validation if split == _VALIDATION else split for split in listing.splits]
    if TEST not in listing.splits:  # those of a split named train are held out, too
        listing.splits = [UNDECIDED] * len(listing)
    return listing


def _refuse_empty(listing: Listing, what: str) -> None:
    if len(listing):
        return
    seen = ", ".join(f"{count} {name}" for name, count in listing.counts.most_common(_NAMED))
    raise ConfigError(
        f"{what} ({seen or 'nothing at all'}); expected are ROOT/class/IMAGE, ROOT/train/class/IMAGE, images "
        f"alone, or a table of path and label; images end in {' '.join(sorted(SUFFIXES))}"
    )


def _array(numbers: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(numbers, np.int64)
