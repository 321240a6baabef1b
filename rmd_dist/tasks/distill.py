"""Relation-guided representation learning: noisy labels and the teacher's graph (paper section 3.3)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.config import EvalConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.labels import Labels
from rmd_dist.data.loader import Batch
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import Splits
from rmd_dist.evaluation.measures import at_chance, classification, memorisation
from rmd_dist.evaluation.predict import BetweenBatches, predict, predict_classes
from rmd_dist.losses import ClassificationLoss, RelationLoss, feature_spread
from rmd_dist.losses.relation import relation_matrices
from rmd_dist.models.student import Encoder, Student
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks.base import Evaluation, StepOutput, Task

GRAPH_SAMPLES = 64  # test images whose relation matrices are drawn


class DistillTask(Task):
    """L = L_task on the given labels + K L_graph towards a frozen teacher (paper section 3.3).

    `teacher`: its features, on the device and frozen; None: L_task alone. Student and teacher each get the
    images that their own `pretrained_cfg` asks for.
    """

    network = "model"
    views = 1
    headline = "test/accuracy"

    def __init__(
        self,
        student: Student,
        teacher: Encoder | None,
        loss: ClassificationLoss,
        relation: RelationLoss,
        K: float,
        labels: Labels,
        train: Dataset,
        test: Dataset,
        splits: Splits,
        eval: EvalConfig,
        compute: Compute,
    ) -> None:
        self.module, self.teacher = student, teacher
        self.loss, self.relation, self.K = loss, relation, K
        self.labels, self.train, self.test, self.splits = labels, train, test, splits
        self.eval, self.compute = eval, compute
        self.given = torch.from_numpy(labels.given).to(compute.device)
        self.preprocess = Preprocess.of(student)
        self.teacher_preprocess = self.preprocess if teacher is None else Preprocess.of(teacher)

    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        compute, pixels, y = self.compute, batch.views[0], self.given[batch.index]
        x = self.preprocess(pixels, compute.channels_last, compute.dtype)
        logits, features = module(x)
        task_loss = parallel.global_mean(self.loss.per_sample(logits, y))
        spread = {}
        if logging:
            spread["feature_spread"] = feature_spread(parallel.all_gather_rows(features.detach()))
        if self.teacher is None or self.K == 0:
            return StepOutput(task_loss, {"loss": task_loss.detach()} | spread)
        if self.teacher_preprocess != self.preprocess:
            x = self.teacher_preprocess(pixels, compute.channels_last, compute.dtype)
        with torch.no_grad():
            teacher_features = self.teacher(x)
        graph = self.relation(features, teacher_features)
        loss = task_loss + self.K * graph.loss
        values = {"loss": loss, "loss_task": task_loss, "loss_graph": graph.loss} | spread
        values |= {"loss_node": graph.node, "loss_edge": graph.edge}
        if logging:
            values["gradient_ratio"] = self._gradient_ratio(task_loss, graph.loss, logits, features)
        return StepOutput(loss, {name: value.detach() for name, value in values.items()})

    def try_out(self, size: int) -> None:
        super().try_out(size)
        if self.teacher is not None:
            compute = self.compute
            pixels = torch.zeros(2, size, size, 3, dtype=torch.uint8, device=compute.device)
            with torch.no_grad(), compute.autocasting():
                self.teacher(self.teacher_preprocess(pixels, compute.channels_last, compute.dtype))

    def _gradient_ratio(self, task: Tensor, graph: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """||K dL_graph/df|| / ||dL_task/df|| at the features f of the global batch; K is chosen by it."""
        graph_grad = torch.autograd.grad(graph, features, retain_graph=True)[0].float()
        # By hand through the classifier: under mixed precision `features` is a copy that logits do not see.
        weight = self.module.model.get_classifier().weight  # type: ignore[union-attr, operator]
        task_grad = torch.autograd.grad(task, logits, retain_graph=True)[0].float() @ weight.detach().float()
        squares = torch.stack([graph_grad.square().sum(), task_grad.square().sum()])
        graph_square, task_square = parallel.all_reduce_sum(squares)
        ratio: Tensor = self.K * (graph_square / task_square.clamp_min(1e-30)).sqrt()
        return ratio

    def evaluate(self, network: Any, between: BetweenBatches | None = None) -> Evaluation:
        splits, given, clean = self.splits, self.labels.given, self.labels.clean
        classes = partial(
            predict_classes, network, compute=self.compute, batch_size=self.eval.batch_size, between=between
        )
        test = classes(self.test, splits.test)
        report = classification(test, self.test.labels[splits.test], self.test.info.num_classes)
        scalars = report.to_scalars("test")
        if clean is not None:
            probed = classes(self.train, splits.probe)
            scalars |= memorisation(probed, given[splits.probe], clean[splits.probe]).to_scalars()
        if len(splits.validation):
            hits = classes(self.train, splits.validation) == given[splits.validation]
            scalars["validation/accuracy_noisy"] = float(hits.mean())
        return Evaluation(scalars, report.confusion)

    def matrices(self, network: Any) -> dict[str, npt.NDArray[np.float32]]:
        """E_t, E_s and N of some test images, ordered by class so that blocks show."""
        if self.teacher is None:
            return {}
        chosen = self.splits.test[:GRAPH_SAMPLES]
        by_class = chosen[np.argsort(self.test.labels[chosen], kind="stable")]
        student, teacher = (
            predict(encoder, self.test, by_class, compute=self.compute, batch_size=self.eval.batch_size)
            for encoder in (Encoder(network), self.teacher)
        )
        if student.shape != teacher.shape:
            return {}
        matrices = relation_matrices(student.float(), teacher.float())
        return {f"graph/{name}": matrix.numpy() for name, matrix in matrices._asdict().items()}

    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        accuracy, num_classes = measured["test/accuracy"], self.test.info.num_classes
        if not at_chance(accuracy, num_classes, len(self.splits.test)):
            return None
        flat = float(self.loss(torch.zeros(1, num_classes), torch.zeros(1, dtype=torch.int64)))
        task_loss = logged.get("train/loss_task", logged.get("train/loss", math.nan))
        advice = f"a lower --K (now {self.K:g}) or --lr" if self.K else "another --lr"
        return (
            f"collapse: test accuracy {accuracy:.2%} is at chance level, task loss {task_loss:.3f} (of equal "
            f"logits: {flat:.3f}), feature spread {logged.get('train/feature_spread', math.nan):.3f} "
            f"(collapsed: 0); start anew with {advice}"
        )
