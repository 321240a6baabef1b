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

SPLITS = {TRAIN: "train", TEST: "test"}
"""Code -> name, of the splits that are prepared."""

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
        tabled = place.is_file() or any((place / name).is_file() for name in METADATA)
        if tabled and class_level != 1:
            raise ConfigError(f"class-level = {class_level} is for folders; {place} has labels in a table")
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
    listing, names, linked = Listing(root), [], []
    for path, status, target in _walk(os.fsencode(root), listing.counts):
        folder = [*path.split(b"/")[:-1]]
        split = None
        if parts:
            split = parts.get(os.fsdecode(folder[0])) if folder else None
            if split is None:
                listing.counts["beside the folders of splits"] += 1
                continue
            folder = folder[1:]
        linked.append(target)
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
        _keep(kept, "above the folders of classes", listing, names, linked)
    if any(linked):
        _keep(
            _first_ways(os.path.realpath(os.fsencode(root)), listing.paths, linked),
            "links to images listed anyway",
            listing,
            names,
            linked,
        )
    return _with_classes(listing, [None if name is None else _class_name(name) for name in names])


def _keep(kept: list[int], what: str, listing: Listing, *columns: list[Any]) -> None:
    """Leave out all files but those; `what` they are is counted."""
    if len(kept) < len(listing):
        listing.counts[what] += len(listing) - len(kept)
    rows: Any
    for rows in (listing.paths, listing.splits, listing.sizes, listing.times, *columns):
        rows[:] = [rows[k] for k in kept]


def _first_ways(home: bytes, paths: list[bytes], linked: list[bytes | None]) -> list[int]:
    """Of several ways to one file the file itself, else the first link: their numbers."""
    met = {home + b"/" + path for path, target in zip(paths, linked, strict=True) if target is None}
    kept = []
    for k, target in enumerate(linked):
        if target is None or target not in met:
            kept.append(k)
        if target is not None:
            met.add(target)
    return kept


def list_files(place: Path) -> list[Path]:
    """The image files that a folder holds at any depth, or a table names, whatever their labels."""
    try:
        if place.is_file():
            return [place.parent / os.fsdecode(row.path) for row in read_table(place)]
        return [place / os.fsdecode(path) for path, _, _ in _walk(os.fsencode(place), Counter())]
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error}") from error


def _class_name(name: bytes) -> str:
    """Text that JSON can hold; two names are equal if and only if their bytes are."""
    return name.decode("utf-8", "backslashreplace")


def _walk(root: bytes, counts: Counter[str]) -> Iterator[tuple[bytes, os.stat_result, bytes | None]]:
    """(path relative to `root`, status, where it really is if a link leads there) of each image file.

    In the order of names, folder by folder; folders that are links come last, and those that were met
    already not at all, which is what a loop comes to. Hidden files and folders and files of other suffixes
    are counted.
    """
    folders: list[tuple[bytes, bool]] = [(b"", False)]
    links: list[bytes] = []
    entered = set[tuple[int, int]]()
    while folders or links:
        folder, linked = folders.pop() if folders else (links.pop(0), True)
        at = os.path.join(root, folder)  # noqa: PTH118
        if (identity := _identity(os.stat(at))) in entered:  # noqa: PTH116
            counts["links to folders met before, loops among them"] += 1
            continue
        entered.add(identity)
        below: list[tuple[bytes, bool]] = []
        for entry in sorted(os.scandir(at), key=lambda entry: entry.name):
            path = folder + entry.name
            if entry.name.startswith(b"."):
                counts["hidden"] += 1
                continue
            try:
                status = entry.stat()
            except OSError:
                counts["dead links"] += 1
                continue
            if stat.S_ISDIR(status.st_mode):
                if entry.is_symlink():
                    links.append(path + b"/")
                else:
                    below.append((path + b"/", linked))
            elif not stat.S_ISREG(status.st_mode) or not _is_image(entry.name):
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                counts[f"other files: {shown(suffix) or 'no suffix'}"] += 1
            else:
                yield path, status, os.path.realpath(entry.path) if linked or entry.is_symlink() else None
        folders += reversed(below)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_image(name: bytes) -> bool:
    return os.fsdecode(os.path.splitext(name)[1]).lower() in SUFFIXES  # noqa: PTH122


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.is_dir()


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
