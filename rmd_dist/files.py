"""Files that are whole or absent: atomic writes, safetensors, weights with clear errors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from rmd_dist.config import ConfigError
from rmd_dist.reading import regular_size

MAX_HEADER_BYTES = 4 << 20  # of a safetensors file: 40 000 tensors, where a large model has a thousand


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically; any device and memory format."""
    with atomic_path(path) as temporary:
        # clone: tied or overlapping tensors are legal here, safetensors refuses shared storage.
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        # Not save_file: its files can be read by their owner alone, whatever the umask.
        temporary.write_bytes(save(plain, metadata={"format": "pt", **(metadata or {})}))


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


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
