"""Relation modelling: SimSiam on two views of each image (paper section 3.2). No label is read to train."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rmd_dist import dist
from rmd_dist.config import PretrainConfig
from rmd_dist.data.datasets import Dataset
from rmd_dist.data.loader import Batch, Loader
from rmd_dist.data.splits import Indices, probe, subset
from rmd_dist.evaluate import extract_features, go_on, knn_accuracy
from rmd_dist.losses import feature_spread, simsiam_loss
from rmd_dist.models import SimSiam
from rmd_dist.models.export import create, export
from rmd_dist.tasks.base import Evaluation, Place, StepOutput, Task

# Healthy features spread to about 1, collapsed ones to 0 (Chen & He 2021, section 4.1).
COLLAPSE_SPREAD = 0.1


class PretrainTask(Task):
    """SimSiam pretraining; `encoder` is what the distillation uses as its teacher."""

    config: PretrainConfig
    headline = "eval/knn_accuracy"

    def __init__(self, config: PretrainConfig, place: Place) -> None:
        super().__init__(config, place)
        self.encoder = self.exported = create(config.model.name, num_classes=0)
        self.module = SimSiam(self.encoder, config.simsiam.dim, config.simsiam.hidden_dim)
        self.indices = subset(len(self.train_set), config.data.train_samples)
        self.bank_indices = probe(self.indices, config.eval.train_samples)

    def train_loader(self) -> Loader:
        return self._augmented(self.indices, self.config.views)

    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        x1, x2 = (self.normalize(view) for view in batch.views)
        p1, p2, z1, z2 = module(x1, x2)
        loss = dist.global_mean(simsiam_loss(p1, p2, z1, z2))
        values = {"loss": loss.detach()}
        if logging:
            values["feature_spread"] = feature_spread(dist.all_gather_rows(z1.detach()))
        return StepOutput(loss, values)

    def warning(self, values: dict[str, float]) -> str | None:
        spread = values.get("train/feature_spread", 1.0)
        if spread >= COLLAPSE_SPREAD:
            return None
        return (
            f"collapse: the features' spread is {spread:.3f} (healthy: about 1), all images look "
            "alike; start anew with a lower --lr, a larger --batch-size or another --seed"
        )

    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        accuracy = measured["eval/knn_accuracy"]
        if not self.at_chance(accuracy):
            return None
        loss, spread = (logged.get(f"train/{name}", math.nan) for name in ("loss", "feature_spread"))
        return (
            f"collapse: kNN accuracy {accuracy:.2%} is at chance level, loss {loss:.3f} (collapsed: -1), "
            f"feature spread {spread:.3f} (healthy: about 1); start anew with a lower --lr (now "
            f"{self.config.optim.lr:g}), a larger --batch-size or another --seed"
        )

    def evaluate(self, between: Callable[[], None] = go_on) -> Evaluation:
        bank, bank_labels = self._features(self.train_set, self.bank_indices, between)
        queries, query_labels = self._features(self.test_set, self.test_indices, between)
        k, temperature = self.config.eval.knn_k, self.config.eval.knn_temperature
        accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, k, temperature, self.place.device)
        return Evaluation({"eval/knn_accuracy": accuracy})

    def _features(
        self, dataset: Dataset, indices: Indices, between: Callable[[], None]
    ) -> tuple[Tensor, Indices]:
        """(features (N, D), clean labels (N,)); the labels serve the report alone."""
        with self._in_order(dataset, indices) as loader, self._autocast():
            features, index = extract_features(
                self.encoder, loader, self.normalize, self.place.device, indices, between
            )
        return features, dataset.labels[index.numpy()]

    def export(self, folder: Path) -> None:
        export(
            folder, self.encoder, self.config.model.name, 0, self.about() | {"classes": list(self.classes)}
        )

    def about(self) -> dict[str, Any]:
        return super().about() | {"stage": "pretrain", "train_samples": len(self.indices)}
