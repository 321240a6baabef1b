"""The index of a preparation in parquet: a row for each file, in parts while it is written.

pyarrow is imported where it is needed: that takes a third of a second, and starts threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.files import atomic_path

COLUMNS = {
    "path": "binary",  # as the file system has it, relative to the folder
    "size": "int64",  # bytes
    "mtime_ns": "int64",
    "label": "int32",  # number of the class; -1: none
    "sha256": "binary",  # of the content; empty where it could not be read
    "split": "int8",  # 0 train, 1 test, 2 not used; -1: skipped
    "reason": "string",  # why it was skipped; empty: it was not
    "notes": "string",  # what kind of image it is, separated by blanks
    "width": "int32",  # of the file's image, upright
    "height": "int32",
    "stored_width": "int32",
    "stored_height": "int32",
    "mode": "int8",  # beton.RAW or beton.JPEG
    "shard": "int32",
    "pointer": "int64",
    "bytes": "int64",
    **dict.fromkeys(("red", "green", "blue", "red2", "green2", "blue2"), "int64"),  # sums, and of squares
}
"""Name -> pyarrow's type."""


def schema() -> Any:
    """The columns as pyarrow has them."""
    import pyarrow as pa

    return pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])


def write_part(folder: Path, number: int, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows on the disk as part `number`: whole or absent."""
    import pyarrow as pa

    write_index(folder / f"part-{number:06d}.parquet", pa.Table.from_pylist(list(rows), schema=schema()))


def read_parts(folder: Path) -> tuple[int, Any]:
    """(how many parts there are, their rows as one table)."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parts, columns = sorted(folder.glob("part-*.parquet")), schema()
    tables = [parquet.read_table(part, schema=columns) for part in parts]
    return len(parts), pa.concat_tables([columns.empty_table(), *tables])


def write_index(path: Path, table: Any) -> None:
    """Write a table, atomically."""
    import pyarrow.parquet as parquet

    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def read_index(path: Path, columns: Sequence[str] | None = None) -> Any:
    """The index, or some of its columns, as a pyarrow table."""
    import pyarrow.parquet as parquet

    return parquet.read_table(path, columns=None if columns is None else list(columns))


def groups_of(sha256: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """(N,), equal numbers for files of equal content; -1 for those that were not read."""
    number: dict[bytes, int] = {}
    return np.array([number.setdefault(digest, len(number)) if digest else -1 for digest in sha256], np.int64)
