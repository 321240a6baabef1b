"""The one model among the tensors of a file, whatever is around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmd_dist.errors import ConfigError

MAX_MODELS = 20  # looked for in a file


def classifiers(model: Any) -> tuple[str, ...]:
    """Names of a timm model's classifying layers: usually one, of some (a distilled DeiT) two."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def classifier_weights(model: Any) -> tuple[str, ...]:
    """Names of their weights."""
    return tuple(f"{name}.weight" for name in classifiers(model))


def unwrapped(
    tensors: dict[str, Tensor], outline: Any, foreign: bool, file: Path
) -> tuple[dict[str, Tensor], str]:
    """(the one model among `tensors`, what its names began with, such as `module.` or `encoder.`).

    Taken out if and only if the names that follow are those of the encoder `outline`; else all as they are.
    Its classifier goes with it if it is one layer: projection heads stand in that place too. Counts of
    batches, which old PyTorch did not write, are 0. Raises ConfigError if there are several such models.
    """
    body, heads = outline.state_dict(), tuple(f"{name}." for name in classifiers(outline))
    counted = {name for name in body if name.endswith(".num_batches_tracked")}
    mark = max(body.keys() - counted, key=len)
    prefixes = [name.removesuffix(mark) for name in tensors if f".{name}".endswith(f".{mark}")]
    found = {}
    for prefix in prefixes[:MAX_MODELS]:
        part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        inner = {name for name in part if not name.startswith(heads)}
        if body.keys() - counted <= inner <= body.keys():
            found[prefix] = part
    if len(found) > 1:
        raise ConfigError(
            f"{file} holds several models ({', '.join(sorted(found))}); save that of the one "
            "you want alone, by torch.save(model.state_dict(), 'weights.pth')"
        )
    for prefix, part in found.items():
        if prefix or foreign:
            one_layer = {
                f"{head}{kind}": ndim for head in heads for kind, ndim in (("weight", 2), ("bias", 1))
            }
            above = {name: t.ndim for name, t in part.items() if name.startswith(heads)}
            if above != one_layer:
                part = {name: t for name, t in part.items() if name not in above}
            return {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in counted} | part, prefix
    return tensors, ""
