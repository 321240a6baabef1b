"""What was run, in words: the conditions that a caption states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.data.datasets import dataset_info
from rmd_dist.study.cells import Cell, Entry
from rmd_dist.study.folder import Study
from rmd_dist.study.places import DATASET_TITLES, Places


def conditions(study: Study, places: Places, dataset: str) -> str:
    """Data set, model, samples, epochs, batch, lr, augmentation, seeds and teacher of a table's runs."""
    entries = [e for e in places.table.entries if e.dataset == dataset]
    cells = [study.cells[entry.key] for entry in entries]
    configs = [cell.config for cell in cells if isinstance(cell.config, DistillConfig)]
    parts = [
        DATASET_TITLES.get(dataset, dataset),
        _each(config.model.name for config in configs),
        _each(_images(config) for config in configs),
        f"{_each(config.optim.epochs for config in configs)} epochs of batch "
        f"{_each(config.data.batch_size for config in configs)}",
        f"lr {_each(config.optim.lr for config in configs)} ({_each(c.optim.schedule for c in configs)})",
        f"augmentation: {_each(_augmentation(config) for config in configs)}",
        f"test images: {_each(_tested(config) for config in configs)}",
        f"seeds {', '.join(str(seed) for seed in sorted({entry.seed for entry in entries}))}",
        f"teacher: {_teacher(study, places, entries, cells)}",
    ]
    return "; ".join(parts) + "."


def what_was_run(study: Study, places: Places, dataset: str | None = None) -> str:
    """`conditions` of one data set of a table, or of all."""
    chosen = [dataset] if dataset else places.datasets
    return " ".join(conditions(study, places, name) for name in chosen)


def _each(values: Iterable[object]) -> str:
    """The value that all share, or the different ones."""
    found = dict.fromkeys(f"{v:g}" if isinstance(v, float) else _grouped(v) for v in values)
    return " or ".join(found)


def _grouped(value: object) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def _images(config: DistillConfig) -> str:
    count = config.data.train_samples or dataset_info(config.data.dataset).train_count
    held_out = round(config.validation * count)
    if not held_out:
        return f"{_grouped(count)} training images"
    return (
        f"{_grouped(count - held_out)} training images, {_grouped(held_out)} more held out with noisy labels"
    )


def _tested(config: DistillConfig) -> int:
    return config.data.test_samples or dataset_info(config.data.dataset).test_count


def _augmentation(config: DistillConfig) -> str:
    crop, flip = config.augment.padding, config.augment.flip_p
    parts = [f"crop with padding {crop}"] * (crop > 0) + ["flip"] * (flip > 0)
    return " and ".join(parts) or "none"


def _teacher(study: Study, places: Places, entries: Sequence[Entry], cells: Sequence[Cell]) -> str:
    """Which encoders the students were drawn to, and how much the pretrained one knows."""
    found: list[str] = []
    for key in dict.fromkeys(cell.needs for cell in cells if cell.needs is not None):
        config = study.cells[key].config
        assert isinstance(config, PretrainConfig)
        knn = study.accuracy(key)
        known = f"kNN accuracy {100 * knn:.2f} %" if knn is not None else "not finished"
        count = config.data.train_samples or dataset_info(config.data.dataset).train_count
        found.append(
            f"SimSiam, {_grouped(count)} images without labels, {config.optim.epochs} epochs of batch "
            f"{config.data.batch_size}, lr {config.optim.lr:g}, {known}"
        )
    given = [cell.config.teacher for cell in cells if isinstance(cell.config, DistillConfig)]
    for teacher in dict.fromkeys(teacher for teacher in given if teacher):
        found.append(
            "an untrained encoder" if teacher == "random" else _file(study, places, entries, teacher)
        )
    return " and ".join(found) or "none"


def _file(study: Study, places: Places, entries: Sequence[Entry], teacher: str) -> str:
    """An encoder that came as a file: its name, without folders, which are one machine's."""
    own = places.spec.teachers.get(entries[0].dataset)
    what = "an encoder made beforehand" if own and Path(own).resolve() == Path(teacher) else "an encoder"
    for key, cell in study.cells.items():
        if cell.stage == "pretrain" and study.run(key) == Path(teacher).parent:
            return f"the encoder of {key}"
    return f"{what}, {Path(teacher).name}"
