"""Do 1, 2, 3 and 4 ranks train the same model? Greatest differences after some steps of each stage.

    python benchmarks/splits.py [--steps 20] [--worlds 2 3 4] [-- --dataset cifar10 --precision fp64 ...]

Every world runs the launch scripts, by accelerate launch, on CPU ranks of one thread: the same global
batches, other shares of them. Beside one rank stand

    loss        greatest relative difference of the loss at any step
    weights     greatest ||w - w_1|| / ||w_1|| of any weight or buffer after the last step; a tensor of rms
                below 0.01 (a bias that has hardly left 0) is divided by that of rms 0.01
    momentum    the same of the optimizer's state as a whole: differences here have not been divided by
                anything but what the gradients are

The last row is one rank with another memory layout: nothing differs there but the order of additions, so
its figures are what rounding alone makes of such a run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from rmd_dist.files import to_json
from rmd_dist.models.weights import read_tensors

ROOT = Path(__file__).parents[1]
SMALL = "--dataset digits --loader memory --model resnet18_cifar_w16".split()
STAGES = {"pretrain": [], "distill": ["--teacher", "random"]}


def launch(stage: str, world: int, runs: Path, steps: int, words: list[str]) -> Path:
    """Train; returns the run folder."""
    accelerate = "--main_process_port 0 --mixed_precision no --num_machines 1".split()
    command = [sys.executable, "-m", "accelerate.commands.launch", *accelerate]
    command += ["--multi_gpu"] if world > 1 else []
    command += ["--num_processes", str(world), f"launch/{stage}.py", *STAGES[stage], *words]
    command += ["--cpu", "--threads", "1", "--runs", str(runs), "--name", "splits", "--log-every", "1"]
    command += ["--max-steps", str(steps), "--eval.train_samples", "64", "--test_samples", "64"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return runs / stage / "splits"


def outcome(folder: Path, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all steps, and the last checkpoint."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert len(losses) == steps
    return losses, read_tensors(folder / "checkpoints" / f"step-{steps:09d}.safetensors")


def differences(
    found: tuple[list[float], dict[str, Tensor]], expected: tuple[list[float], dict[str, Tensor]]
) -> dict[str, float]:
    """Of two outcomes, as the module's docstring says."""
    loss = max(abs(a - b) / abs(b) for a, b in zip(found[0], expected[0], strict=True))
    tensors = {name: (found[1][name].double(), e.double()) for name, e in expected[1].items()}
    weights = {
        name: float((f - e).norm() / e.norm().clamp_min(0.01 * e.numel() ** 0.5))
        for name, (f, e) in tensors.items()
        if name.startswith("model/")
    }
    state = [pair for name, pair in tensors.items() if name.startswith("optimizer/")]
    momentum = (sum((f - e).norm() ** 2 for f, e in state) / sum(e.norm() ** 2 for _, e in state)) ** 0.5
    return {"loss": loss, "weights": max(weights.values()), "momentum": float(momentum)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("words", nargs="*", help="for the launch scripts, after --; default: a small run")
    args = parser.parse_args()
    words, results = args.words or SMALL, []
    print(f"{args.steps} steps of {' '.join(words)}")
    print(f"{'stage':10}{'against one rank':22}{'loss':>10}{'weights':>10}{'momentum':>10}", flush=True)
    for stage in args.stages:
        with tempfile.TemporaryDirectory() as folder:
            expected = outcome(launch(stage, 1, Path(folder, "1"), args.steps, words), args.steps)
            others = {f"{w} ranks": (w, words) for w in args.worlds}
            others["1 rank, other layout"] = (1, [*words, "--channels_last", "false"])
            for name, (world, its_words) in others.items():
                run = launch(stage, world, Path(folder, name), args.steps, its_words)
                figures = differences(outcome(run, args.steps), expected)
                results.append({"stage": stage, "against_one_rank": name} | figures)
                print(f"{stage:10}{name:22}" + "".join(f"{v:10.1e}" for v in figures.values()), flush=True)
    if args.out:
        args.out.write_text(to_json(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
