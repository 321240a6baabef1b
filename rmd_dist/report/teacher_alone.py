"""What simple classifiers of a teacher's features learn from the labels of one of its students' runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist.config import DistillConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.splits import Splits
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.measures import knn_accuracy
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.processes import workers_per_rank
from rmd_dist.relations import Relations, estimate, estimate_plainly
from rmd_dist.report.results import REFERENCES
from rmd_dist.report.run_data import open_data, run_config
from rmd_dist.runs.folder import read_manifest
from rmd_dist.study.runner import Data
from rmd_dist.tasks.parts import build_labels
from rmd_dist.tasks.targets import features_of, samples_of
from rmd_dist.tasks.teacher import FrozenEncoder

NEIGHBOURS = 200


class Measure:
    """Measures references; holds the images and features of one data set and teacher at a time."""

    def __init__(self, data: Data) -> None:
        self._data = data
        device = torch.device("cuda" if torch.cuda.is_available() and not data.cpu else "cpu")
        self._compute = Compute(device, workers=workers_per_rank(0))
        self._held: tuple[object, _Scene] | None = None

    def __call__(self, run: Path, teacher: FrozenEncoder) -> dict[str, float]:
        """Test accuracies in [0, 1] of REFERENCES, by the images and labels that a run was trained on.

        Features are cached below the data root. Raises ConfigError if the images or labels are not there.
        """
        config, manifest = run_config(run), read_manifest(run)
        self._data.into(config)
        scene = self._scene(config, teacher)
        labels = build_labels(config, scene.train)
        here = scene.train.sha256, labels.manifest["labels_sha256"]
        if here != (manifest["data_sha256"], manifest["labels_sha256"]):
            raise ConfigError(
                f"the images or labels of {run.name} are not those that it was trained on; give the "
                "--data-root that has them, or report without --references"
            )
        return scene.accuracies(labels.given, self._compute.device)

    def _scene(self, config: DistillConfig, teacher: FrozenEncoder) -> _Scene:
        by = (config.data, config.validation, teacher.sha256, Preprocess.of(teacher.module))
        if self._held is None or self._held[0] != by:
            self._held = None  # never two at a time
            try:
                train, test, splits = open_data(config)
            except ConfigError as error:
                raise ConfigError(
                    f"references: {error}; say where they are by --data-root, --source and --loader"
                ) from error
            features = [features_of(teacher, d, Path(config.data.root), self._compute) for d in (train, test)]
            self._held = by, _Scene(train, test, splits, *features)
        return self._held[1]


@dataclass(frozen=True)
class _Scene:
    """A data set, and a teacher's features of all its images."""

    train: Dataset
    test: Dataset
    splits: Splits
    train_features: Tensor
    test_features: Tensor

    def accuracies(self, given: npt.NDArray[np.int64], device: torch.device) -> dict[str, float]:
        """Of REFERENCES, with `given` (N,) labels of the training split; -1: none."""
        rows = self.splits.train[given[self.splits.train] >= 0]
        samples = samples_of(self.train_features, self.train, given, rows, device)
        queries = self.test_features[torch.from_numpy(self.splits.test)].to(device)
        truth = torch.from_numpy(self.test.labels[self.splits.test]).to(device)

        def tested(relations: Relations) -> float:
            weights, bias = relations.scale.folded(relations.weights.mean(1))
            return float(((queries.double() @ weights + bias).argmax(1) == truth).double().mean())

        found = (
            tested(estimate_plainly(samples)),
            knn_accuracy(samples.features, samples.labels, queries, truth, NEIGHBOURS),
            tested(estimate(samples)),
        )
        return dict(zip(REFERENCES, found, strict=True))
