"""Tensors on disk: safetensors, written as a stream, read within limits; weights with clear errors."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rmd_dist.errors import ConfigError
from rmd_dist.files import atomic_path, regular_size

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
    try:
        regular_size(path)
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header} bytes, at most {MAX_HEADER_BYTES} are sensible")
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a safetensors file") from None
    except Exception as error:  # torch, too, has its own for shapes that cannot be
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} is not an intact safetensors file ({reason}); restore or remove it"
        ) from error


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
        raise ConfigError(
            f"{source} holds another model: tensors {', '.join(details)}; check the model's name"
        )
