"""Relation-guided representation learning: noisy labels and the teacher's graph (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist import dist
from rmd_dist.config import ConfigError, DistillConfig
from rmd_dist.data.datasets import Dataset
from rmd_dist.data.loader import Batch, Loader
from rmd_dist.data.noise import make_noise
from rmd_dist.data.splits import Indices, hold_out, probe, subset
from rmd_dist.evaluate import classification, extract_features, go_on, memorisation, predict_labels
from rmd_dist.losses import RelationLoss, build_loss, feature_spread
from rmd_dist.losses.relation import relation_matrices
from rmd_dist.models.export import create, export, load
from rmd_dist.numerics import cast_weights
from rmd_dist.tasks.base import Evaluation, Place, StepOutput, Task

GRAPH_SAMPLES = 64  # test images whose relation matrices are drawn


class Encoder(nn.Module):
    """The pooled features (B, D) of a timm classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return features


class Student(Encoder):
    """A timm classifier that also returns its pooled features: x -> (logits (B, C), features (B, D))."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = super().forward(x)
        return self.model.get_classifier()(features), features


class DistillTask(Task):
    """Task loss on noisy labels plus K times the relation-graph loss towards a frozen teacher.

    `teacher`: path of a pretrained encoder, "random" for an untrained one, None for no teacher.
    """

    config: DistillConfig
    headline = "test/accuracy"

    def __init__(self, config: DistillConfig, place: Place, teacher: Path | str | None) -> None:
        super().__init__(config, place)
        num_classes = self.train_set.info.num_classes
        self.noisy = make_noise(
            self.train_set.labels,
            config.noise.protocol,
            config.noise.rate,
            config.noise.seed,
            num_classes,
            dataset=config.data.dataset,
            root=config.data.root,
        )
        self.given = torch.from_numpy(self.noisy.labels).to(place.device)
        used = subset(len(self.train_set), config.data.train_samples)
        self.indices, self.validation_indices = hold_out(used, config.validation)
        self.probe_indices = probe(self.indices, config.eval.train_samples)

        self.student = self.exported = create(config.model.name, num_classes)
        self.module = Student(self.student)
        self.loss = build_loss(config.loss, num_classes, **config.loss_options)
        graph = config.graph
        self.relation = RelationLoss(
            graph.node_weight, graph.edge_weight, graph.form, graph.reference_batch, graph.node_target
        )
        self.teacher_about: dict[str, Any] = {}
        self.teacher = self._load_teacher(teacher) if teacher is not None else None

    def _load_teacher(self, source: Path | str) -> nn.Module:
        config = self.config
        if source == "random":
            encoder = create(config.model.name, num_classes=0)
            self.teacher_about = {"teacher": "random"}
        else:
            loaded = load(Path(source), config.model.name)
            if loaded.dataset not in (None, config.data.dataset):
                raise ConfigError(
                    f"teacher {source} was trained on {loaded.dataset}, this run uses {config.data.dataset}; "
                    "give a --teacher of the same data set"
                )
            if loaded.stage == "distill":
                raise ConfigError(
                    f"teacher {source} is a student, trained on labels; give a pretraining run, "
                    "whose encoder never saw one"
                )
            encoder = loaded.module
            self.teacher_about = {"teacher": str(loaded.path), "teacher_sha256": loaded.sha256}
        encoder.reset_classifier(0)
        if encoder.num_features != self.student.num_features and config.graph.node_weight:
            raise ConfigError(
                f"teacher {source} has {encoder.num_features} features, the student "
                f"{self.student.num_features}: "
                "node matching needs equal widths; use the same --model for both, or --graph.node_weight 0"
            )
        if config.student_init == "teacher":
            state, own = encoder.state_dict(), self.student.state_dict()
            classifier = self.student.pretrained_cfg["classifier"] + "."
            body = {name: tensor.shape for name, tensor in own.items() if not name.startswith(classifier)}
            if body != {name: tensor.shape for name, tensor in state.items()}:
                raise ConfigError("student_init = teacher needs teacher and student of the same --model")
            self.student.load_state_dict(state, strict=False)
        if config.model.channels_last:
            encoder = encoder.to(memory_format=torch.channels_last)
        frozen: nn.Module = encoder.to(self.place.device, self.dtype).eval().requires_grad_(False)
        cast_weights(frozen, self.place.autocast)
        return frozen

    def train_loader(self) -> Loader:
        return self._augmented(self.indices, self.config.augment)

    def step(self, module: nn.Module, batch: Batch, *, logging: bool) -> StepOutput:
        x, y = self.normalize(batch.views[0]), self.given[batch.index]
        logits, features = module(x)
        task_loss = dist.global_mean(self.loss.per_sample(logits, y))
        spread = {}
        if logging:
            spread["feature_spread"] = feature_spread(dist.all_gather_rows(features.detach()))
        if self.teacher is None or self.config.K == 0:
            return StepOutput(task_loss, {"loss": task_loss.detach()} | spread)
        with torch.no_grad():
            teacher_features = self.teacher(x)
        graph = self.relation(features, teacher_features)
        loss = task_loss + self.config.K * graph.loss
        values = {"loss": loss, "loss_task": task_loss, "loss_graph": graph.loss} | spread
        values |= {"loss_node": graph.node, "loss_edge": graph.edge}
        if logging:
            values["gradient_ratio"] = self._gradient_ratio(task_loss, graph.loss, logits, features)
        return StepOutput(loss, {name: value.detach() for name, value in values.items()})

    def _gradient_ratio(self, task: Tensor, graph: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """||K dL_graph/df|| / ||dL_task/df|| at the features f of the global batch; K is chosen by it."""
        graph_grad = torch.autograd.grad(graph, features, retain_graph=True)[0].float()
        # By hand through the classifier: under mixed precision `features` is a copy that logits do not see.
        weight = self.student.get_classifier().weight
        task_grad = torch.autograd.grad(task, logits, retain_graph=True)[0].float() @ weight.detach().float()
        squares = torch.stack([graph_grad.square().sum(), task_grad.square().sum()])
        graph_square, task_square = dist.all_reduce_sum(squares)
        ratio: Tensor = self.config.K * (graph_square / task_square.clamp_min(1e-30)).sqrt()
        return ratio

    def collapsed(self, measured: dict[str, float], logged: dict[str, float]) -> str | None:
        accuracy, config = measured["test/accuracy"], self.config
        if not self.at_chance(accuracy):
            return None
        flat = float(self.loss(torch.zeros(1, len(self.classes)), torch.zeros(1, dtype=torch.int64)))
        task_loss = logged.get("train/loss_task", logged.get("train/loss", math.nan))
        advice = f"a lower --K (now {config.K:g}) or --lr" if config.K else "another --lr"
        return (
            f"collapse: test accuracy {accuracy:.2%} is at chance level, task loss {task_loss:.3f} (of equal "
            f"logits: {flat:.3f}), feature spread {logged.get('train/feature_spread', math.nan):.3f} "
            f"(collapsed: 0); start anew with {advice} (now {config.optim.lr:g})"
        )

    def evaluate(self, between: Callable[[], None] = go_on) -> Evaluation:
        test = self._predict(self.test_set, self.test_indices, between)
        report = classification(test, self.test_set.labels[self.test_indices], len(self.classes))
        scalars = report.to_scalars("test")
        train = self._predict(self.train_set, self.probe_indices, between)
        given, clean = self.noisy.labels[self.probe_indices], self.train_set.labels[self.probe_indices]
        scalars |= memorisation(train, given, clean).to_scalars()
        if len(self.validation_indices):
            predicted = self._predict(self.train_set, self.validation_indices, between)
            hits = predicted == self.noisy.labels[self.validation_indices]
            scalars["validation/accuracy_noisy"] = float(hits.mean())
        return Evaluation(scalars, report.confusion)

    def _predict(
        self, dataset: Dataset, indices: Indices, between: Callable[[], None]
    ) -> npt.NDArray[np.int64]:
        with self._in_order(dataset, indices) as loader, self._autocast():
            _, classes = predict_labels(
                self.student, loader, self.normalize, self.place.device, indices, between
            )
        return classes.numpy()

    def matrices(self) -> dict[str, npt.NDArray[np.float32]]:
        """E_t, E_s and N of some test images, ordered by class so that blocks show."""
        if self.teacher is None:
            return {}
        chosen = self.test_indices[:GRAPH_SAMPLES]
        features = []
        for encoder in (Encoder(self.student), self.teacher):
            with self._in_order(self.test_set, chosen) as loader, self._autocast():
                found, index = extract_features(encoder, loader, self.normalize, self.place.device, chosen)
            by_class = np.argsort(self.test_set.labels[index.numpy()], kind="stable")
            features.append(found[by_class])
        if features[0].shape != features[1].shape:
            return {}
        matrices = relation_matrices(*features)
        return {f"graph/{name}": matrix.numpy() for name, matrix in matrices._asdict().items()}

    def export(self, folder: Path) -> None:
        about = self.about() | {"classes": list(self.classes)}
        export(folder, self.student, self.config.model.name, len(self.classes), about)

    def about(self) -> dict[str, Any]:
        counts = {"train_samples": len(self.indices), "validation_samples": len(self.validation_indices)}
        noise = {"noise": self.noisy.manifest, "labels_sha256": self.noisy.manifest["labels_sha256"]}
        return super().about() | {"stage": "distill"} | counts | noise | self.teacher_about
