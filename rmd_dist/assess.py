"""Figures of a model on disk: what `launch/evaluate.py` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist import dist
from rmd_dist.config import ConfigError, EvaluateConfig
from rmd_dist.data.datasets import Dataset
from rmd_dist.data.loader import Loader, build_loader, normalize
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.splits import Indices, probe
from rmd_dist.evaluate import classification, extract_features, knn_accuracy, linear_probe, predict_labels
from rmd_dist.launcher import workers_per_rank
from rmd_dist.models.export import LoadedModel, load


@dataclass
class Assessment:
    """Figures in [0, 1], equal on every rank; `per_class` and `confusion` for classifiers only."""

    model: str
    dataset: str
    figures: dict[str, float]
    classes: list[str] = field(default_factory=list)
    per_class: list[float] = field(default_factory=list)
    confusion: npt.NDArray[np.int64] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        plain = {k: getattr(self, k) for k in ("model", "dataset", "figures", "classes", "per_class")}
        return plain | {"confusion": None if self.confusion is None else self.confusion.tolist()}


def open_model(config: EvaluateConfig) -> LoadedModel:
    """The model that `config.checkpoint` names. Raises ConfigError if there is none or it is damaged."""
    if not config.checkpoint:
        raise ConfigError("no checkpoint given; use: launch/evaluate.py RUN_FOLDER_OR_FILE")
    path = Path(config.checkpoint)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a run folder or a safetensors file")
    return load(path, config.model)


def assess(config: EvaluateConfig, model: LoadedModel, device: torch.device) -> Assessment:
    """Evaluate a classifier on the test set, or an encoder by kNN and a linear probe. Collective.

    Clean labels throughout. Raises ConfigError if the data set is unknown or does not fit the model.
    """
    name = config.dataset or model.dataset
    if name is None:
        raise ConfigError(f"{model.path} does not say what it was trained on; give --dataset")
    source = Path(config.source) if config.source else None
    train, test = (
        open_dataset(name, split, root=Path(config.data_root), source=source, loader=config.loader)
        for split in ("train", "test")
    )
    module = model.module.to(device=device, memory_format=torch.channels_last)
    queries: Indices = np.arange(len(test))[: config.test_samples]
    if model.num_classes:
        return _classifier(config, model, module, test, queries, device)
    bank = probe(np.arange(len(train)), config.train_samples)
    bank_x, bank_y = _features(config, module, train, bank, device)
    test_x, test_y = _features(config, module, test, queries, device)
    k = min(config.knn_k, len(bank))
    accuracy = knn_accuracy(bank_x, bank_y, test_x, test_y, k, config.knn_temperature, device)
    figures = {f"kNN accuracy (k {k}, bank {len(bank)})": accuracy}
    if config.linear_probe:
        figures["linear probe accuracy"] = linear_probe(bank_x, bank_y, test_x, test_y)
    return Assessment(model.architecture, name, figures)


def _classifier(
    config: EvaluateConfig,
    model: LoadedModel,
    module: nn.Module,
    test: Dataset,
    queries: Indices,
    device: torch.device,
) -> Assessment:
    classes = test.info.classes
    if len(classes) != model.num_classes:
        raise ConfigError(
            f"{model.path} has {model.num_classes} classes, {test.info.name} has {len(classes)}; "
            "give the --dataset that the model was trained on"
        )
    with _in_order(config, test, queries, device) as loader:
        _, predicted = predict_labels(module, loader, _normalize(test), device, queries)
    report = classification(predicted, test.labels[queries], len(classes))
    per_class = [float(share) for share in report.per_class]
    figures = {"accuracy": report.accuracy}
    return Assessment(model.architecture, test.info.name, figures, list(classes), per_class, report.confusion)


def _features(
    config: EvaluateConfig, module: nn.Module, dataset: Dataset, indices: Indices, device: torch.device
) -> tuple[Tensor, Indices]:
    with _in_order(config, dataset, indices, device) as loader:
        features, index = extract_features(module, loader, _normalize(dataset), device, indices)
    return features, dataset.labels[index.numpy()]


def _in_order(config: EvaluateConfig, dataset: Dataset, indices: Indices, device: torch.device) -> Loader:
    return build_loader(
        dataset,
        kind=config.loader,
        augment=None,
        batch_size=config.batch_size,
        seed=0,
        indices=indices,
        shuffle=False,
        rank=dist.rank(),
        world_size=dist.world_size(),
        workers=workers_per_rank(config.workers),
        pinned=device.type == "cuda",
    )


def _normalize(dataset: Dataset) -> Any:
    info = dataset.info
    return lambda images: normalize(images, info.mean, info.std)
