"""Encoders that others have trained: a timm model with weights from a file, or from where timm has them."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

import rmd_dist.models.resnet  # noqa: F401  (registers the CIFAR ResNets with timm)
from rmd_dist.errors import ConfigError
from rmd_dist.files import sha256
from rmd_dist.models.unwrap import classifier_weights, unwrapped
from rmd_dist.models.weights import (
    check_weights,
    fingerprint,
    is_pytorch,
    load_weights,
    read_pytorch,
    read_tensors,
)


@dataclass(frozen=True)
class TimmEncoder:
    """A timm model by its name, and the file of its weights."""

    name: str
    """NAME or NAME.TAG, as timm has it; the tag tells weights apart, and the images that they want."""

    weights: Path | None = None
    """safetensors, or what torch.save wrote; None: what timm's cache or hub has."""


class Pretrained(NamedTuple):
    """An encoder that was read."""

    module: Any
    """Without a classifier; its `pretrained_cfg` says which images its weights want."""
    sha256: str
    """Of the file; of the encoder's tensors where timm had them."""
    prefix: str
    """What the names in the file began with, such as `module.`, and the model's do not."""


def load_pretrained(source: TimmEncoder) -> Pretrained:
    """The encoder, every weight of it read. Raises ConfigError if there is none, or another in the file."""
    _check_name(source.name)
    if source.weights is not None:
        return _from_file(source.name, source.weights)
    try:
        module = _wholly_loaded(lambda: _from_timm(source.name))
    except Exception as error:  # of the network, the hub, the file there: each has its own
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"teacher = timm:{source.name}: its weights are not in timm's cache and cannot be fetched "
            f"({reason}); give --weights FILE, or fill the cache where there is a network, by "
            f"timm.create_model({source.name!r}, pretrained=True), and bring its folder ($HF_HOME)"
        ) from error
    return Pretrained(module, fingerprint(module.state_dict()), "")


def _check_name(name: str) -> None:
    """ConfigError unless timm has such a model, and weights of that tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models()) or ["resnet18"]
        raise ConfigError(f"teacher = timm:{name} is not a timm model; try timm:{near[0]}")
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise ConfigError(
            f"teacher = timm:{name}: timm knows no such weights of that model; it has "
            f"{', '.join(known) or f'{architecture} alone'}"
        )


def _from_timm(name: str) -> Any:
    """By timm, which knows where its weights are; what is in its cache asks no network."""
    cfg: Any = timm.get_pretrained_cfg(name)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every attempt
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    cached = [try_to_load_from_cache(cfg.hf_hub_id, file) for file in names] if cfg.hf_hub_id else []
    files = [file for file in cached if isinstance(file, str) and not cfg.custom_load]
    model: Any = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": files[0]} if files else None
    )
    model.reset_classifier(0)
    return model


def _from_file(name: str, file: Path) -> Pretrained:
    foreign = is_pytorch(file)
    tensors = read_pytorch(file) if foreign else read_tensors(file)
    with torch.device("meta"):
        outline = timm.create_model(name, num_classes=0)
    found, prefix = unwrapped(tensors, outline, True, file)
    heads = tuple(weight.removesuffix("weight") for weight in classifier_weights(outline))
    body = {key: value for key, value in found.items() if not key.startswith(heads)}
    if body.keys() == outline.state_dict().keys():
        check_weights(outline, body, file)
        module = timm.create_model(name, num_classes=0)
        load_weights(module, body, file)
    else:
        common = os.path.commonprefix(list(tensors))  # noqa: RUF071 - cut at a dot
        prefix = common[: common.rfind(".") + 1]
        bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
        try:
            module = _wholly_loaded(lambda: _translated(name, bare))
        except Exception:
            check_weights(outline, body, file)
            raise
    return Pretrained(module, sha256(file), prefix)


_HEADS = ("head", "fc", "classifier", "head.fc")
"""What the classifying layer is called in most files."""


def _translated(name: str, tensors: dict[str, Tensor]) -> Any:
    """A model of weights by other names than timm's of today, such as their authors': timm translates."""
    heads = [tensors[f"{head}.weight"] for head in _HEADS if f"{head}.weight" in tensors]
    classes = len(heads[0]) if heads and heads[0].ndim else 0
    overlay = {"state_dict": dict(tensors), "num_classes": classes}
    model: Any = timm.create_model(name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay)
    model.pretrained_cfg |= {"state_dict": None}
    model.reset_classifier(0)
    return model


def _wholly_loaded(build: Callable[[], Any]) -> Any:
    """What `build` makes. Raises ValueError if weights stay random, as timm lets those of some models."""
    with torch.random.fork_rng(devices=[]):
        made = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            made.append(build())
    one, other = (model.state_dict() for model in made)
    if drawn := [name for name, value in one.items() if not torch.equal(value, other[name])]:
        raise ValueError(f"{len(drawn)} tensors, such as {drawn[0]}, are not in the weights")
    return made[0]
