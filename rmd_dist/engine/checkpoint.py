"""Checkpoints on disk: named tensors and scalars; written atomically, verified before loading.

A checkpoint is a pair in `checkpoints/`: `step-NNNNNNNNN.safetensors` (all tensors) and
`step-NNNNNNNNN.json` (its size and SHA-256, the step, scalars). The JSON is written last, so a
checkpoint exists only when it is whole. What they hold is the business of state.py. Nothing here can
execute code: tensors are safetensors, the rest JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmd_dist.errors import ConfigError
from rmd_dist.files import read_json, regular_size, sha256, write_json
from rmd_dist.models.weights import save_tensors

FORMAT = 1
_MANIFEST_TYPES = {"format": int, "step": int, "scalars": dict, "size": int, "sha256": str}


@dataclass(frozen=True)
class Checkpoint:
    """One intact checkpoint on disk."""

    path: Path
    step: int
    scalars: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is to hold."""

    step: int
    """Optimizer steps done."""

    tensors: dict[str, Tensor]
    """By name."""

    scalars: dict[str, Any]
    """The rest, fit for JSON."""


def write_checkpoint(folder: Path, state: Snapshot, *, keep: int, follows: int) -> Path:
    """Write a state; when it is on the disk, retain it and the `keep` - 1 before it.

    `follows`: step of the checkpoint that this state was trained from (0: none). Others after it are
    damaged, or a future that was rolled back. Nothing is deleted before the new checkpoint is whole, and
    a write that fails (OSError) leaves all that was there, and nothing else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:09d}.safetensors"
    manifest = path.with_suffix(".json")
    try:
        size, digest = save_tensors(path, state.tensors)
        about = {"format": FORMAT, "step": state.step, "scalars": state.scalars}
        write_json(manifest, about | {"size": size, "sha256": digest})
    except OSError:
        if not manifest.exists():
            path.unlink(missing_ok=True)  # room for others on a full disk
        raise
    _retire(folder, manifest, keep, follows)
    return path


def _retire(folder: Path, own: Path, keep: int, follows: int) -> None:
    before = folder / f"step-{follows:09d}.json"
    line = [own, *(path for path in _manifests(folder) if path <= before and path < own)]
    for path in {*_manifests(folder), *folder.glob("step-*.safetensors")}:
        if path.with_suffix(".json") not in line[:keep]:
            path.unlink()


def forget_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps."""
    for manifest in _manifests(folder):
        if manifest.stem > f"step-{step:09d}":
            manifest.unlink()
            manifest.with_suffix(".safetensors").unlink(missing_ok=True)


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint of a folder; damaged ones are named to `warn` and passed over."""
    for manifest in _manifests(folder):
        try:
            return open_checkpoint(manifest.with_suffix(".safetensors"))
        except ConfigError as error:
            warn(f"passing over a damaged checkpoint: {error}")
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify one checkpoint by its manifest. Raises ConfigError if it is missing, foreign or damaged."""
    try:
        manifest = read_json(path.with_suffix(".json"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
        wrong = [key for key, kind in _MANIFEST_TYPES.items() if type(manifest[key]) is not kind]
        if wrong or type(manifest["scalars"].get("scaler")) is not dict:
            raise ValueError(f"bad {', '.join(wrong) or 'scaler'} in its manifest")
        expected, step = manifest["size"], manifest["step"]
        if path.stem != f"step-{step:09d}":
            raise ValueError(f"its manifest is of step {step}")
        size = regular_size(path)
        intact = size == expected and sha256(path) == manifest["sha256"]
    except (OSError, ValueError, KeyError) as error:
        reason = "it has no file" if isinstance(error, FileNotFoundError) else repr(error)
        raise ConfigError(
            f"{path} is not an intact checkpoint: {reason} ({path.name} with its .json)"
        ) from error
    if size != expected:
        raise ConfigError(f"{path} has {size} bytes, its manifest says {expected}")
    if not intact:
        raise ConfigError(f"{path} does not have the SHA-256 of its manifest")
    return Checkpoint(path, step, manifest["scalars"])


def _manifests(folder: Path) -> list[Path]:
    """Manifests of a checkpoint folder, newest step first."""
    return sorted(folder.glob("step-*.json"), reverse=True)
