"""What the teacher of a study could do by itself: simple classifiers on its features, the same noisy labels.

    python benchmarks/teacher_alone.py STUDY TABLE [--out FILE.json]

For each noise setting and seed of the table, logistic regression and weighted kNN are fitted on the teacher's
features of the students' training images and their noisy labels; accuracy on the clean test set, mean and
standard deviation over seeds in %. Where students stay below it, they passed on what the teacher knew.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rmd_dist.config import DistillConfig
from rmd_dist.config.cli import parse
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.evaluation.measures import knn_accuracy, linear_probe
from rmd_dist.evaluation.predict import predict
from rmd_dist.files import to_json
from rmd_dist.models.export import load
from rmd_dist.models.student import Encoder
from rmd_dist.runs.console import print_table
from rmd_dist.study.folder import Study, read_study
from rmd_dist.tasks.parts import build_data, build_labels


def measure(study: Study, name: str) -> dict[str, dict[str, list[float]]]:
    """Noise setting -> {linear, knn} -> accuracy of each seed."""
    table = next(table for table in study.tables if table.spec.name == name)
    found: dict[str, dict[str, list[float]]] = {}
    for entry in study.entries(table, loss="ce", method=""):
        config = parse(DistillConfig, ["--config", str(study.run(entry.key) / "config.yaml")])
        train, test, splits = build_data(config, config.validation)
        labels = build_labels(config, train)
        teacher = study.teacher(entry.dataset, table)
        assert teacher is not None, f"{name} has no teacher"
        loaded = load(teacher, config.model.name)
        loaded.assume_input(Preprocess.for_dataset(train.info).to_cfg())
        encoder = Encoder(loaded.module)
        bank, queries = predict(encoder, train, splits.train), predict(encoder, test, splits.test)
        given, truth = labels.given[splits.train], test.labels[splits.test]
        at = found.setdefault(f"{entry.noise} {entry.rate:g}", {"linear": [], "knn": []})
        at["linear"].append(100 * linear_probe(bank, given, queries, truth))
        at["knn"].append(100 * knn_accuracy(bank, given, queries, truth))
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
        args.out.write_text(to_json(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
