"""What was run, in words: the conditions that a caption states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmd_dist.config import TIMM, DistillConfig, PretrainConfig, is_path
from rmd_dist.config.convert import flatten
from rmd_dist.config.datasets import SMALL
from rmd_dist.data.dataset import dataset_info
from rmd_dist.report.results import Results, dataset_title
from rmd_dist.runs.console import grouped
from rmd_dist.runs.folder import read_manifest
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import Study

TITLES = {"simsiam": "SimSiam", "simclr": "SimCLR"}


def conditions(results: Results, dataset: str) -> str:
    """Data set, model, samples, epochs, batch, lr, augmentation, seeds and teacher of a table's runs.

    Raises ConfigError if the manifest beside a given encoder is damaged.
    """
    study = results.study
    entries = [e for e in results.table.entries if e.dataset == dataset]
    cells = [study.cells[entry.key] for entry in entries]
    configs = [cell.config for cell in cells if isinstance(cell.config, DistillConfig)]
    seeds = sorted({entry.seed for entry in entries})
    parts = [
        dataset_title(dataset),
        _each(config.model.name for config in configs),
        _each(_images(config) for config in configs),
        f"{_each(config.optim.epochs for config in configs)} epochs of batch "
        f"{_each(config.data.batch_size for config in configs)}",
        f"lr {_each(config.optim.lr for config in configs)} ({_each(c.optim.schedule for c in configs)})",
        f"augmentation: {_each(_augmentation(config) for config in configs)}",
        f"test images: {_each(_tested(config) for config in configs)}",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        f"teacher: {_teacher(study, cells)}",
    ]
    return "; ".join(parts) + "."


def _each(values: Iterable[object]) -> str:
    """The value that all share, or the different ones."""
    return " or ".join(dict.fromkeys(_shown(value) for value in values))


def _shown(value: object) -> str:
    if isinstance(value, int):
        return grouped(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _images(config: DistillConfig) -> str:
    count = config.data.train_samples or dataset_info(config.data.dataset, config.data.root).train_count
    held_out = round(config.validation * count)
    if not held_out:
        return f"{grouped(count)} training images"
    return f"{grouped(count - held_out)} training images, {grouped(held_out)} more held out with noisy labels"


def _tested(config: DistillConfig) -> int:
    return config.data.test_samples or dataset_info(config.data.dataset, config.data.root).test_count


def _augmentation(config: DistillConfig) -> str:
    crop, flip = config.augment.padding, config.augment.flip_p
    if config.data.dataset in SMALL and config.data.image_size is None:
        parts = [f"crop with padding {crop}"] * (crop > 0)
    else:
        low, high = config.augment.crop_scale
        parts = [f"crop of {100 * low:g} to {100 * high:g} % of the area"]
    parts += ["flip"] * (flip > 0)
    return " and ".join(parts) or "none"


def _teacher(study: Study, cells: Sequence[Cell]) -> str:
    """Which encoders the students were drawn to, and how much the pretrained one knows."""
    found: list[str] = []
    for key in dict.fromkeys(cell.needs for cell in cells if cell.needs is not None):
        config = study.cells[key].config
        assert isinstance(config, PretrainConfig)
        found.append(_pretraining(flatten(config), study.accuracy(key)))
    students = [cell.config for cell in cells if isinstance(cell.config, DistillConfig)]
    for teacher, size in dict.fromkeys((c.teacher, c.teacher_image_size) for c in students if c.teacher):
        if is_path(teacher):
            found.append(_file(Path(teacher)))
        else:
            found.append("an untrained encoder" if teacher == "random" else teacher.removeprefix(TIMM))
        found[-1] += f" at {size} pixels" if size else ""
    return " and ".join(found) or "none"


def objective_of(teacher: Path) -> str | None:
    """How the encoder of a run folder or a file was pretrained, by the manifest beside it; None: unknown."""
    config = _manifest_beside(teacher).get("config")
    if not isinstance(config, dict) or "optim.epochs" not in config:
        return None
    return TITLES.get(_objective(config))


def _manifest_beside(teacher: Path) -> dict[str, Any]:
    return read_manifest(teacher if teacher.is_dir() else teacher.parent)


def _objective(config: Mapping[str, Any]) -> str:
    return str(config.get("objective", "simsiam"))  # there were runs before there was a choice


def _file(teacher: Path) -> str:
    """An encoder that came as a file, by the manifest beside it, else by its name without folders."""
    manifest = _manifest_beside(teacher)
    try:
        return _pretraining(manifest["config"], float(manifest["results"]["last"]["value"]))
    except (KeyError, TypeError, ValueError):
        return f"an encoder made beforehand, {teacher.name}"


def _pretraining(config: Mapping[str, Any], knn: float | None) -> str:
    """A pretraining run in words, by its flat configuration. Raises KeyError if that lacks something."""
    count = (
        config["data.train_samples"] or dataset_info(config["data.dataset"], config["data.root"]).train_count
    )
    known = f"kNN accuracy {100 * knn:.2f} %" if knn is not None else "not finished"
    title = TITLES[_objective(config)]
    return (
        f"{title}, {grouped(count)} images without labels, {config['optim.epochs']} epochs "
        f"of batch {config['data.batch_size']}, lr {config['optim.lr']:g}, {known}"
    )
