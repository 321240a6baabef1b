"""Finished models on disk: `model.safetensors` with a `config.json` that timm reads.

The folder is a timm model: `timm.create_model("local-dir:FOLDER", pretrained=True)` after
`import rmd_dist.models`, or `create_model(NAME, num_classes=C, checkpoint_path=FOLDER/model.safetensors)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import rmd_dist.models.resnet  # noqa: F401  (registers the CIFAR ResNets with timm)
from rmd_dist.errors import ConfigError
from rmd_dist.files import read_json, sha256, write_json
from rmd_dist.models.unwrap import classifier_weights, unwrapped
from rmd_dist.models.weights import (
    check_weights,
    is_pytorch,
    load_weights,
    read_pytorch,
    read_tensors,
    save_tensors,
)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
INPUT = ("input_size", "mean", "std")
"""What a `pretrained_cfg` says of the images that its model wants."""

RENDERED = (*INPUT, "interpolation", "crop_pct", "crop_mode")
"""And of how an image becomes one of them, which timm's `create_transform` follows."""

NETWORK = "network"
"""Key of a checkpoint's scalars: what the names of the tensors begin with that make up the model for use."""

MAX_SIZE = 4096  # pixels of a side
_ALONE = "mend it, or copy the weights alone to a folder of their own and give that file"
_NETWORKS = ("model/encoder.", "model/model.")  # of checkpoints without that key


@dataclass(frozen=True)
class LoadedModel:
    """A model read from disk, and what is known of it."""

    module: Any
    architecture: str
    num_classes: int
    dataset: str | None
    stage: str | None
    input: dict[str, Any] | None
    """Size, mean and std of the images it wants, which its `pretrained_cfg` has too; None: not recorded."""
    path: Path
    sha256: str
    classes: tuple[str, ...] = ()
    """Their names, where they are known."""
    prefix: str = ""
    """What the names in the file began with, such as `module.`, and the model's do not."""
    stored: Any = None
    """How the images were stored that it was trained on, where they were somebody's own."""

    def assume_input(self, input: dict[str, Any]) -> None:
        """Take `input` for what was not recorded: before it was, models wanted what their data set is."""
        if self.input is None:
            self.module.pretrained_cfg |= input


def create(name: str, num_classes: int, input: dict[str, Any] | None = None) -> Any:
    """A freshly initialised timm model; `num_classes=0` gives pooled features (B, num_features).

    `input`: what its `pretrained_cfg` is to say of images: input_size (3, H, W), mean and std; default: what
    timm says. A model that is built for one size of image is built for this one. Raises ConfigError naming
    close models if timm does not know `name`, or the size if there is no such model of it.
    """
    if (
        not timm.is_model(name) or "." in name
    ):  # what follows a dot would be timm's name of weights to download
        near = timm.list_models(f"*{name.split('_')[0]}*cifar*") or timm.list_models("*_cifar*")
        raise ConfigError(f"model.name = {name!r} is not a timm model; try {', '.join(near)}")
    if input is None:
        return timm.create_model(name, num_classes=num_classes)
    height, width = input["input_size"][1:]
    cfg: Any = timm.get_pretrained_cfg(name)
    fixed: dict[str, Any] = {"img_size": (height, width)} if cfg.fixed_input_size else {}
    wanted = f"model.name = {name!r} cannot be built for images of {height} x {width} pixels"
    try:
        model = timm.create_model(name, num_classes=num_classes, pretrained_cfg_overlay=input, **fixed)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{wanted}: {reason}; choose another --model") from error
    patch = _patch(model)
    if fixed and (height % patch[0] or width % patch[1]):
        raise ConfigError(
            f"{wanted}: their sides must be multiples of its patches' {patch[0]} x {patch[1]}; choose "
            "another --model, or another size where the data set leaves one"
        )
    return model


def _patch(model: Any) -> tuple[int, int]:
    """Height and width of the patches that a model cuts images into; (1, 1) where it cuts none."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def export(folder: Path, module: nn.Module, name: str, num_classes: int, about: dict[str, Any]) -> None:
    """Write `module` as a timm-loadable folder; `about` (data set, classes, stage) goes into its config.

    Its `pretrained_cfg`, which says how images become its input, is what timm's `create_transform` follows.
    """
    pretrained = dict(getattr(module, "pretrained_cfg", {}))
    labels = {"label_names": about["classes"]} if num_classes and "classes" in about else {}
    # Of a model that is built for one size: some of timm's have theirs written down.
    fixed = pretrained.get("fixed_input_size")
    size = {"model_args": {"img_size": pretrained["input_size"][1:]}} if fixed else {}
    save_tensors(folder / WEIGHTS, module.state_dict())
    write_json(
        folder / CONFIG,
        {
            "architecture": name,
            "num_classes": num_classes,
            "num_features": getattr(module, "num_features", None),
            "pretrained_cfg": {
                k: pretrained[k] for k in (*RENDERED, "first_conv", "classifier") if k in pretrained
            }
            | {"num_classes": num_classes},
            **size,
            **labels,
            "rmd_dist": about,
        },
    )


def load(path: Path, default_architecture: str) -> LoadedModel:
    """Read a model from a run folder, an exported file, a training checkpoint of any task, or elsewhere.

    What comes from elsewhere may be a PyTorch file, and the model a part of another (see `unwrapped`).
    Raises ConfigError if nothing is there, the file is damaged or it holds another architecture.
    """
    folder = path if path.is_dir() else path.parent
    file = path / WEIGHTS if path.is_dir() else path
    if path.is_dir() and not file.exists():
        hint = (
            "its run has not finished; finish it"
            if (path / "manifest.json").exists()
            else "no model is there"
        )
        raise ConfigError(f"{path} has no {WEIGHTS}: {hint}, or name a file in its checkpoints/ folder")
    foreign = is_pytorch(file)
    tensors = read_pytorch(file) if foreign else _network_of(read_tensors(file), file)
    about = _about(folder)
    if not about and folder.name == "checkpoints":
        about = _about(folder.parent)
    architecture, dataset, stage = (about.get(key) for key in ("architecture", "dataset", "stage"))
    if not all(isinstance(value, str | None) for value in (architecture, dataset, stage)):
        raise ConfigError(f"{folder}: architecture, dataset and stage in {CONFIG} must be text; {_ALONE}")
    classes = about.get("classes") or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"{folder}: classes in {CONFIG} must be a list of names; {_ALONE}")
    architecture, input = architecture or default_architecture, _input(about, folder)
    # First without memory: the file's names and shapes decide whether there will be a model.
    with torch.device("meta"):
        outline = create(architecture, 0, input)
        tensors, prefix = unwrapped(tensors, outline, foreign, file)
        classifier = next((tensors[n] for n in classifier_weights(outline) if n in tensors), None)
        num_classes = 0 if classifier is None or classifier.ndim == 0 else len(classifier)
        if num_classes and classifier is not None and classifier.numel():
            outline = create(architecture, num_classes, input)
    check_weights(outline, tensors, file)
    module = create(architecture, num_classes, input)
    load_weights(module, tensors, file)
    names = tuple(classes) if num_classes == len(classes) else ()
    where = (file, sha256(file), names, prefix, about.get("stored"))
    return LoadedModel(module, architecture, num_classes, dataset, stage, input, *where)


def _network_of(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Of a training checkpoint the tensors of the model for use, by its names; of an exported file all."""
    recorded = _read_json(file.with_suffix(".json")).get("scalars", {}) if file.suffix else {}
    named = recorded.get(NETWORK) if isinstance(recorded, dict) else None
    for prefix in (named,) if isinstance(named, str) else _NETWORKS:
        part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if part:
            return part
    return tensors


def _input(about: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """What was recorded of the images that a model wants. Raises ConfigError if that cannot be."""
    given = about.get("input")
    if given is None:
        return None
    try:
        size, mean, std = (tuple(given[key]) for key in INPUT)
        sound = len(size) == len(mean) == len(std) == 3 and size[0] == 3
        sound = sound and all(type(n) is int and 0 < n <= MAX_SIZE for n in size)
        crop_pct = given.get("crop_pct", 1.0)
        sound = sound and all(
            isinstance(v, int | float) and math.isfinite(v) for v in (*mean, *std, crop_pct)
        )
        if not sound or min(std) <= 0 or not 0 < crop_pct <= 1:
            raise ValueError
    except (AttributeError, TypeError, KeyError, ValueError):
        raise ConfigError(
            f"{folder}: input = {given!r} must have input_size [3, H, W], mean and std; {_ALONE}"
        ) from None
    words = {"interpolation": "bilinear", "crop_mode": "center"}
    words |= {key: given[key] for key in words if isinstance(given.get(key), str)}
    return {"input_size": size, "mean": mean, "std": std, "crop_pct": crop_pct} | words


def _about(folder: Path) -> dict[str, Any]:
    """Architecture, data set and stage by a folder's config.json (exports), else its manifest.json (runs)."""
    config, manifest = _read_json(folder / CONFIG), _read_json(folder / "manifest.json")
    if config:
        about = config.get("rmd_dist", {})
        if not isinstance(about, dict):
            raise ConfigError(f"{folder / CONFIG} is damaged (bad rmd_dist); {_ALONE}")
        return about | {"architecture": config.get("architecture")}
    return manifest | {"architecture": manifest.get("model")} if manifest else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, missing_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {_ALONE}") from None
