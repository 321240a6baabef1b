"""Figures of a model on disk: what `rmd evaluate` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rmd_dist.config import EvaluateConfig
from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import choose
from rmd_dist.errors import ConfigError, a_few
from rmd_dist.evaluation.measures import classification, knn_accuracy, linear_probe
from rmd_dist.evaluation.predict import predict, predict_classes
from rmd_dist.models.export import LoadedModel, load
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.processes import workers_per_rank


@dataclass
class ModelFigures:
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
        raise ConfigError("no checkpoint given; use: rmd evaluate RUN_FOLDER_OR_FILE")
    path = Path(config.checkpoint)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give a run folder, or a safetensors or PyTorch file")
    return load(path, config.model)


def dataset_of(config: EvaluateConfig, model: LoadedModel) -> str:
    """Name of the data set to evaluate on. Raises ConfigError if there is none, or of other classes."""
    name = config.dataset or model.dataset
    if name is None:
        raise ConfigError(f"{model.path} does not say what it was trained on; give --dataset")
    names = dataset_info(name, config.root).classes
    if model.num_classes not in (0, len(names)):
        raise ConfigError(
            f"{model.path} has {model.num_classes} classes, {name} has {len(names)}; "
            "give the --dataset that the model was trained on"
        )
    if model.classes and model.classes != names:
        raise ConfigError(
            f"{model.path} knows the classes {a_few(model.classes)}, {name} has {a_few(names)}; give the "
            "--dataset that the model was trained on"
        )
    return name


def evaluate_model(config: EvaluateConfig, model: LoadedModel, device: torch.device) -> ModelFigures:
    """Evaluate a classifier on the test set, or an encoder by kNN and a linear probe. Collective.

    Clean labels throughout. Raises ConfigError if the data set is unknown or does not fit the model.
    """
    name = dataset_of(config, model)
    source = Path(config.source) if config.source else None
    train, test = (
        open_dataset(name, split, root=Path(config.root), source=source, loader=config.loader)
        for split in ("train", "test")
    )
    if not train.info.classes:
        raise ConfigError(f"{name} has no labels, by which a model is measured; give a --dataset that has")
    model.assume_input(Preprocess.for_dataset(train.info).to_cfg())
    compute = Compute(device, workers=workers_per_rank(config.workers))
    compute.placed(model.module)
    splits = choose(
        len(train),
        len(test),
        probe_samples=config.train_samples,
        test_samples=config.test_samples,
        groups=train.files.groups if train.files else None,
    )
    if model.num_classes:
        return _classifier(config, model, test, splits.test, compute)
    outputs = partial(predict, model.module, compute=compute, batch_size=config.batch_size)
    bank, bank_labels = outputs(train, splits.probe).float(), train.labels[splits.probe]
    queries, query_labels = outputs(test, splits.test).float(), test.labels[splits.test]
    k = min(config.knn_k, len(bank))
    accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, k, config.knn_temperature, device)
    figures = {f"kNN accuracy (k {k}, bank {len(bank)})": accuracy}
    if config.linear_probe:
        figures["linear probe accuracy"] = linear_probe(bank, bank_labels, queries, query_labels)
    return ModelFigures(model.architecture, name, figures)


def _classifier(
    config: EvaluateConfig,
    model: LoadedModel,
    test: Dataset,
    indices: npt.NDArray[np.int64],
    compute: Compute,
) -> ModelFigures:
    classes = test.info.classes
    predicted = predict_classes(model.module, test, indices, compute=compute, batch_size=config.batch_size)
    report = classification(predicted, test.labels[indices], len(classes))
    per_class = [float(share) for share in report.per_class]
    figures = {"accuracy": report.accuracy}
    return ModelFigures(
        model.architecture, test.info.name, figures, list(classes), per_class, report.confusion
    )
