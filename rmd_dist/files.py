"""Files: whole or absent when written, bounded when read, locked when shared, told apart by SHA-256.

What somebody else wrote is read only if it is a regular file of a sensible size: to open a FIFO can wait for
ever, and a device has no end; both may stand where a file is expected.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmd_dist.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_JSON_BYTES = 64 << 20  # the largest manifest, of noise on 100 classes, has 80 kB


def expanded(text: str) -> str:
    """A path as a person writes it, with `~`, `~user`, `$NAME` and `${NAME}` put in.

    A dollar stays where the path exists as it is written. Raises ConfigError for a user or variable that is
    not known, and for what no file system can hold.
    """
    written = os.path.lexists(text)
    path = os.path.expanduser(text if written else os.path.expandvars(text))  # noqa: PTH111 - "" stays ""
    try:
        Path(path).stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", errno.EINVAL) in _NO_PATH:
            shown = text if len(text) <= 80 else f"{text[:60]}..."
            raise ConfigError(f"{shown!r} cannot be a path: {getattr(error, 'strerror', error)}") from None
    unknown = None if written else re.match(r"~[^/]*", path) or re.search(r"\$(\w+|\{[^}]*\})", path)
    if unknown:
        raise ConfigError(f"the path {text!r}: {unknown[0]} is not known here; write it out")
    return path


_NO_PATH = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; on success it is fsynced and renamed to `path`, else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def remove_debris(folder: Path, name: str = "*") -> None:
    """Delete the temporary files of killed writers of `name`, a pattern; only under the writers' lock."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Iterable[Any]]) -> None:
    """Write a CSV, atomically; file names come back as they were, in whatever bytes they are."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def write_npy(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as NPY, atomically."""
    import numpy as np

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, which knows no nan and no infinity: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def check_output(path: Path) -> None:
    """ConfigError unless a file can be written at `path`: asked before the work, not found out after it.

    The folder of `path` is made.
    """
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise ConfigError(f"{path} is {what}; give the name of a file to write")
        check_output_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def check_output_folder(folder: Path) -> None:
    """Make `folder`. Raises ConfigError unless files can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write to {path} ({error.strerror}); make it writable, or give another path")


def regular_size(path: Path) -> int:
    """Bytes of a regular file. Raises OSError if it is missing or something else, such as a FIFO."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return status.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes. Raises OSError if it is missing, no file, larger."""
    size = regular_size(path)
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, at most {most} are sensible", str(path))
    return path.read_bytes()


_KINDS = (
    (b"<!doctype", "an HTML page", "get the file itself, by its download link"),
    (b"<html", "an HTML page", "get the file itself, by its download link"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch what it stands for by git lfs pull"),
    (b"\x93numpy", "a NumPy array", "give the file that it was made from"),
    (b"\x89hdf", "an HDF5 file", "convert it"),
    (b"pk\x03\x04", "a zip archive", "unpack it"),
    (b"pk\x05\x06", "an empty zip archive", "get it afresh"),
    (b"\x1f\x8b", "packed by gzip", "unpack it"),
    (b"bzh", "packed by bzip2", "unpack it"),
    (b"\xfd7zxz\0", "packed by xz", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"rar!", "a rar archive", "unpack it"),
    *((bytes([0x80, n]), "a Python pickle", "convert it") for n in range(1, 6)),
)


def kind_of(head: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, and what to do if something else was wanted; None: not known."""
    if not head:
        return "empty", "get it afresh"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    return next(((what, remedy) for magic, what, remedy in _KINDS if start.startswith(magic)), None)


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else, nested too deeply included."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__} instead of an object")
    return value


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file; `missing_ok`: an empty one where there is no file.

    Raises OSError (see `read_bytes`) or ValueError (see `parse_json`).
    """
    try:
        return parse_json(read_bytes(path, MAX_JSON_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        if missing_ok:
            return {}
        raise


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file `path`; False where there is none, or no locks."""
    try:
        with path.open("rb") as file:  # a shared lock, so that two who look do not see one another
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the kernel lets go of it when the process ends, however it ends.

    `waiting` is called once if another process holds it. The file stays: deleting it would let two
    processes hold locks of the same name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be written: {error}; choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
