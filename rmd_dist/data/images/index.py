"""The index of a preparation in parquet: a row for each file, in parts while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from rmd_dist.files import atomic_path

SCHEMA = pa.schema(
    [
        ("path", pa.binary()),  # as the file system has it, relative to the folder
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),
        ("label", pa.int32()),  # number of the class; -1: none
        ("sha256", pa.binary()),  # of the content; empty where it could not be read
        ("split", pa.int8()),  # 0 train, 1 test, 2 not used; -1: skipped
        ("reason", pa.string()),  # why it was skipped; empty: it was not
        ("notes", pa.string()),  # what kind of image it is, separated by blanks
        ("width", pa.int32()),  # of the file's image, upright
        ("height", pa.int32()),
        ("stored_width", pa.int32()),
        ("stored_height", pa.int32()),
        ("mode", pa.int8()),  # beton.RAW or beton.JPEG
        ("shard", pa.int32()),
        ("pointer", pa.int64()),
        ("bytes", pa.int64()),
        *((name, pa.int64()) for name in ("red", "green", "blue", "red2", "green2", "blue2")),
    ]
)


def write_part(folder: Path, number: int, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows on the disk as part `number`: whole or absent."""
    with atomic_path(folder / f"part-{number:06d}.parquet") as temporary:
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), temporary)


def read_parts(folder: Path) -> tuple[int, Any]:
    """(how many parts there are, their rows as one table)."""
    parts = sorted(folder.glob("part-*.parquet"))
    tables = [parquet.read_table(part, schema=SCHEMA) for part in parts]
    return len(parts), pa.concat_tables([SCHEMA.empty_table(), *tables])


def write_index(path: Path, table: Any) -> None:
    """Write the whole index, atomically."""
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def read_index(path: Path, columns: Sequence[str] | None = None) -> Any:
    """The index, or some of its columns, as a pyarrow table."""
    return parquet.read_table(path, columns=None if columns is None else list(columns))
