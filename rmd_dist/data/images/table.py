"""Tables of images: CSV, TSV, JSON lines or parquet with a path, a label and perhaps a split a line."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rmd_dist.config.datasets import TABLES
from rmd_dist.errors import ConfigError

COLUMNS = {
    "path": ("path", "image_path", "file_name", "filename", "file", "filepath", "image"),
    "label": ("label", "labels", "class", "class_name", "category", "target"),
    "split": ("split", "subset", "partition"),
    "index": ("index", "id"),
}
"""What a column is -> the names it may have, in any case."""


SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits, of folders and in tables, in any case."""


class Row(NamedTuple):
    """A line of a table."""

    number: int
    """Of the line in its file, from 1."""
    path: bytes
    label: str | None
    split: str | None


def read_table(table: Path) -> Iterator[Row]:
    """The lines of a table that name images, as a stream.

    A CSV without a header may have path and label alone. Raises ConfigError if it cannot be read, has no
    column of paths, or a line without one.
    """
    for number, values in records(table, "path"):
        path = values.get("path")
        if not path:
            raise ConfigError(f"{table}, line {number} has no path; give one in every line")
        try:
            name = os.fsencode(path)
        except UnicodeEncodeError:
            name = b"\0"
        if b"\0" in name:
            raise ConfigError(f"{table}, line {number}: {path!r} cannot be a path; mend it")
        yield Row(number, name, values.get("label") or None, values.get("split") or None)


def records(table: Path, needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, what stands in its columns by the keys of COLUMNS) of a table that has a column `needed`."""
    suffix = table.suffix.lower()
    if suffix not in TABLES:
        raise ConfigError(f"{table} is no table; give a folder of images, or one of {', '.join(TABLES)}")
    try:
        lines: Iterator[tuple[int, Mapping[str, Any]]]
        if suffix == ".parquet":
            lines = _parquet(table)
        elif suffix == ".jsonl":
            lines = _json_lines(table)
        else:
            lines = _separated(table, needed)
        known: dict[str, str] = {}
        for number, line in lines:
            if not known or suffix == ".jsonl":  # each line has keys of its own
                known = _columns(line.keys(), needed, table)
            yield number, {kind: _text(line.get(column)) for kind, column in known.items()}
    except ConfigError:
        raise
    except (OSError, ValueError, csv.Error, ImportError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{table} cannot be read as {suffix[1:]}: {reason:.200}") from error


def _columns(names: Sequence[str] | Any, needed: str, table: Path) -> dict[str, str]:
    by_name = {str(name).strip().lower(): name for name in reversed([*names]) if name is not None}
    known = {
        kind: by_name[next(alias for alias in aliases if alias in by_name)]
        for kind, aliases in COLUMNS.items()
        if any(alias in by_name for alias in aliases)
    }
    if needed not in known:
        found = ", ".join(repr(str(name)) for name in names) or "none"
        raise ConfigError(
            f"{table} has no column of {needed}s; it has {found}, and one must be called "
            f"{', '.join(COLUMNS[needed])}"
        )
    return known


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _separated(table: Path, needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV or TSV: by commas, semicolons or tabs, whichever the first has most of, else blanks."""
    csv.field_size_limit(1 << 20)
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline(1 << 20)
        file.seek(0)
        delimiter = max(",;\t" if table.suffix.lower() != ".tsv" else "\t", key=first.count)
        if delimiter not in first and first.strip().lower() not in COLUMNS["path"]:
            delimiter = " "
        dialect: Any = {"delimiter": delimiter, "skipinitialspace": delimiter == " "}
        header = next(csv.reader([first], **dialect), [])
        names: list[str] | None = None
        if needed == "path" and header and (table.parent / header[0]).is_file():  # no header
            split = len(header) > 2 and header[2].strip().lower() in SPLIT_NAMES
            names = ["path", "label", *["split"] * split]
        reader = csv.DictReader(file, names, **dialect)
        for line in reader:
            yield reader.line_num, line


def _json_lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                value = json.loads(text)
                if not isinstance(value, dict):
                    raise ValueError(f"line {number} is no object such as {{'path': ..., 'label': ...}}")
                yield number, value


def _parquet(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(table) as file:
            known = {alias for aliases in COLUMNS.values() for alias in aliases}
            names = [name for name in file.schema_arrow.names if name.lower() in known]
            if not names:
                yield 1, dict.fromkeys(file.schema_arrow.names)
                return
            number = 0
            for batch in file.iter_batches(columns=names):
                for line in batch.to_pylist():
                    number += 1
                    yield number, line
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
