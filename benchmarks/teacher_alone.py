"""What the teacher of a study could do by itself: simple classifiers on its features, the same noisy labels.

    python benchmarks/teacher_alone.py STUDY TABLE [--out FILE.json]

For each noise setting and seed of the table, logistic regression and weighted kNN are fitted on the teacher's
features of the students' training images and their noisy labels; accuracy on the clean test set, mean and
standard deviation over seeds in %. Where students stay below it, they passed on what the teacher knew.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from rmd_dist.cli import parse
from rmd_dist.config import DistillConfig
from rmd_dist.data.loader import build_loader
from rmd_dist.evaluate import extract_features, knn_accuracy, linear_probe
from rmd_dist.models.export import load
from rmd_dist.printing import print_table
from rmd_dist.study.folder import Study, read_study
from rmd_dist.tasks.base import Place
from rmd_dist.tasks.distill import DistillTask, Encoder


def features(task: DistillTask, encoder: Encoder, split: str) -> tuple[torch.Tensor, np.ndarray]:
    """Pooled features (N, D) of a run's training or test images, and their indices."""
    dataset, indices = (
        (task.train_set, task.indices) if split == "train" else (task.test_set, task.test_indices)
    )
    data = task.config.data
    with build_loader(
        dataset, kind=data.loader, augment=None, batch_size=500, seed=0, indices=indices, shuffle=False
    ) as loader:
        found, index = extract_features(encoder, loader, task.normalize, task.place.device, indices)
    return found, index.numpy()


def measure(study: Study, name: str) -> dict[str, dict[str, list[float]]]:
    """Noise setting -> {linear, knn} -> accuracy of each seed."""
    table = next(table for table in study.tables if table.spec.name == name)
    found: dict[str, dict[str, list[float]]] = {}
    for entry in study.entries(table, loss="ce", method=""):
        config = parse(DistillConfig, ["--config", str(study.run(entry.key) / "config.yaml")])
        config.run.precision = "no"
        task = DistillTask(config, Place(), None)
        teacher = study.teacher(entry.dataset, table)
        assert teacher is not None, f"{name} has no teacher"
        encoder = Encoder(load(teacher, config.model.name).module)
        bank, trained = features(task, encoder, "train")
        queries, tested = features(task, encoder, "test")
        labels, truth = task.noisy.labels[trained], task.test_set.labels[tested]
        at = found.setdefault(f"{entry.noise} {entry.rate:g}", {"linear": [], "knn": []})
        at["linear"].append(100 * linear_probe(bank, labels, queries, truth))
        at["knn"].append(100 * knn_accuracy(bank, labels, queries, truth))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("table")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measure(read_study(args.study), args.table)
    rows = [
        [noise, *(f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f} ({len(v)})" for v in kinds.values())]
        for noise, kinds in found.items()
    ]
    print_table(f"the teacher alone, {args.table}", ["noise", "logistic regression", "kNN (k 200)"], rows)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
