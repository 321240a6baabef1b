"""How much the settings of relations matter: labels of real CIFAR-10 that they correct rightly.

    python benchmarks/noise_matrix.py --data-root data [--samples 4000] [--seeds 0 1 2]

By the encoder that comes with the presets, as `--targets relations` finds them but for the rounds and
the pseudo-counts of the noise matrix: the share of the labels that are right as corrected, and the mean
log-probability of the true class, means over seeds.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from rmd_dist.data.dataset import Dataset
from rmd_dist.data.labels import Labels, make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.render.augment import Ints
from rmd_dist.data.splits import choose
from rmd_dist.parallel.compute import Compute
from rmd_dist.relations import estimate, noise_matrix
from rmd_dist.relations.estimate import L2S, ROUNDS
from rmd_dist.tasks.targets import features_of, samples_of
from rmd_dist.tasks.teacher import open_source

TEACHER = Path(__file__).parents[1] / "configs/paper/reduced/teacher"
NOISES = (("symmetric", 0.4), ("asymmetric", 0.4), ("pairflip", 0.4))
COUNTS = (1, 10, 20, 50, 100, 400)
TRIED_ROUNDS = (0, 1, 2, 4, ROUNDS, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--source", type=Path)
    parser.add_argument("--loader", choices=("ffcv", "memory"), default="memory")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    train = open_dataset("cifar10", "train", root=args.data_root, source=args.source, loader=args.loader)
    encoder = open_source(TEACHER, train.info, "", Preprocess.for_dataset(train.info).to_cfg())
    features = features_of(encoder, train, args.data_root, Compute(torch.device("cpu")))
    rows = np.sort(choose(len(train), 0, train_samples=args.samples).train)
    settings: list[tuple[str, int, int | None]] = [(f"{n} rounds", n, None) for n in TRIED_ROUNDS]
    settings += [(f"{n} pseudo-counts", ROUNDS, n) for n in COUNTS]
    print("| | " + " | ".join(f"{protocol} {rate:g}" for protocol, rate in NOISES) + " |")
    print("|---" * (1 + len(NOISES)) + "|")
    for name, rounds, counts in settings:
        shown = []
        for protocol, rate in NOISES:
            given = [make_labels(train, protocol, rate, seed, args.data_root) for seed in args.seeds]
            with held(counts):
                found = [corrected(train, features, rows, labels, rounds) for labels in given]
            right, log_p = np.mean(found, axis=0)
            shown.append(f"{100 * right:.1f} %, {log_p:.3f}")
        print(f"| {name} | " + " | ".join(shown) + " |", flush=True)


def held(counts: int | None) -> contextlib.AbstractContextManager[object]:
    """The prior of the noise matrix with so many pseudo-counts; None: as it is."""
    if counts is None:
        return contextlib.nullcontext()
    return mock.patch.object(noise_matrix, "pseudo_counts", lambda _: float(counts))


def corrected(
    train: Dataset, features: torch.Tensor, rows: Ints, labels: Labels, rounds: int
) -> tuple[float, float]:
    """(share of the labels of `rows` that are right as corrected, mean log-probability of the truth)."""
    assert labels.clean is not None
    samples = samples_of(features, train, labels.given, rows, torch.device("cpu"))
    posterior = estimate(samples, L2S, rounds).posterior(samples.labels).numpy()
    true = labels.clean[rows]
    likely = posterior[np.arange(len(rows)), true].clip(1e-9)
    return float((posterior.argmax(1) == true).mean()), float(np.log(likely).mean())


if __name__ == "__main__":
    main()
