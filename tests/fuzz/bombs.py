"""Inputs made by hand: code in pickles, paths that leave their folder, bombs, depths that overflow a stack.

Each is named and must end in an error, but for those in HARMLESS, which may be accepted.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data import archives
from tests.fuzz.targets import (
    BESIDE,
    BETON,
    FOLDER,
    HUMAN,
    SCALARS,
    TAR,
    TENSORS,
    members_of,
    put,
    signed_beton,
    signed_tensors,
    with_pickle,
    with_pth_pickle,
)

Bomb = Callable[[Path], object]
BOMBS: dict[tuple[str, str], Bomb] = {}
HARMLESS = {
    *("members that leave the folder", "links and devices", "all files in one YAML"),
    *("null", "nothing"),  # of a configuration that changes none
}


def bomb(*targets: str, name: str) -> Callable[[Bomb], Bomb]:
    def add(function: Bomb) -> Bomb:
        BOMBS.update({(target, name): function for target in targets})
        return function

    return add


# Pickles: one payload, in each place where pickles are read


class Code:
    """Runs when it is unpickled by Python's own unpickler."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Array:
    """Pickled as an array of an impossible shape."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        function, arguments, _ = np.zeros(0, np.uint8).__reduce__()
        return function, arguments, (1, self.shape, np.dtype("u1"), False, b"")


def laughs(make: Callable[[Any], Any], levels: int = 40) -> Any:
    """2^levels things, of which only `levels` are stored."""
    thing: Any = make("ha")
    for _ in range(levels):
        thing = make(thing)
    return thing


def two(thing: Any) -> tuple[Any, Any]:
    return (thing, thing)


def pair(thing: Any) -> list[Any]:
    return [thing, thing]


TOUCH = "touch ../canary"
TEXT = b"X" + struct.pack("<I", 300_000) + b"a" * 300_000
PICKLES: dict[str, bytes] = {
    "os.system": pickle.dumps({"data": Code(os.system, TOUCH)}, protocol=2),
    "eval": pickle.dumps({"data": Code(eval, "open('../canary', 'w')")}, protocol=4),
    "code by INST": b"(S'touch ../canary'\nios\nsystem\n.",
    "code by a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "numpy.load": b"\x80\x02cnumpy\nload\nX\x09\x00\x00\x00../canary\x85R.",
    "an object array": pickle.dumps({"data": np.array([{}], dtype=object)}, protocol=2),
    "a memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a string of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "an array of 2^62": archives.dumps({b"data": np.zeros(7, np.uint8)}).replace(
        b"K\x07", b"\x8a\x08" + struct.pack("<q", 2**62)
    ),
    "a tuple 500 000 deep as key": b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s.",
    "a tuple 500 000 deep": b"\x80\x02}U\x04data)" + b"\x85" * 500_000 + b"s.",
    "a key that takes 2^40 steps to hash": b"\x80\x02})"
    + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))
    + b"K\x01s.",
    "names that take 2^40 steps to print": pickle.dumps(
        {"label_names": pair(laughs(pair)), "data": laughs(pair), "clean_label": laughs(pair)}, protocol=2
    ),
    "a shape that takes 2^40 steps to print": pickle.dumps(
        {"data": Array((laughs(pair),)), "clean_label": Array((laughs(pair),))}, protocol=2
    ),
    "a slow codec": b"\x80\x02}X\x04\x00\x00\x00datac_codecs\nencode\n"
    + TEXT
    + b"X\x08\x00\x00\x00punycode\x86Rs.",
    "a slower codec": b"\x80\x02}X\x04\x00\x00\x00datac_codecs\nencode\n"
    + TEXT
    + b"X\x04\x00\x00\x00idna\x86Rs.",
    "30 million empty lists": b"\x80\x02}U\x04data(" + b"]" * 30_000_000 + b"ls.",
    "a number of 4 MB": b"\x80\x02}U\x06labels]\x8b"
    + struct.pack("<i", 1 << 22)
    + b"\x7f" * (1 << 22)
    + b"as.",
    "labels of numbers too large": pickle.dumps({"labels": [10**30], "clean_label": [10**30]}, protocol=2),
    "a name with line breaks": b"\x80\x02c" + b"os\nsys\x1b[31mtem\r" + b"\n.",
    "a name of 3 MB": b"\x80\x02cos\n" + b"x" * 3_000_000 + b"\n.",
    "nothing but a stop": b".",
    "itself": b"\x80\x02}q\x00U\x04datah\x00s.",
}


def _everywhere(name: str, payload: bytes) -> None:
    def batch(folder: Path) -> None:
        members = members_of(folder) | {"cifar-10-batches-py/data_batch_1": payload}
        archives.write_tar(folder / TAR, members)

    def meta(folder: Path) -> None:
        archives.write_tar(folder / TAR, members_of(folder) | {"cifar-10-batches-py/batches.meta": payload})

    BOMBS["archive (tar.gz)", f"batch: {name}"] = batch
    BOMBS["archive (tar.gz)", f"meta: {name}"] = meta
    BOMBS["human labels (.pt)", name] = lambda folder: with_pickle(folder, payload)
    BOMBS["PyTorch file", name] = lambda folder: with_pth_pickle(folder, payload)


for _name, _payload in PICKLES.items():
    _everywhere(_name, _payload)


# Containers


def _tar_with(folder: Path, *entries: tarfile.TarInfo, first: bool = True) -> None:
    members = members_of(folder)
    with tarfile.open(folder / TAR, "w:gz") as tar:
        for entry in entries if first else ():
            tar.addfile(entry, io.BytesIO(b"evil".ljust(entry.size)))
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


@bomb("archive (tar.gz)", name="members that leave the folder")
def _(folder: Path) -> None:
    names = ("../canary", "cifar-10-batches-py/../../canary", str(folder.parent / "canary"))
    _tar_with(folder, *(_entry(name, size=4) for name in names))


@bomb("archive (tar.gz)", name="links and devices")
def _(folder: Path) -> None:
    kinds = {"l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "f": tarfile.FIFOTYPE}
    _tar_with(folder, *(_entry(name, kind, "../canary") for name, kind in kinds.items()))


@bomb("archive (tar.gz)", name="a link instead of a batch")
def _(folder: Path) -> None:
    members = members_of(folder)
    del members["cifar-10-batches-py/data_batch_1"]
    archives.write_tar(folder / TAR, members)
    _tar_with(folder, _entry("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE, "data_batch_2"))


@bomb("archive (tar.gz)", name="a member of 1 TiB")
def _(folder: Path) -> None:
    header = _entry("cifar-10-batches-py/data_batch_1", size=1 << 40).tobuf()
    put(folder / TAR, gzip.compress(header + bytes(10_240)))


def _zeros(folder: Path, header: bytes, mebibytes: int) -> None:
    with gzip.open(folder / TAR, "wb", 1) as out:
        out.write(header)
        for _ in range(mebibytes):
            out.write(bytes(1 << 20))


@bomb("archive (tar.gz)", name="six members of 500 MB of zeros")
def _(folder: Path) -> None:
    with gzip.open(folder / TAR, "wb", 1) as out:
        for number in (1, 2, 3, 4, 5):
            out.write(_entry(f"cifar-10-batches-py/data_batch_{number}", size=500 << 20).tobuf())
            for _ in range(500):
                out.write(bytes(1 << 20))


@bomb("archive (tar.gz)", name="a pax header of 3 GB")
def _(folder: Path) -> None:
    _zeros(folder, _entry("x", tarfile.XHDTYPE, size=3000 << 20).tobuf(), 3000)


@bomb("archive (tar.gz)", name="6 GB of zeros")
def _(folder: Path) -> None:
    _zeros(folder, b"", 6000)


@bomb("archive (tar.gz)", name="a sparse member of 500 MB in each batch")
def _(folder: Path) -> None:
    with tarfile.open(folder / TAR, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for number in (1, 2, 3, 4, 5):
            entry = _entry(f"cifar-10-batches-py/data_batch_{number}", size=0)
            entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0"}
            entry.pax_headers |= {"GNU.sparse.size": str(500 << 20), "GNU.sparse.numblocks": "1"}
            tar.addfile(entry, io.BytesIO())


@bomb("archive (folder)", name="a batch of 40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / FOLDER / "train", 40 << 30)


@bomb("human labels (.pt)", name="a pickle of 500 MB of zeros")
def _(folder: Path) -> None:
    with_pickle(folder, bytes(500 << 20))


@bomb("human labels (.pt)", name="two pickles")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "CIFAR-10_human.pt", "a") as archive:
        archive.writestr("other/data.pkl", b".")


@bomb("human labels (.pt)", name="a pickle that declares 2^62 bytes")
def _(folder: Path) -> None:
    data = bytearray((folder / "CIFAR-10_human.pt").read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 20 : central + 28] = b"\xfe\xff\xff\xff" * 2
    put(folder / "CIFAR-10_human.pt", bytes(data))


for _what, _labels in {
    "too few": HUMAN[:20],
    "of floats": HUMAN.astype(float),
    "outside the classes": HUMAN + 5,
    "negative": HUMAN - 3,
    "two-dimensional": HUMAN.reshape(6, 10),
    "none": HUMAN[:0],
    "uint64 near 2^64": HUMAN.astype(np.uint64) - np.uint64(1),
}.items():
    for _key in ("clean_label", "worse_label"):
        _content = {"clean_label": HUMAN, "worse_label": HUMAN} | {_key: _labels}
        BOMBS["human labels (.pt)", f"{_key} {_what}"] = lambda folder, content=_content: with_pickle(
            folder, pickle.dumps(content, protocol=2)
        )

for _what, _change in {
    "floats": {b"data": np.zeros((2, 3072), np.float32)},
    "another shape": {b"data": np.zeros((2, 3, 1024), np.uint8)},
    "fewer labels": {b"labels": [1]},
    "label 10": {b"labels": [1, 10]},
    "labels of booleans": {b"labels": [True, False]},
    "labels of strings": {b"labels": [b"1", b"2"]},
    "labels of floats": {b"labels": [1.0, float("nan")]},
    "no labels": {b"labels": None},
    "data of zero rows": {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
}.items():
    BOMBS["archive (tar.gz)", f"batch with {_what}"] = lambda folder, change=_change: archives.write_tar(
        folder / TAR,
        members_of(folder)
        | {
            f"cifar-10-batches-py/data_batch_{n}": archives.dumps(archives.batch(2, 10, 0) | change)
            for n in range(1, 6)
        },
    )


# Betons: header, pointers and counts that the sum confirms


def _beton_with(place: int, code: str, value: int) -> Bomb:
    def make(folder: Path) -> None:
        data = bytearray((folder / BETON).read_bytes())
        struct.pack_into(code, data, place, value)
        signed_beton(folder, bytes(data))

    return make


for _what, _place, _code in (
    *(("version", 0, "<H"), ("fields", 2, "<H"), ("page size", 4, "<I"), ("samples", 8, "<Q")),
    *(("table pointer", 16, "<Q"), ("mode of image 0", 3147, "<B"), ("width of image 0", 3148, "<H")),
    *(("pointer of image 0", 3152, "<Q"), ("label 0", 3163, "<q"), ("index 0", 3171, "<q")),
):
    for _value in (0, 2**15 - 1, 2**31 - 1, 2**63 - 1):
        _most = 2 ** (8 * struct.calcsize(_code)) - 1
        if _value <= _most:
            BOMBS["beton", f"{_what} = {_value}"] = _beton_with(_place, _code, _value)
HARMLESS |= {"label 0 = 0", "index 0 = 0"}


@bomb("beton", name="manifest 100 000 deep")
def _(folder: Path) -> None:
    put(folder / BESIDE, b"[" * 100_000)


@bomb("checkpoint", name="manifest 100 000 deep")
def _(folder: Path) -> None:
    put(folder / SCALARS, b'{"a":' * 100_000)


@bomb("run manifest", name="100 000 deep")
def _(folder: Path) -> None:
    put(folder / "distill/x/manifest.json", b"[" * 100_000)


@bomb("metrics.jsonl", name="100 000 deep")
def _(folder: Path) -> None:
    put(folder / "distill/x/metrics.jsonl", b"[" * 100_000 + b"\n")


HARMLESS |= {"100 000 deep"}  # a line of metrics that cannot be read is left out


@bomb("exported model", name="config 100 000 deep")
def _(folder: Path) -> None:
    put(folder / "config.json", b"[" * 100_000)


@bomb("beton", name="manifest of 40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / BESIDE, 40 << 30)


@bomb("checkpoint", name="manifest of 40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / SCALARS, 40 << 30)


@bomb("run manifest", name="manifest of 40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / "distill/x/manifest.json", 40 << 30)


@bomb("exported model", name="config of 40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / "config.json", 40 << 30)


@bomb("YAML config", name="40 GB (sparse)")
def _(folder: Path) -> None:
    os.truncate(folder / "config.yaml", 40 << 30)


# Safetensors


def _safetensors(header: dict[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def _tensor(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"0.weight": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


SAFETENSORS = {
    "a header of 2^63 bytes": _safetensors(b"{}", length=2**63),
    "a header of 99 MB that is not there": _safetensors(b"{}", length=99_000_000),
    "a header 100 000 deep": _safetensors(b'{"a":' * 100_000),
    "a header of a million tensors": _safetensors(
        json.dumps(
            {str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10**6)}
        ).encode()
    ),
    "a shape of 2^40 by 0": _safetensors(
        {"fc.weight": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}
    ),
    "a shape that overflows": _safetensors(_tensor("F32", [2**40, 2**40], 0, 0)),
    "a shape of 10 000 dimensions": _safetensors(_tensor("F32", [1] * 10_000, 0, 4), bytes(4)),
    "a negative shape": _safetensors(_tensor("F32", [-1], 0, 4), bytes(4)),
    "offsets beyond the end": _safetensors(_tensor("F32", [2**30], 0, 2**32), bytes(4)),
    "an unknown dtype": _safetensors(_tensor("F128", [1], 0, 16), bytes(16)),
    "a dtype torch does not load": _safetensors(_tensor("F4", [2], 0, 1), bytes(1)),
    "a dtype of 6 bits": _safetensors(_tensor("F6_E2M3", [4], 0, 3), bytes(3)),
    "booleans that are none": _safetensors(_tensor("BOOL", [4], 0, 4), b"\xff" * 4),
    "metadata that is none": _safetensors({"__metadata__": {"a": 1}}),
    "no tensors": _safetensors({}),
}
for _name, _data in SAFETENSORS.items():
    BOMBS["checkpoint", f"tensors: {_name}"] = lambda folder, data=_data: signed_tensors(folder, data)
    BOMBS["exported model", f"weights: {_name}"] = lambda folder, data=_data: put(
        folder / "model.safetensors", data
    )


def _retyped(name: str, dtype: str, folder: Path) -> bytes:
    """The file with every float tensor as another dtype."""
    import torch
    from safetensors.torch import load_file, save

    tensors = {
        k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v
        for k, v in load_file(folder / name).items()
    }
    return save(tensors)


for _dtype in ("int8", "bool", "complex64"):
    BOMBS["checkpoint", f"tensors of {_dtype}"] = lambda folder, dtype=_dtype: signed_tensors(
        folder, _retyped(TENSORS, dtype, folder)
    )
    BOMBS["exported model", f"weights of {_dtype}"] = lambda folder, dtype=_dtype: put(
        folder / "model.safetensors", _retyped("model.safetensors", dtype, folder)
    )


def _scalars(**values: Any) -> Bomb:
    def make(folder: Path) -> None:
        manifest = json.loads((folder / SCALARS).read_bytes())
        put(folder / SCALARS, json.dumps(manifest | values).encode())

    return make


for _what, _values in {
    "step 1e999": {"step": float("inf")},
    "step -1": {"step": -1},
    "step true": {"step": True},
    "step '2'": {"step": "2"},
    "step 7, named 2": {"step": 7},
    "scalars null": {"scalars": None},
    "scalars of pairs": {"scalars": ["ab"]},
    "no scaler": {"scalars": {}},
    "a scaler of text": {"scalars": {"scaler": "x"}},
    "state of parameter 99": {"scalars": {"scaler": {}, "optimizer/99/momentum_buffer": 1.0}},
    "state of parameter -1": {"scalars": {"scaler": {}, "optimizer/-1/x": 1.0}},
    "state of no parameter": {"scalars": {"scaler": {}, "optimizer/x/y": 1.0}},
    "state of four parts": {"scalars": {"scaler": {}, "optimizer/1/x/y": 1.0}},
    "momentum that is a number": {"scalars": {"scaler": {}, "optimizer/0/momentum_buffer": 1.0}},
    "momentum that is text": {"scalars": {"scaler": {}, "optimizer/0/momentum_buffer": "x"}},
    "size 1e999": {"size": float("inf")},
}.items():
    BOMBS["checkpoint", _what] = _scalars(**_values)


def _momentum(shape: tuple[int, ...]) -> Bomb:
    def make(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save

        tensors = load_file(folder / TENSORS) | {"optimizer/0/momentum_buffer": torch.zeros(shape)}
        signed_tensors(folder, save(tensors))

    return make


BOMBS["checkpoint", "momentum of another shape"] = _momentum((7, 5))
BOMBS["checkpoint", "momentum without a shape"] = _momentum(())


def _config_json(change: dict[str, Any]) -> Bomb:
    return lambda folder: put(
        folder / "config.json",
        json.dumps(json.loads((folder / "config.json").read_bytes()) | change).encode(),
    )


for _architecture in (
    *(
        "resnet18_cifar_w16.tag",
        "hf-hub:a/b",
        "local-dir:.",
        "../../x",
        "resnet50",
        "vit_gigantic_patch14_224",
    ),
    *("eva_giant_patch14_224", "", "a\nb", 3, ["resnet18_cifar"], {"a": 1}, None),
):
    BOMBS["exported model", f"architecture {_architecture!r}"] = _config_json({"architecture": _architecture})
HARMLESS |= {f"architecture {value!r}" for value in ("", None)}  # the default
for _about in ([], "x", {"dataset": 3}, {"stage": []}, {"dataset": ["digits"]}, None, 7):
    BOMBS["exported model", f"about {_about!r}"] = _config_json({"rmd_dist": _about})


# Images


def _png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def _tiff(*tags: tuple[int, int, int, int], after: int = 0, rest: bytes = b"") -> bytes:
    """Little-endian, of (tag, type, count, value), with the next directory at `after`."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", after) + rest


def _written(kind: str, mode: str, size: tuple[int, int], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times."""
    data = _written("JPEG", "L", (8000, 8000), progressive=True)
    start = data.rfind(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


_ZEROS = zlib.compress(bytes(30 << 20))
_TEXT = (b"zTXt", b"a\0\0" + zlib.compress(bytes((1 << 20) - 1)))
_ROW = ((256, 4, 1, 8000), (257, 4, 1, 8000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))
_JPEG_HEADER = b"\xff\xd8\xff\xc0\0\x11\x08%s\x03\x01\x11\0\x02\x11\0\x03\x11\0"
_FILES: dict[str, Callable[[], bytes]] = {
    "PNG of 2^31 pixels a side": lambda: _png(2**31 - 1, 2**31 - 1, (b"IDAT", _ZEROS)),
    "PNG of 65 megapixels": lambda: _png(13_000, 5_000, (b"IDAT", _ZEROS)),
    "PNG of 63 megapixels without data": lambda: _png(7_900, 8_000, (b"IDAT", zlib.compress(b"\0"))),
    "PNG of one pixel and 30 MB": lambda: _png(1, 1, (b"IDAT", _ZEROS)),
    "PNG of 64 megapixels of 16-bit RGBA, whole": lambda: _png(
        8000, 8000, (b"IDAT", zlib.compress(bytes(64_001 * 8000), 1)), bits=16, colour=6
    ),
    "PNG with a text of 30 MB": lambda: _png(1, 1, (b"zTXt", b"a\0\0" + _ZEROS), (b"IDAT", b"")),
    "PNG with an international text of 30 MB": lambda: _png(
        1, 1, (b"iTXt", b"a\0\1\0\0\0" + _ZEROS), (b"IDAT", b"")
    ),
    "PNG with 100 texts of 1 MB": lambda: _png(1, 1, *[_TEXT] * 100, (b"IDAT", zlib.compress(bytes(4)))),
    "PNG with a profile of 30 MB": lambda: _png(1, 1, (b"iCCP", b"a\0\0" + _ZEROS), (b"IDAT", b"")),
    "PNG with 100 texts behind": lambda: _png(1, 1, (b"IDAT", zlib.compress(bytes(4))), *[_TEXT] * 100),
    "APNG of 2^32 frames": lambda: _png(
        1, 1, (b"acTL", b"\xff" * 8), (b"fcTL", bytes(26)), (b"IDAT", zlib.compress(bytes(4)))
    ),
    "GIF of 65535 by 65535": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\x02\x02L\x01\0;",
    "GIF whose frame is larger": lambda: b"GIF89a\1\0\1\0\0\0\0,\xff\xff\xff\xff\xff\xff\xff\xff\0\x02\0;",
    "GIF of 100 000 comments": lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 100_000,
    "JPEG of 65535 by 65535": lambda: _JPEG_HEADER % (b"\xff" * 4),
    "JPEG of 16 megapixels, cut": lambda: _written("JPEG", "CMYK", (4000, 4000))[:2000],
    "JPEG of 64 megapixels, whole": lambda: _written("JPEG", "CMYK", (8000, 8000), progressive=True),
    "JPEG of 25 scans, whole": lambda: _scans(20),
    "JPEG of 20 000 scans": lambda: _scans(20_000),
    "JPEG of 100 000 segments": lambda: b"\xff\xd8" + b"\xff\xe1\0\x04ab" * 100_000,
    "TIFF of 2^32 pixels a side": lambda: _tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), *_ROW[2:]),
    "TIFF of 64 megapixels without data": lambda: _tiff(*_ROW, (273, 4, 1, 8), (278, 4, 1, 1)),
    "TIFF of one strip of 2^32 rows": lambda: _tiff(*_ROW, (273, 4, 1, 8), (278, 4, 1, 2**32 - 1)),
    "TIFF of 2^32 strips": lambda: _tiff(*_ROW, (273, 4, 2**32 - 1, 8), (278, 4, 1, 1)),
    "TIFF of 2^16 samples a pixel": lambda: _tiff(*_ROW, (273, 4, 1, 8), (277, 3, 1, 65535)),
    "TIFF of huge tiles": lambda: _tiff(*_ROW, (322, 4, 1, 2**31), (323, 4, 1, 2**31), (324, 4, 1, 8)),
    "TIFF of huge tiles in LZW": lambda: _tiff(
        *_ROW[:3], (259, 3, 1, 5), _ROW[4], (322, 4, 1, 2**16), (323, 4, 1, 2**16), (324, 4, 1, 8)
    ),
    "TIFF whose directory follows itself": lambda: _tiff(*_ROW, (273, 4, 1, 8), after=8),
    "BigTIFF of 2^64 entries": lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8,
    "WebP of 16383 by 16383": lambda: b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\x3f\0\xfe\x3f\0VP8 "
    + bytes(18),
    "WebP of 64 megapixels, whole": lambda: _written("WEBP", "RGBA", (8000, 8000), lossless=True, method=0),
    "BMP of 2^31 pixels a side": lambda: b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", 99, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, *[0] * 6
    ),
    "BMP of 64 megapixels in RLE, whole": lambda: b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", 99, 0, 1078, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0
    ) + bytes(1024) + b"\1\0" * 500_000 + b"\0\2\xff\xff" * 1000,
    "PPM of 10^8 pixels a side": lambda: b"P6 99999999 99999999 255 ",
    "PPM of a number of 10 MB": lambda: b"P6 " + b"9" * (10 << 20),
    "PPM of a comment of 10 MB": lambda: b"P3 8000 8000 255 #" + b"9" * (10 << 20),
    "PPM in words of 64 megapixels": lambda: b"P1 8000 8000 " + b"0 1" * 10**6,
}  # fmt: skip
for _name, _file in _FILES.items():
    BOMBS["image file", _name] = lambda folder, file=_file: put(folder / "image.png", file())
HARMLESS |= {name for name in _FILES if name.endswith("whole")}
HARMLESS |= {"APNG of 2^32 frames", "PNG of one pixel and 30 MB", "TIFF whose directory follows itself"}


# YAML


def _yaml(text: str | bytes) -> Bomb:
    return lambda folder: put(folder / "config.yaml", text if isinstance(text, bytes) else text.encode())


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAMLS: dict[str, str | bytes] = {
    "a billion laughs": _LAUGHS,
    "a billion laughs as a value": _LAUGHS + "K: *a11\n",
    "a billion laughs in a name": _LAUGHS + "run: {name: *a11}\n",
    "itself": "&a\nrun: *a\n",
    "a list of itself": "K: &a [*a]\n",
    "merge keys": "a: &a {x: 1}\n" + "<<: [" + ", ".join(["*a"] * 5000) + "]\n",
    "200 000 deep, flow": "[" * 200_000,
    "200 000 deep, closed": "[" * 200_000 + "]" * 200_000,
    "200 000 deep, as a value": "K: " + "[" * 200_000 + "]" * 200_000,
    "maps 50 000 deep": "{a: " * 50_000 + "1" + "}" * 50_000,
    "block 20 000 deep": "- " * 20_000 + "1",
    "code": "K: !!python/object/apply:os.system ['touch ../canary']\n",
    "code by name": "run: !!python/name:os.system\n",
    "a key that is a list": "? [a]\n: 1\n",
    "a key that is a number": "1: 2\n",
    "a key that is null": "~: 2\n",
    "loss options without names": "loss_options: {1: 2.0, '': 3.0}\n",
    "a number of 5000 digits": "K: " + "9" * 5000,
    "a count of 5000 digits": "data: {batch_size: " + "9" * 5000 + "}",
    "a number of 400 digits": "K: " + "9" * 400,
    "a count of 400 digits": "optim: {epochs: " + "9" * 400 + "}",
    "nan": "loss_options: {q: .nan}\n",
    "inf": "loss_options: {q: .inf}\n",
    "a folder for a name": "run: {name: ../../../canary}\n",
    "an absolute name": "run: {name: /canary}\n",
    "a name with NUL": 'run: {name: "a\\0b"}\n',
    "a name of 5000 letters": "run: {name: " + "x" * 5000 + "}\n",
    "an empty name": "run: {name: ''}\n",
    "a model with a folder": "model: {name: ../../canary}\n",
    "a loss with a folder": "loss: ../../canary\n",
    "a protocol with a folder": "noise: {protocol: human:../../canary}\n",
    "a surrogate": 'run: {name: "\\ud800"}\n',
    "line breaks": 'run: {name: "a\\nb"}\n',
    "two documents": "K: 1\n---\nK: 2\n",
    "a list": "- 1\n",
    "null": "null\n",
    "nothing": "",
    "latin-1": "run: {name: caf\xe9}\n".encode("latin-1"),
    "UTF-16": "K: 1\n".encode("utf-16"),
    "NUL": b"K: 1\0\n",
    "another file that is missing": "config: nowhere.yaml\n",
    "itself as another file": "config: config.yaml\n",
    "a device as another file": "config: /dev/zero\n",
    "a device as a group": "data: /dev/zero\n",
    "no loss options": "loss_options: null\n",
    "no K": "K: null\n",
    "no milestones": "optim: {milestones: null}\n",
    "no epochs": "optim: {epochs: null}\n",
    "dates": "K: 2020-01-01\nrun: {name: 2020-01-01 10:00:00}\n",
    "a set": "K: !!set {a, b}\n",
    "binary": "K: !!binary aGVsbG8=\n",
}
for _name, _text in YAMLS.items():
    BOMBS["YAML config", _name] = _yaml(_text)


@bomb("YAML config", name="a FIFO")
def _(folder: Path) -> None:
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")


@bomb("YAML config", name="a FIFO as a group")
def _(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    put(folder / "config.yaml", b"data: fifo\n")


# Run manifests


def _manifest(change: dict[str, Any], which: str = "distill/x") -> Bomb:
    path = f"{which}/manifest.json"
    return lambda folder: put(
        folder / path, json.dumps(json.loads((folder / path).read_bytes()) | change).encode()
    )


for _what, _values in {
    "config a list": {"config": []},
    "config null": {"config": None},
    "config text": {"config": "x"},
    "teacher a number": {"teacher": 3},
    "teacher null": {"teacher": None},
    "teacher with NUL": {"teacher": "a\0b"},
    "results a list": {"results": []},
    "results of text": {"results": {"last": {"tag": "x", "value": "y"}}},
    "status a list": {"status": []},
    "sum a list": {"data_sha256": ["x"]},
    "a sum of 100 000 letters": {"data_sha256": "x" * 100_000},
    "a sum with line breaks": {"data_sha256": "x\n\x1b[31my"},
}.items():
    BOMBS["run manifest", _what] = _manifest(_values)
    BOMBS["run manifest", f"teacher's: {_what}"] = _manifest(_values, "pretrain/t")
    HARMLESS.add(f"teacher's: {_what}")  # another run is passed over
