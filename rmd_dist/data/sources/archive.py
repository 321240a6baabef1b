"""Reading what comes from outside: archives without extracting them, pickles without running them.

A pickle whose checksum is a published one is known to be harmless and is left to Python's own unpickler; all
others are read by a restricted one.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import math
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from rmd_dist.errors import ConfigError
from rmd_dist.files import kind_of, regular_size

MAX_MEMBER_BYTES = 256 << 20  # CIFAR-100's `train`, the largest official member, has 155 MB
MAX_UNPACKED_BYTES = 320 << 20  # both official archives have 186 MB
MAX_XZ_BYTES = 128 << 20  # for unpacking; xz -9 takes 65 MB
MAX_OPERATIONS = 1_000_000  # CIFAR-100's `train` takes 250 000
MAX_TUPLES = 1000  # an array takes 7
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
        if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it holds an array of an impossible shape")
        kind = np.dtype(dtype.order + dtype.code)
        if type(raw) is not bytes or len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} has the wrong number of bytes")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


class _Encode:
    """Stand-in for `_codecs.encode`, by which Python 3 writes bytes at protocol 2: Latin-1 alone.

    Other codecs, such as punycode, can take hours for a text of some megabytes.
    """

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("it asks for a codec that no numpy array needs")
        return str.encode(text, "latin-1")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits the names by which integer arrays are pickled, and nothing else.

    None of the returned callables has a writable `__dict__`, imports or runs anything: the arrays are
    put together after the pickle has been read.
    """

    _ADMITTED: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Encode(),
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no numpy array needs; nothing of it was run"
            ) from None


def load_pickled_dict(payload: bytes, origin: str, trusted: Collection[str] = ()) -> dict[str, Any]:
    """A pickled dict of integer arrays, numbers, strings and lists, read without executing anything.

    Keys become `str`; strings that Python 2 wrote stay `bytes`. `origin` names the file in errors. A payload
    whose MD5 is one of `trusted` is unpickled by Python itself. Raises ConfigError for anything else, code
    in the pickle included.
    """
    try:
        if trusted and hashlib.md5(payload, usedforsecurity=False).hexdigest() in trusted:
            value = pickle.loads(payload, encoding="bytes")
        else:
            _check_opcodes(payload)
            value = _ArrayUnpickler(io.BytesIO(payload), encoding="bytes").load()
        if type(value) is not dict:
            raise ValueError(f"it holds a {type(value).__name__} instead of a dict")
        if not all(isinstance(key, str | bytes) for key in value):
            raise ValueError("it holds a dict whose keys are no strings")
        return {
            key.decode("ascii") if isinstance(key, bytes) else key: (
                item.to_numpy() if isinstance(item, _Array) else item
            )
            for key, item in value.items()
        }
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{origin} is damaged or no pickle of arrays: {reason}") from error


# All that Python's pickler writes for dicts, lists, strings, numbers and arrays.
_VALUES = frozenset(
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST EMPTY_DICT DICT GLOBAL STACK_GLOBAL REDUCE".split()
)
_TUPLES = frozenset("EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3".split())
_STORES = frozenset("PUT BINPUT LONG_BINPUT MEMOIZE".split())
_FETCHES = frozenset("GET BINGET LONG_BINGET".split())
_OTHERS = frozenset("PROTO FRAME MARK APPEND APPENDS SETITEM SETITEMS NEWOBJ BUILD STOP".split())
_OPERATIONS = _VALUES | _TUPLES | _STORES | _FETCHES | _OTHERS


def _check_opcodes(payload: bytes) -> None:
    """ValueError for what a pickle of arrays never has, and what would break Python's C unpickler.

    Lengths beyond the pickle's end. An object numbered beyond all objects so far: a table up to that number
    is allocated at once, one wrong bit can cost tens of gigabytes. Millions of objects, each 60 bytes for
    one. Tuples in a chain, whose hash, as a key, overflows the stack; a tuple that is used again, by which
    forty of them take 2^40 steps to hash.
    """
    tuples, stored, previous = 0, 0, ""
    reusable: set[int] = set()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(payload)):
        name = opcode.name
        if name not in _OPERATIONS:
            raise ValueError(f"it has the operation {name}, which no array needs")
        if number > MAX_OPERATIONS:
            raise ValueError(f"it has more than {MAX_OPERATIONS} operations")
        tuples += name in _TUPLES
        if tuples > MAX_TUPLES:
            raise ValueError(f"it has more than {MAX_TUPLES} tuples")
        if name in _STORES:
            index = stored if argument is None else argument
            if index > number:
                raise ValueError(f"it numbers an object {index} after {number} operations")
            stored += 1
            if previous in _VALUES:
                reusable.add(index)
            else:
                reusable.discard(index)
        elif name in _FETCHES and argument not in reusable:
            raise ValueError("it uses a tuple, or an object that is not there, again")
        previous = name


class _Bounded:
    """A stream that ends in an error after MAX_UNPACKED_BYTES: a bomb of zeros packs a thousand to one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_UNPACKED_BYTES

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise tarfile.TarError(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
        return piece


class _Unxz:
    """The content of an xz file. Unlike `lzma.open` it knows a limit on what the dictionary may take."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._xz = stream, lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES)

    def read(self, size: int) -> bytes:
        piece = b""
        while not piece and not self._xz.eof:
            packed = self._stream.read(1 << 16) if self._xz.needs_input else b""
            if self._xz.needs_input and not packed:
                raise EOFError("it ends before its end mark")
            piece = self._xz.decompress(packed, size)
        return piece


_PACKED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": _Unxz,
}
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def read_members(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Bytes of the regular members `names` (FOLDER/NAME), straight into memory.

    Of a tar, plain or in gzip, bzip2 or xz, or of a zip; told apart by content. Members that lie in another
    folder than FOLDER, or in none, are taken if all of those names lie there. Nothing is written to disk, so
    no member can leave any folder. A tar is read to its end, so that checksums are verified. Members that
    are not there are left out of the answer, links and sparse ones too. Raises ConfigError when none is
    there, when they lie in several folders, and when the archive is empty, cut, damaged, something else or
    larger than MAX_UNPACKED_BYTES.
    """
    wanted = {name.rpartition("/")[2] for name in names}
    folders: dict[str, dict[str, bytes]] = {}
    others: list[str] = []
    head = b""
    try:
        regular_size(archive)
        with archive.open("rb") as raw:
            head = raw.read(64)
            raw.seek(0)
            members = _zip_members if head.startswith(b"PK") else _tar_members
            for name, read in members(raw, head):
                folder, _, base = name.removeprefix("./").rpartition("/")
                if base in wanted:
                    folders.setdefault(folder, {})[base] = read()
                else:
                    others.append(name)
    except Exception as error:  # a damaged archive can raise nearly anything
        if (kind := kind_of(head)) and not head.startswith((b"PK", *_PACKED)) and head:
            raise ConfigError(f"{archive} is {kind[0]} instead of an archive; {kind[1]}") from error
        raise ConfigError(f"{archive} is empty, cut short or damaged: {error}") from error
    own = names[0].rpartition("/")[0]
    if not folders:
        some = f"{', '.join(others[:3])} and so on ({len(others)} files)" if others else "no files"
        raise ConfigError(f"{archive} is intact, but holds {some:.200} instead of {names[0]} and so on")
    if own not in folders and len(folders) > 1:
        raise ConfigError(
            f"{archive} has {' or '.join(sorted(wanted))} in several folders "
            f"({', '.join(folder or '.' for folder in sorted(folders))}), none of which is {own}"
        )
    found = folders.get(own) or folders.popitem()[1]
    return {name: found[base] for name in names if (base := name.rpartition("/")[2]) in found}


_Members = Iterator[tuple[str, Callable[[], bytes]]]


def _tar_members(raw: BinaryIO, head: bytes) -> _Members:
    """Name and reader of each regular member; to be read before the next one is asked for."""
    unpack = next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)
    stream = _Bounded(cast(BinaryIO, unpack(raw) if unpack else raw))
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                yield member.name, partial(_read_member, tar, member)
    while stream.read(1 << 20):  # tarfile stops before the checksum
        pass


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.name, member.size)
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise tarfile.TarError(f"its member {member.name} is cut short")
    return content


def _zip_members(raw: BinaryIO, _: bytes) -> _Members:
    with zipfile.ZipFile(raw) as archive:
        left = MAX_UNPACKED_BYTES

        def read(member: zipfile.ZipInfo) -> bytes:
            nonlocal left
            left -= member.file_size
            if left < 0:
                raise zipfile.BadZipFile(f"it unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
            _check_size(member.filename, member.file_size)
            if member.compress_type not in _ZIP_METHODS:
                raise zipfile.BadZipFile(f"{member.filename} is packed in an unusual way")
            return archive.read(member)

        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, partial(read, member)


def _check_size(name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"its member {name} has {size} bytes")
