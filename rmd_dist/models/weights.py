"""Tensors on disk: safetensors, written as a stream, read within limits; weights with clear errors."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rmd_dist.errors import ConfigError
from rmd_dist.files import atomic_path, kind_of, regular_size

MAX_HEADER_BYTES = 4 << 20  # of a safetensors file: 40 000 tensors, where a large model has a thousand


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> tuple[int, str]:
    """Write named tensors as safetensors, atomically; any device and memory format.

    Returns (bytes, hex SHA-256) of the file, from what was written. The bytes are those of safetensors'
    own `save`, which for 90 MB holds the interpreter for a quarter of a second and makes copies: here
    a thread writes tensor after tensor, and other threads train meanwhile.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        about = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        header[name] = about
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        head: list[Any] = [struct.pack("<Q", len(text)), text]
        for part in itertools.chain(head, _contents(tensors, order)):
            digest.update(part)
            file.write(part)
    return 8 + len(text) + end, digest.hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors, whatever they were read from, in whichever order and memory format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {_DTYPES[tensors[name].dtype]} {list(tensors[name].shape)}\n".encode())
        digest.update(next(_contents(tensors, [name])))
    return digest.hexdigest()


def _contents(tensors: dict[str, Tensor], order: list[str]) -> Iterator[Any]:
    """The bytes of one tensor after another. Copies to the plain layout are NumPy's: in this thread alone."""
    for name in order:
        value = tensors[name].detach().cpu()
        # bfloat16 is unknown to NumPy; its bits are moved as integers.
        bits = value.view(torch.int16) if value.dtype is torch.bfloat16 else value
        yield np.ascontiguousarray(bits.numpy()).reshape(-1).view(np.uint8)


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named CPU tensors of a safetensors file. Raises ConfigError if it is missing or damaged."""
    head = _head(path)
    remedy = "get it afresh, or give another file"
    try:
        header = int.from_bytes(head[:8], "little")
        if (kind := kind_of(head)) and (header > MAX_HEADER_BYTES or not head):
            remedy = _ALONE if kind[1] == "convert it" else kind[1]
            if head.startswith(OLD_PYTORCH):
                kind = "a file of PyTorch before 1.6", ""
                remedy = _RENEW.format(path)
            raise ValueError(f"it is {kind[0]}")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header} bytes, at most {MAX_HEADER_BYTES} are sensible")
        return load_file(path)
    except Exception as error:  # torch, too, has its own for shapes that cannot be
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path} is not an intact safetensors file ({reason}); {remedy}") from error


OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_RENEW = (
    'convert it: python -c "import torch; '
    "torch.save(torch.load('{}', 'cpu', weights_only=True), 'weights.pth')\", and give weights.pth"
)
_ALONE = "where it was made, save its tensors alone: torch.save(model.state_dict(), 'weights.pth')"


class _Other(ValueError):
    """An intact file that holds something else than tensors."""


def _head(path: Path) -> bytes:
    """The first bytes of a regular file."""
    try:
        regular_size(path)
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a safetensors or PyTorch file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); give another file") from error


def is_pytorch(path: Path) -> bool:
    """Whether a file is what `torch.save` writes since PyTorch 1.6, by its content."""
    return _head(path).startswith(b"PK\x03\x04")


def read_pytorch(path: Path) -> dict[str, Tensor]:
    """Named CPU tensors of a file of `torch.save`; names of dicts in dicts are joined by dots.

    The tensors are views of the file. Nothing of it is run: it is read by torch's restricted unpickler, and
    only if it asks for nothing but plain tensors. Raises ConfigError if it does, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename.rpartition("/")[2] for member in members]
            if names.count("data.pkl") != 1 or "constants.pkl" in names:
                what = "TorchScript" if "constants.pkl" in names else "a zip archive of other files"
                raise _Other(f"it is {what}")
            size = regular_size(path)
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > size for m in members):
                raise ValueError("it is packed, which torch.save does not do")
            if broken := archive.testzip():
                raise ValueError(f"its {broken} is damaged")
            _check_pickle(archive.read(members[names.index("data.pkl")]))
        # Mapped, a tensor that claims to be larger than the file takes no memory.
        return _tensors_in(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).partition("\n")[0]
        remedy = _ALONE if isinstance(error, _Other) else "get it afresh, or give another file"
        raise ConfigError(f"{path} cannot be read as a PyTorch file ({reason}); {remedy}") from error


_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.storage UntypedStorage"
    r"|torch(\.cuda)? (\w+Storage|Size|device|b?float\d+|u?int\d+|bool)"
)
MAX_OPERATIONS = 1_000_000  # of a pickle: thirty for a tensor
MAX_TUPLES = 20_000  # four for a tensor; as a key, a chain of 50 000 overflows the stack
MAX_FETCHES = 20  # of tuples that are there already: forty of them can take 2^40 steps to hash
MAX_ENTRIES = 100_000  # of all dicts
MAX_DEPTH = 8


def _check_pickle(payload: bytes) -> None:
    """ValueError for what torch's unpickler admits and plain tensors never need, or what would break it."""
    tuples, fetches, previous = 0, 0, ""
    held: set[object] = set()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(payload)):
        name = opcode.name
        if number > MAX_OPERATIONS:
            raise _Other(f"it has more than {MAX_OPERATIONS} operations")
        if name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _PLAIN.fullmatch(str(argument)):
            raise _Other(f"it asks for {argument or 'a name'!s:.100}, which is no tensor")
        tuples += "TUPLE" in name
        if "PUT" in name and "TUPLE" in previous:
            held.add(argument)
        fetches += "GET" in name and argument in held
        if tuples > MAX_TUPLES or fetches > MAX_FETCHES:
            raise _Other("it has more tuples than tensors need")
        previous = name


def _tensors_in(content: object) -> dict[str, Tensor]:
    """The plain tensors in dicts of dicts, by the names on the way to them."""
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, int, object]] = [("", 0, content)]
    entries = 0
    while waiting:
        name, depth, value = waiting.pop()
        if isinstance(value, dict):
            entries += len(value)
            if depth >= MAX_DEPTH or entries > MAX_ENTRIES:
                raise _Other("its dicts are too deep or too many")
            inside = ((key, item) for key, item in value.items() if isinstance(key, str | int))
            waiting += [(f"{name}.{key}" if name else str(key), depth + 1, item) for key, item in inside]
        elif type(value) in (Tensor, nn.Parameter) and _is_plain(tensor := cast(Tensor, value)):
            found[name] = tensor.detach()
    if not found.keys() - {""}:
        raise _Other("it holds no tensors with names")
    return found


def _is_plain(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and min(tensor.stride(), default=0) >= 0


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """`load_state_dict` that answers a mismatch with one clear line (see `check_weights`)."""
    check_weights(module, tensors, source)
    module.load_state_dict(tensors)


def check_weights(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """ConfigError, naming `source`, unless `tensors` have the names, shapes and kinds of the module's."""
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - own.keys())
    common = own.keys() & tensors.keys()
    wrong = [k for k in common if own[k].shape != tensors[k].shape]
    foreign_kind = [k for k in common if own[k].is_floating_point() != tensors[k].is_floating_point()]
    if missing or foreign or wrong or foreign_kind:
        details = [
            f"{len(names)} {what} (such as {sorted(names)[0]})"
            for names, what in (
                (missing, "missing"),
                (foreign, "unknown"),
                (wrong, "of another shape"),
                (foreign_kind, "of another kind of number"),
            )
            if names
        ]
        remedy = "check the model's name"
        if not common:
            remedy += "; where they are its weights by other names than timm's, save them by timm's first"
        raise ConfigError(f"{source} holds another model: tensors {', '.join(details)}; {remedy}")
