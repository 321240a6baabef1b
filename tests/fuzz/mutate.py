"""Ways to spoil bytes, JSON and paths; each a function of a seeded random number generator."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def bit(data: bytes, rng: random.Random) -> bytes:
    """One to four flipped bits."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut short anywhere."""
    return data[: rng.randrange(len(data))] if data else data


def empty(data: bytes, rng: random.Random) -> bytes:
    """Zero length."""
    return b""


def longer(data: bytes, rng: random.Random) -> bytes:
    """Something behind the end."""
    return data + rng.choice((b"\0" * 64, data[-512:], rng.randbytes(100)))


def insert(data: bytes, rng: random.Random) -> bytes:
    """Something in the middle."""
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 9)) + data[place:]


def remove(data: bytes, rng: random.Random) -> bytes:
    """A piece gone."""
    place = rng.randint(0, len(data))
    return data[:place] + data[place + rng.choice((1, 2, 8, 100, 4096)) :]


def copy(data: bytes, rng: random.Random) -> bytes:
    """A piece written over another place."""
    source, target, size = rng.randint(0, len(data)), rng.randint(0, len(data)), rng.randint(1, 600)
    piece = data[source : source + size]
    return data[:target] + piece + data[target + len(piece) :]


def number(data: bytes, rng: random.Random) -> bytes:
    """A field of 1, 2, 4 or 8 bytes with a value at the edge, likely in the first kilobyte."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1))
    place = rng.randrange(min(len(data), rng.choice((16, 1024, len(data)))) or 1)
    return data[:place] + value.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :]


def digits(data: bytes, rng: random.Random) -> bytes:
    """A written number replaced."""
    places = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if not places:
        return bit(data, rng)
    place = rng.choice(places)
    new = rng.choice((b"-1", b"0", b"99999999999999999999", b"1e999", b"NaN", b"1.5", b"9" * 5000, b"\xff"))
    return data[:place] + new + data[place + 1 :]


def garbage(data: bytes, rng: random.Random) -> bytes:
    """Something else entirely."""
    kinds = (b"<html>404</html>", b"\xff\xfe\0", b"PK\x03\x04", b"\x1f\x8b\x08", b"version https://git-lfs\n")
    return rng.choice(kinds) + rng.randbytes(rng.choice((0, 20, 3000)))


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(bit, cut, empty, longer, insert, remove, copy, number, digits, garbage),
)

HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**30, 1e308, float("inf"), float("nan"), ""),
    *("a\nb", "\0", "../../escaped", "x" * 100_000, "\ud800", "\x1b[31m", [], {}, [[]], {"": {}}, [1, "a"]),
    *({"scaler": 3}, {"optimizer/999/momentum_buffer": 1.0}, {"optimizer/0": 1}, {"a/b/c": []}),
)
"""Values that no key expects."""


def json_value(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text replaced, gone, renamed or nested; of JSON lines, in one of the lines."""
    lines = data.split(b"\n") if b"}\n{" in data else [data]
    which = rng.randrange(len(lines))
    try:
        value = json.loads(lines[which])
    except (ValueError, RecursionError):
        return bit(data, rng)
    holder, key = _choose(value, rng)
    action = rng.choice(("replace", "replace", "replace", "delete", "rename", "root", "nest"))
    if holder is None or action == "root":
        value = rng.choice((*HOSTILE, value))
        value = rng.choice((value, [value], {"a": value}))
    elif action == "delete":
        del holder[key]
    elif action == "rename" and isinstance(holder, dict):
        holder[rng.choice(("", "x", "a/b/c", "optimizer/7/x", "model/x"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(HOSTILE)
    text = json.dumps(value).encode()
    if action == "nest":
        text = b"[" * 100_000 + (b"]" * 100_000 if rng.random() < 0.5 else b"")
    lines[which] = text
    return b"\n".join(lines)


def _choose(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A random (container, key) anywhere in `value`; (None, None) if it has none."""
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        for key in list(item) if isinstance(item, dict) else range(len(item)):
            places.append((item, key))
            if isinstance(item[key], dict | list):
                walk(item[key])

    if isinstance(value, dict | list):
        walk(value)
    return rng.choice(places) if places else (None, None)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("x")


PATHS: dict[str, Callable[[Path], None]] = {
    "absent": lambda _path: None,
    "a folder": _folder,
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/null": lambda path: path.symlink_to("/dev/null"),
}
"""What may stand where a file is expected."""

FORBIDDEN = "not readable"
"""The name of one more: a file without permissions, opened by a process that is not root."""


def replace(path: Path, kind: str) -> None:
    """Put something of `kind` where `path` is."""
    if kind == FORBIDDEN:
        path.chmod(0)
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    PATHS[kind](path)
