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
from rmd_dist.data.splits import Splits, probe
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.measures import at_chance, classification, memorisation
from rmd_dist.evaluation.predict import BetweenBatches, evaluating, predict, predict_classes
from rmd_dist.losses import ClassificationLoss, RelationLoss, feature_spread
from rmd_dist.losses.relation import RelationTerms, relation_matrices
from rmd_dist.models.student import Encoder, Student
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks.base import Evaluation, StepOutput, Task, Tell
from rmd_dist.tasks.margins import Margins
from rmd_dist.tasks.targets import RelationTargets, Search

GRAPH_SAMPLES = 64  # test images whose relation matrices are drawn


class DistillTask(Task):
    """L = L_task on the given labels + K L_graph towards a frozen teacher (paper section 3.3).

    `teacher`: its features, on the device and frozen; None: L_task alone. Student and teacher each get the
    images that their own `pretrained_cfg` asks for: of a batch of two views the teacher the second, the same
    images rendered at its size. With a projector nodes match projected features, edges the student's own.

    `targets`: what L_task is of in place of the given labels; the student sees the first of an image's
    `crops`, its moving average the others. `search`: what finds them, and the classifier's first weights.
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
        targets: RelationTargets | None = None,
        search: Search | None = None,
        crops: int = 1,
    ) -> None:
        self.module, self.teacher = student, teacher
        self.loss, self.relation, self.K = loss, relation, K
        self.nodes, self.edges = relation.parts()
        self.labels, self.train, self.test, self.splits = labels, train, test, splits
        self.eval, self.compute = eval, compute
        self.targets, self.search, self.crops = targets, search, crops
        self.given = torch.from_numpy(labels.given).to(compute.device)
        self.margins = Margins(len(train), compute.device)
        self.preprocess = Preprocess.of(student)
        self.teacher_preprocess = self.preprocess if teacher is None else Preprocess.of(teacher)

    def begin(self, tell: Tell, warn: Tell) -> None:
        if self.search is None:
            return
        if self.targets is not None and self.K:
            warn(f"K = {self.K:g}: beside relation targets the graph was of no use to us; consider --K 0")
        found, self.search = self.search(tell, warn), None
        if self.targets is not None:
            assert found.clean is not None and found.noise_matrix is not None
            self.targets.take(found.clean, found.noise_matrix)
        if found.head is not None:
            student: Any = self.module
            classifier = student.model.get_classifier()
            with torch.no_grad():
                classifier.weight.copy_(found.head[0].T)
                classifier.bias.copy_(found.head[1])

    def begin_step(self, progress: float) -> None:
        if self.targets is not None:
            self.targets.begin_step(progress)

    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        compute, y = self.compute, self.given[batch.index]
        x = self.preprocess(batch.views[0], compute.channels_last, compute.dtype)
        logits, features, *projected = module(x)
        self.margins.add(batch.index, logits, y)
        target = y if self.targets is None else self.targets(batch.index, y, self._on_average(batch))
        task_loss = parallel.global_mean(self.loss.per_sample(logits, target))
        spread = {}
        if logging:
            spread["feature_spread"] = feature_spread(parallel.all_gather_rows(features.detach()))
        if self.teacher is None or self.K == 0:
            return StepOutput(task_loss, {"loss": task_loss.detach()} | spread)
        taught = self._taught(batch, x) if batch.taught is None else batch.taught
        student: Any = self.module
        if projected:
            nodes, edges = self.nodes(projected[0], taught), self.edges(features, taught)
            graph = RelationTerms(nodes.loss + edges.loss, nodes.node, edges.edge)
            pulls = [(nodes.loss, projected[0], student.projector), (edges.loss, features, None)]
        else:
            graph = self.relation(features, taught)
            pulls = [(graph.loss, features, None)]
        loss = task_loss + self.K * graph.loss
        values = {"loss": loss, "loss_task": task_loss, "loss_graph": graph.loss} | spread
        values |= {"loss_node": graph.node, "loss_edge": graph.edge}
        if logging:
            by_graph = torch.stack([_at_features(*pull) for pull in pulls]).sum(0)
            by_task = _at_features(task_loss, logits, student.model.get_classifier())
            values["gradient_ratio"] = self._gradient_ratio(by_graph, by_task)
        return StepOutput(loss, {name: value.detach() for name, value in values.items()})

    @torch.no_grad()
    def _taught(self, batch: Batch, x: Tensor) -> Tensor:
        """The teacher's features (b, D) of images that the student gets as `x`."""
        assert self.teacher is not None
        resized = batch.views[self.crops :]
        if self.teacher_preprocess != self.preprocess or resized:
            pixels = (resized or batch.views)[0]
            x = self.teacher_preprocess(pixels, self.compute.channels_last, self.compute.dtype)
        features: Tensor = self.teacher(x)
        return features

    @torch.no_grad()
    def _on_average(self, batch: Batch) -> Tensor | None:
        """What the moving average says of the other crops of the images, (b, C); None: nothing."""
        if self.average is None or self.crops < 2:
            return None
        compute = self.compute
        others = [
            self.average(self.preprocess(view, compute.channels_last, compute.dtype)).float().softmax(1)
            for view in batch.views[1 : self.crops]
        ]
        return torch.stack(others).mean(0)

    def try_out(self, size: int) -> None:
        super().try_out(size)
        pixels, student = torch.arange(6 * size**2).view(2, size, size, 3).to(torch.uint8), self.module
        assert isinstance(student, Student)
        with torch.no_grad(), evaluating(student):
            x = self.preprocess(pixels)
            logits, features, *_ = student(x)
            _check_pooled(features, student)
            if not torch.allclose(logits, student.model(x), rtol=1e-3, atol=1e-4):
                raise ValueError("its logits are not those of one Linear layer on its pooled features")
        if self.teacher is None:
            return
        compute, cfg = self.compute, self.teacher.pretrained_cfg
        pixels = pixels.to(compute.device)
        try:
            with torch.no_grad(), compute.autocasting():
                x = self.teacher_preprocess(pixels, compute.channels_last, compute.dtype)
                _check_pooled(self.teacher(x), self.teacher)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            wanted = " x ".join(str(side) for side in self.teacher_preprocess.size)
            raise ConfigError(
                f"the teacher, a {cfg.get('architecture')}, gives no features of images of {wanted} pixels, "
                f"which it gets: {reason}; choose another --teacher"
            ) from error

    def _gradient_ratio(self, graph_grad: Tensor, task_grad: Tensor) -> Tensor:
        """||K dL_graph/df|| / ||dL_task/df|| at the features f of the global batch; K is chosen by it."""
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
        if self.targets is not None:
            scalars |= self.targets.figures(splits.train)
        if len(splits.validation):
            hits = classes(self.train, splits.validation) == given[splits.validation]
            scalars["validation/accuracy_noisy"] = float(hits.mean())
        return Evaluation(scalars, report.confusion)

    def tensors(self) -> dict[str, Tensor]:
        return {"margins": self.margins.totals}

    def fixed_tensors(self) -> dict[str, Tensor]:
        return self.targets.tensors() if self.targets else {}

    def per_sample(self) -> dict[str, npt.NDArray[np.float32]]:
        return {"margins": self.margins.mean()}

    def matrices(self, network: Any) -> dict[str, npt.NDArray[np.float32]]:
        """E_t, E_s and N of some test images, ordered by class so that blocks show; T and mean posteriors."""
        related = self.targets.matrices(self.splits.train) if self.targets else {}
        if self.teacher is None or (self.K == 0 and self.targets):
            return related
        test = self.splits.test
        chosen = probe(test, GRAPH_SAMPLES) if self.test.store else test[:GRAPH_SAMPLES]
        by_class = chosen[np.argsort(self.test.labels[chosen], kind="stable")]
        student, teacher = (
            predict(encoder, self.test, by_class, compute=self.compute, batch_size=self.eval.batch_size)
            for encoder in (Encoder(network), self.teacher)
        )
        if student.shape != teacher.shape:
            return related
        matrices = relation_matrices(student.float(), teacher.float())
        return related | {f"graph/{name}": matrix.numpy() for name, matrix in matrices._asdict().items()}

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


def _at_features(loss: Tensor, output: Tensor, layer: nn.Linear | None) -> Tensor:
    """dloss/df of the features f, of which `output` is made by `layer`; None: it is they.

    By hand through the layer: under mixed precision the features are a copy, which `output` does not see.
    """
    gradient = torch.autograd.grad(loss, output, retain_graph=True)[0].float()
    return gradient if layer is None else gradient @ layer.weight.detach().float()


def _check_pooled(features: Tensor, encoder: Encoder) -> None:
    if features.shape[1:] != (encoder.width,):
        raise ValueError(
            f"its features are {tuple(features.shape[1:])} of an image, not one row of {encoder.width}"
        )
