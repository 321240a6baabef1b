"""Relation modelling: SimSiam (paper section 3.2) or SimCLR on views of each image. No label is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.config import EvalConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.loader import Batch
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import Splits
from rmd_dist.evaluation.measures import at_chance, knn_accuracy
from rmd_dist.evaluation.predict import BetweenBatches, predict
from rmd_dist.losses import feature_spread
from rmd_dist.models import SimCLR, SimSiam
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks.base import Evaluation, StepOutput, Task

# Healthy features spread to about 1, collapsed ones to 0 (Chen & He 2021, section 4.1).
COLLAPSE_SPREAD = 0.1


class PretrainTask(Task):
    """Pretraining without labels; its encoder is what the distillation uses as its teacher.

    `objective`: the loss, over all ranks, of what `model` gives, which has projections z of each view.
    """

    network = "encoder"
    views = 2
    headline = "eval/knn_accuracy"

    def __init__(
        self,
        model: SimSiam | SimCLR,
        objective: Callable[[Any], Tensor],
        train: Dataset,
        test: Dataset,
        splits: Splits,
        eval: EvalConfig,
        compute: Compute,
    ) -> None:
        self.module, self.objective = model, objective
        self.train, self.test, self.splits = train, test, splits
        self.eval, self.compute = eval, compute
        self.preprocess = Preprocess.of(model.encoder)

    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        compute = self.compute
        views = (self.preprocess(view, compute.channels_last, compute.dtype) for view in batch.views)
        output = module(*views)
        loss = self.objective(output)
        values = {"loss": loss.detach()}
        if logging:
            values["feature_spread"] = feature_spread(parallel.all_gather_rows(output.z[0].detach()))
        return StepOutput(loss, values)

    def evaluate(self, network: Any, between: BetweenBatches | None = None) -> Evaluation:
        eval, splits = self.eval, self.splits
        features = partial(
            predict, network, compute=self.compute, batch_size=eval.batch_size, between=between
        )
        if not self.train.info.classes:  # nothing tells right from wrong, but collapse shows
            spread = feature_spread(features(self.test, splits.test).float())
            return Evaluation({"eval/feature_spread": float(spread)})
        # The labels serve the report alone.
        bank, bank_labels = features(self.train, splits.probe).float(), self.train.labels[splits.probe]
        queries, query_labels = features(self.test, splits.test).float(), self.test.labels[splits.test]
        k, temperature = eval.knn_k, eval.knn_temperature
        device = self.compute.device
        accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, k, temperature, device)
        return Evaluation({"eval/knn_accuracy": accuracy})

    def warning(self, values: dict[str, float]) -> str | None:
        spread = values.get("train/feature_spread", 1.0)
        if spread >= COLLAPSE_SPREAD:
            return None
        return (
            f"collapse: the features' spread is {spread:.3f} (healthy: about 1), all images look "
            "alike; start anew with a lower --lr, a larger --batch-size or another --seed"
        )

    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        accuracy = measured.get("eval/knn_accuracy")
        if accuracy is None or not at_chance(accuracy, self.test.info.num_classes, len(self.splits.test)):
            return None
        loss, spread = (logged.get(f"train/{name}", math.nan) for name in ("loss", "feature_spread"))
        return (
            f"collapse: kNN accuracy {accuracy:.2%} is at chance level, loss {loss:.3f}, "
            f"feature spread {spread:.3f} (healthy: about 1); start anew with a lower --lr, a larger "
            "--batch-size or another --seed"
        )
