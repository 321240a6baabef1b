"""Encoders that are taken as they are: of a pretraining run, of a file, or a timm model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmd_dist import parallel
from rmd_dist.config import TIMM
from rmd_dist.data.dataset import DatasetInfo
from rmd_dist.errors import ConfigError
from rmd_dist.models.export import load
from rmd_dist.models.pretrained import TimmEncoder, load_pretrained
from rmd_dist.models.student import Encoder

TeacherSource = Path | TimmEncoder | Literal["random"] | None
"""A pretrained encoder's run folder or file, a timm model, an untrained encoder, or no teacher."""


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder whose weights somebody else has trained, none of them on labels of the data set."""

    module: Encoder
    """Without a classifier; its `pretrained_cfg` says which images its weights want."""
    name: str
    """`timm:NAME`, or the path of its file."""
    sha256: str
    """Of its weights."""


def named_source(teacher: str, weights: str | None, key: str = "teacher") -> TimmEncoder | Path:
    """What a `teacher` is that is not random. ConfigError that names `key` for a path that is not there."""
    if teacher.startswith(TIMM):
        return TimmEncoder(teacher.removeprefix(TIMM), Path(weights) if weights else None)
    if not Path(teacher).exists():
        raise ConfigError(
            f"{key} = {teacher} does not exist; give a run folder, an encoder file or {TIMM}NAME"
        )
    return Path(teacher)


def open_source(
    source: TimmEncoder | Path,
    info: DatasetInfo,
    architecture: str,
    input: dict[str, Any],
    key: str = "teacher",
    image_size: int | None = None,
) -> FrozenEncoder:
    """The encoder that `source` names, for the images of a data set.

    `architecture` and `input` (a `pretrained_cfg`'s) are taken for what a file does not say of itself; `key`
    is the setting that names it. `image_size`: pixels that it is to get images in, instead of as its weights
    want them. Raises ConfigError if it cannot be read, is of another data set, or was trained on labels.
    """
    if isinstance(source, TimmEncoder):  # it never saw a label of this data set
        module, digest, prefix = load_pretrained(source)
        name = f"{TIMM}{source.name}"
    else:
        loaded = load(source, architecture)
        if loaded.dataset not in (None, info.name):
            raise ConfigError(
                f"{key} = {source} was trained on {loaded.dataset}, this run uses {info.name}; "
                "give one of the same data set"
            )
        if loaded.stage == "distill":
            raise ConfigError(
                f"{key} = {source} is a student, trained on labels; give a pretraining run, "
                "whose encoder never saw one"
            )
        loaded.assume_input(input)
        module, name, digest, prefix = loaded.module, str(loaded.path), loaded.sha256, loaded.prefix
    if prefix and parallel.is_main():
        print(f"{key} {name}: {prefix!r} was taken off the names of its tensors", flush=True)
    module.reset_classifier(0)
    encoder = FrozenEncoder(Encoder(module), name, digest)
    if image_size is not None:
        _resize(encoder, image_size)
    return encoder


def _resize(encoder: FrozenEncoder, size: int) -> None:
    """Have an encoder get images of `size` pixels. Raises ConfigError if it is built for another size."""
    cfg: dict[str, Any] = encoder.module.pretrained_cfg
    channels, *built_for = cfg["input_size"]
    if cfg.get("fixed_input_size") and built_for != [size, size]:
        raise ConfigError(
            f"{encoder.name} is built for images of {built_for[0]} x {built_for[1]} pixels alone, "
            f"not of {size}; leave the size out, or choose another encoder"
        )
    cfg["input_size"] = (channels, size, size)
