"""Finished models on disk: `model.safetensors` with a `config.json` that timm reads.

The folder is a timm model: `timm.create_model("local-dir:FOLDER", pretrained=True)` after
`import rmd_dist.models`, or `create_model(NAME, num_classes=C, checkpoint_path=FOLDER/model.safetensors)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import rmd_dist.models.resnet  # noqa: F401  (registers the CIFAR ResNets with timm)
from rmd_dist.config import ConfigError
from rmd_dist.files import check_weights, load_weights, read_tensors, save_tensors, sha256, write_json
from rmd_dist.reading import read_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model read from disk, and what is known of it."""

    module: Any
    architecture: str
    num_classes: int
    dataset: str | None
    stage: str | None
    path: Path
    sha256: str


def create(name: str, num_classes: int) -> Any:  # timm's models share methods, but no type that has them
    """A freshly initialised timm model; `num_classes=0` gives pooled features (B, num_features).

    Raises ConfigError naming close models if timm does not know `name`.
    """
    if (
        not timm.is_model(name) or "." in name
    ):  # what follows a dot would be timm's name of weights to download
        near = timm.list_models(f"*{name.split('_')[0]}*cifar*") or timm.list_models("*_cifar*")
        raise ConfigError(f"model.name = {name!r} is not a timm model; try {', '.join(near)}")
    return timm.create_model(name, num_classes=num_classes)


def export(folder: Path, module: nn.Module, name: str, num_classes: int, about: dict[str, Any]) -> None:
    """Write `module` as a timm-loadable folder; `about` (data set, classes, stage) goes into its config."""
    pretrained = dict(getattr(module, "pretrained_cfg", {}))
    keep = ("input_size", "mean", "std", "first_conv", "classifier", "crop_pct", "interpolation")
    save_tensors(folder / WEIGHTS, module.state_dict())
    write_json(
        folder / CONFIG,
        {
            "architecture": name,
            "num_classes": num_classes,
            "num_features": getattr(module, "num_features", None),
            "pretrained_cfg": {k: pretrained[k] for k in keep if k in pretrained}
            | {"num_classes": num_classes},
            "rmd_dist": about,
        },
    )


def load(path: Path, default_architecture: str) -> LoadedModel:
    """Read a model from a run folder, an exported file, or a training checkpoint of either stage.

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
    tensors = _inference_part(read_tensors(file))
    about = _about(folder) or _about(folder.parent)  # checkpoints/ lie one folder below
    architecture, dataset, stage = (about.get(key) for key in ("architecture", "dataset", "stage"))
    if not all(isinstance(value, str | None) for value in (architecture, dataset, stage)):
        raise ConfigError(
            f"{folder}: architecture, dataset and stage must be text; restore {CONFIG} or remove it"
        )
    architecture = architecture or default_architecture
    # First without memory: the file's names and shapes decide whether there will be a model.
    with torch.device("meta"):
        outline = create(architecture, num_classes=0)
        classifier = tensors.get(f"{outline.pretrained_cfg['classifier']}.weight")
        num_classes = 0 if classifier is None or classifier.ndim == 0 else len(classifier)
        if num_classes and classifier is not None and classifier.numel():
            outline = create(architecture, num_classes)
    check_weights(outline, tensors, file)
    module = create(architecture, num_classes)
    load_weights(module, tensors, file)
    return LoadedModel(module, architecture, num_classes, dataset, stage, file, sha256(file))


def _inference_part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a training checkpoint the encoder's or the student's tensors; of an exported file all."""
    for prefix in ("model/encoder.", "model/model."):
        part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if part:
            return part
    return tensors


def _about(folder: Path) -> dict[str, Any]:
    """Architecture, data set and stage by a folder's config.json (exports), else its manifest.json (runs)."""
    config, manifest = _read_json(folder / CONFIG), _read_json(folder / "manifest.json")
    if config:
        about = config.get("rmd_dist", {})
        if not isinstance(about, dict):
            raise ConfigError(f"{folder / CONFIG} is damaged (bad rmd_dist); restore it or remove it")
        return about | {"architecture": config.get("architecture")}
    return manifest | {"architecture": manifest.get("model")} if manifest else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); restore it or remove it") from None
