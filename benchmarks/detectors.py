"""How well wrong labels are found on real CIFAR-10, by several methods on the same features.

    python benchmarks/detectors.py --model tf_efficientnet_lite0 --weights lite0.pth --image-size 128 \\
        --data-root data --seeds 0 1 2 --out detectors.csv

cleanlab is left out where it is not installed. A seed is that of synthetic noise, and of the folds. `--runs`:
runs/distill, whose margins are judged by, alone and joined, where a run was trained on the very labels.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmd_dist import audit
from rmd_dist.audit.dataset import encode, with_margins
from rmd_dist.audit.encoder import open_encoder
from rmd_dist.audit.measure import detection
from rmd_dist.audit.subject import open_subject
from rmd_dist.config import AuditConfig, NoiseConfig
from rmd_dist.config.checks import validate
from rmd_dist.data.labels import labels_sha256, make_labels
from rmd_dist.relations import Samples, estimate_plainly, fold_of
from rmd_dist.relations.project import project
from rmd_dist.runs.folder import read_manifest

NOISES = (
    ("symmetric", 0.2), ("symmetric", 0.4), ("asymmetric", 0.4), ("pairflip", 0.4),
    ("human:aggre_label", 0.0), ("human:worse_label", 0.0), ("none", 0.0),
)  # fmt: skip
K = 50  # neighbours that vote
MEASURES = ("wrong", "estimated", "flagged", "auroc", "ap", "f1", "precision_500", "suggestions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for flag in ("--model", "--weights", "--teacher", "--source"):
        parser.add_argument(flag)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--loader", default="memory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder of finished distillations")
    parser.add_argument("--out", type=Path, default=Path("detectors.csv"))
    args = parser.parse_args()
    config = validate(
        AuditConfig(
            dataset="cifar10", model=args.model, weights=args.weights, teacher=args.teacher,
            source=args.source, image_size=args.image_size, root=args.data_root, loader=args.loader,
        )
    )  # fmt: skip
    root = Path(config.root)
    source = Path(config.source) if config.source else None
    subject = open_subject("cifar10", root, source, config.loader, NoiseConfig(protocol="none"))
    encoder = open_encoder(config, subject.datasets[0].info)
    features = encode(config, subject, encoder, torch.device("cpu"), lambda *_: None)
    train, rows = subject.datasets[0], []
    margins = margins_by_labels(args.runs, len(train)) if args.runs else {}
    neighbours = nearest(features)
    with args.out.open("w", newline="") as file:
        for seed, (protocol, rate) in itertools.product(args.seeds, NOISES):
            given = make_labels(train, protocol, rate, seed, root).given
            margin = margins.get(labels_sha256(given))
            for name, judged, seconds in methods(features, given, neighbours, seed, margin):
                row = {
                    "noise": f"{protocol} {rate:g}",
                    "seed": seed,
                    "method": name,
                    "seconds": round(seconds, 1),
                    **figures(given, train.labels, **judged),
                }
                if not rows:
                    csv.writer(file).writerow(row)
                rows.append(row)
                csv.writer(file).writerow(row.values())
                file.flush()
                print(row, flush=True)


def margins_by_labels(runs: Path, count: int) -> dict[str, Any]:
    """SHA-256 of labels -> mean margins (`count`,) of a finished run that was trained on them."""
    found = {}
    for file in sorted(runs.glob("*/margins.npy")):
        margins = np.load(file)
        if len(margins) == count and np.isfinite(margins).all():
            found[read_manifest(file.parent)["labels_sha256"]] = margins
    return found


def methods(features: torch.Tensor, given: Any, neighbours: Any, seed: int, margin: Any) -> Any:
    """(name, scores, flags and suggestions, seconds) of each method."""
    # Other folds for people's labels, which have no seed: their hash sees the columns in another order.
    columns = torch.from_numpy(np.random.default_rng(seed).permutation(features.shape[1]))
    x = features[:, columns]
    for name, quick in (("audit", False), ("audit --quick", True)):
        start = time.perf_counter()
        found = audit.features(x, given, num_classes=10, quick=quick)
        yield name, judged_by(found), time.perf_counter() - start
        if margin is not None and not quick:
            yield "AUM", {"score": -margin, "flagged": margin < 0, "suggested": found.suggested}, 0.0
            yield "audit + AUM", judged_by(with_margins(found, margin)), time.perf_counter() - start
    start = time.perf_counter()
    votes = np.zeros((len(given), 10))
    for column in neighbours.T:
        votes[np.arange(len(given)), given[column]] += 1 / neighbours.shape[1]
    score = -votes[np.arange(len(given)), given]
    yield (
        "kNN vote",
        {"score": score, "flagged": votes.argmax(1) != given, "suggested": votes.argmax(1)},
        time.perf_counter() - start,
    )
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return
    start = time.perf_counter()
    samples = Samples(x, torch.from_numpy(given), fold_of(x, 5), 10, 5)
    p = estimate_plainly(samples).clean().numpy()
    score = -get_label_quality_scores(given, p)
    for name, rule in (("cleanlab", "prune_by_noise_rate"), ("cleanlab both", "both")):
        flagged = find_label_issues(given, p, filter_by=rule, n_jobs=1)
        judged = {"score": score, "flagged": flagged, "suggested": p.argmax(1), "estimated": flagged.mean()}
        yield name, judged, time.perf_counter() - start


def judged_by(found: audit.Audit) -> dict[str, Any]:
    """What an audit says, for `figures`."""
    judged = {"score": -found.p_given, "flagged": found.flagged, "suggested": found.suggested}
    return judged | {"estimated": found.wrong.value}


def nearest(features: torch.Tensor) -> Any:
    """(N, K): the nearest other rows by the cosine of their standardised principal components."""
    labels = torch.zeros(len(features), dtype=torch.int64)
    x = project(Samples(features, labels, labels, 1, 1))[0].features.float()
    unit = torch.nn.functional.normalize(x / x.std(0), dim=1)
    found = []
    for start in range(0, len(unit), 2048):
        similarity = unit[start : start + 2048] @ unit.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2
        found.append(similarity.topk(K, dim=1).indices)
    return torch.cat(found).numpy()


def figures(
    given: Any, clean: Any, score: Any, flagged: Any, suggested: Any, estimated: float | None = None
) -> Any:
    """Measure -> value."""
    found: dict[str, Any] = detection(given != clean, score, flagged, suggested == clean)
    found |= {"estimated": estimated, "flagged": flagged.mean()}
    return {k: None if found.get(k) is None else round(float(found[k]), 4) for k in MEASURES}


if __name__ == "__main__":
    main()
