"""Reading what comes from outside: tar archives without extracting them, pickles without running them."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from rmd_dist.config import ConfigError

MAX_MEMBER_BYTES = 512 << 20  # CIFAR-100's `train`, the largest official member, has 155 MB
_INTEGER_CODES = frozenset({"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


class _DType:
    """Stand-in for numpy.dtype while a pickle is read; keeps the code and the byte order only."""

    __slots__ = ("code", "order")

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order


class _Array:
    """Stand-in for numpy.ndarray while a pickle is read, so that numpy never sees unchecked state."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """The integer array that the pickle describes; ValueError when the description is not one."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _DType) or dtype.code not in _INTEGER_CODES or dtype.order not in "<>|":
            raise ValueError("it holds an array that is not of integers")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"it holds an array of shape {shape}")
        kind = np.dtype(dtype.order + dtype.code)
        if type(raw) is not bytes or len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} has the wrong number of bytes")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits the names by which integer arrays are pickled, and nothing else.

    None of the returned callables has a writable `__dict__`, imports or runs anything: the arrays are
    put together after the pickle has been read. `str.encode` serves `_codecs.encode`, by which
    Python 3 writes bytes at protocol 2; it refuses codecs that are not text encodings.
    """

    _ADMITTED: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): str.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no numpy array needs; nothing of it was run"
            ) from None


def load_pickled_dict(payload: bytes, origin: str) -> dict[str, Any]:
    """A pickled dict of integer arrays, numbers, strings and lists, read without executing anything.

    Keys become `str`; strings that Python 2 wrote stay `bytes`. `origin` names the file in errors.
    Raises ConfigError for anything else, code in the pickle included.
    """
    try:
        _check_opcodes(payload)
        value = _ArrayUnpickler(io.BytesIO(payload), encoding="bytes").load()
        if type(value) is not dict:
            raise ValueError(f"it holds a {type(value).__name__} instead of a dict")
        return {
            key.decode("ascii") if isinstance(key, bytes) else str(key): (
                item.to_numpy() if isinstance(item, _Array) else item
            )
            for key, item in value.items()
        }
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{origin} is damaged or no pickle of arrays: {reason}") from error


def _check_opcodes(payload: bytes) -> None:
    """ValueError if a pickle's lengths exceed its own, or if it numbers an object beyond all objects so far.

    Python's C unpickler allocates a table up to the highest number before it looks at anything else: one
    wrong bit can cost tens of gigabytes.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(payload)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > number:
            raise ValueError(f"it numbers an object {argument} after {number} operations")


def read_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Bytes of the regular members `names` of a .tar or .tar.gz, straight into memory.

    Nothing is written to disk, so no member can leave any folder. The archive is read to its end, so
    that gzip's checksum is verified. Members that are not there are left out of the answer. Raises
    ConfigError when the archive is empty, cut, damaged or not a tar.
    """
    wanted, found = set(names), {}
    try:
        with archive.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if name not in wanted or not member.isreg():
                        continue
                    if member.size > MAX_MEMBER_BYTES:
                        raise tarfile.TarError(f"its member {name} has {member.size} bytes")
                    content = tar.extractfile(member)
                    found[name] = content.read() if content is not None else b""
                    if len(found[name]) != member.size:
                        raise tarfile.TarError(f"its member {name} is cut short")
            while stream.read(1 << 20):  # tarfile stops before gzip's checksum
                pass
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ConfigError(f"{archive} is empty, cut short or damaged: {error}") from error
    return found
