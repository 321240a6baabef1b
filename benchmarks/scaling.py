"""Weak scaling on CPUs: images/s of W ranks with a thread each, beside one rank with one thread.

    python benchmarks/scaling.py --data_root data [--world 2] [--rounds 3] [-- --model resnet18_cifar_w16 ...]

Each rank has the same number of images in every step, so W ranks train on batches W times as large. All of it
runs by accelerate launch, reading, augmenting and logging included; the rate is the median of those that
metrics.jsonl holds, the first steps left out. `apart` is W jobs of one rank each that know nothing of each
other, run at once: what the machine gives before any rank waits for another. Jobs take turns, and the ratios
are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rmd_dist.files import to_json

ROOT = Path(__file__).parents[1]
STAGES = {"pretrain": [], "distill": ["--teacher", "random", "--loss", "gce", "--K", "0.001"]}
FIRST = 6
"""Steps left out: the first five are always logged, which costs time, and caches are cold."""


def start(stage: str, world: int, folder: Path, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A job of `world` ranks that writes its run below `folder`."""
    accelerate = ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *accelerate]
    command += ["--multi_gpu"] if world > 1 else []
    command += ["--num_processes", str(world), f"launch/{stage}.py", *STAGES[stage], *args.words]
    command += ["--cpu", "--threads", "1", "--workers", "1", "--data_root", str(args.data_root)]
    command += ["--batch-size", str(args.batch * world), "--max-steps", str(args.steps), "--log-every", "3"]
    command += ["--eval.train_samples", "64", "--test_samples", "64", "--runs", str(folder), "--name", "run"]
    folder.mkdir()
    with (folder / "log.txt").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def rate(stage: str, folder: Path) -> float:
    """Median images/s of a finished run."""
    records = map(json.loads, (folder / stage / "run" / "metrics.jsonl").read_text().splitlines())
    return statistics.median(
        r["train/images_per_second"] for r in records if "train/loss" in r and r["step"] > FIRST
    )


def run(stage: str, jobs: int, world: int, args: argparse.Namespace) -> float:
    """Images/s of `jobs` jobs at once, of `world` ranks each, added up."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(job)) for job in range(jobs)]
        for path, process in [(path, start(stage, world, path, args)) for path in folders]:
            if process.wait(timeout=3600):
                raise SystemExit((path / "log.txt").read_text())
        return sum(rate(stage, path) for path in folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="images of a step on each rank")
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data_root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("words", nargs="*", help="for the launch scripts, after --")
    args = parser.parse_args()
    results = []
    print(f"{'stage':10}{'1 rank':>9}{f'{args.world} ranks':>9}{'apart':>9}{'scaling':>9}{'apart':>9}")
    for stage in STAGES:
        rates: dict[str, list[float]] = {"one": [], "ranks": [], "apart": []}
        for _ in range(args.rounds):
            rates["one"].append(run(stage, 1, 1, args))
            rates["ranks"].append(run(stage, 1, args.world, args))
            rates["apart"].append(run(stage, args.world, 1, args))
        ratios = {
            name: statistics.median(a / b for a, b in zip(rates[name], rates["one"], strict=True))
            for name in ("ranks", "apart")
        }
        medians = {name: statistics.median(values) for name, values in rates.items()}
        results.append({"stage": stage, "ratios": ratios, "images_per_second": rates})
        line = f"{stage:10}" + "".join(f"{value:9.1f}" for value in medians.values())
        print(line + "".join(f"{ratio:8.2f}x" for ratio in ratios.values()), flush=True)
    if args.out:
        args.out.write_text(to_json(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
