"""Images/s of the trainer beside a bare PyTorch loop over the same model, in one process, in turns.

    python benchmarks/step.py [--stage pretrain|distill|both] [--steps 24] [--data data] [--out FILE.json]

Both sides run the paper's defaults (full width, batch 64). The trainer's side includes reading and
augmenting images, moving and normalising them, logging and, in distillation, measuring gradient ratios.
The bare loop has its batches ready in memory: what it measures is the model, the loss (plainly written,
whole matrices), backward and SGD. The teacher's forward pass is on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd_dist.cli import parse
from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.models import SimSiam
from rmd_dist.models.export import create
from rmd_dist.preemption import Preemption
from rmd_dist.run import RunFolder
from rmd_dist.tasks import DistillTask, Place, PretrainTask
from rmd_dist.trainer import Trainer, make_accelerator


def bare_pretrain(model_name: str, batch: int) -> Callable[[], None]:
    """One SimSiam step on two ready batches."""
    model = SimSiam(create(model_name, 0), 2048, 512).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    x1, x2 = (torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last) for _ in "12")

    def step() -> None:
        p1, p2, z1, z2 = model(x1, x2)
        loss = -0.5 * F.cosine_similarity(p1, z2.detach()).mean()
        loss = loss - 0.5 * F.cosine_similarity(p2, z1.detach()).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_distill(model_name: str, batch: int) -> Callable[[], None]:
    """One GCE + graph step on a ready batch, with a frozen teacher."""
    student = create(model_name, 10).to(memory_format=torch.channels_last)
    teacher = create(model_name, 0).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def rows(features: Tensor) -> Tensor:
        return F.normalize(features - features.mean(1, keepdim=True), dim=1)

    def step() -> None:
        features = student.forward_head(student.forward_features(x), pre_logits=True)
        p_y = student.get_classifier()(features).softmax(1)[torch.arange(batch), y]
        with torch.no_grad():
            t = rows(teacher(x))
        s = rows(features)
        node, edge = (t @ s.T - torch.eye(batch)).norm(), (t @ t.T - s @ s.T).norm()
        loss = ((1 - p_y**0.7) / 0.7).mean() + 0.001 * (0.8 * node + 0.35 * edge)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_trainer(stage: str, data: str, runs: str, extra: list[str]) -> Trainer:
    """The trainer that the launch scripts build, on the paper's defaults."""
    words = ["--data_root", data, "--runs", runs, "--eval.every_epochs", "0", *extra]
    place = Place(workers=1)
    torch.manual_seed(0)
    if stage == "pretrain":
        config: PretrainConfig | DistillConfig = parse(PretrainConfig, words)
        accelerator = make_accelerator("no", cpu=True)
        task: PretrainTask | DistillTask = PretrainTask(config, place)  # type: ignore[arg-type]
    else:
        config = parse(DistillConfig, [*words, "--loss", "gce", "--K", "0.001"])
        accelerator = make_accelerator("no", cpu=True)
        task = DistillTask(config, place, "random")  # type: ignore[arg-type]
    folder = RunFolder(config)
    folder.open()
    return Trainer(config, accelerator, folder, task, Preemption())


def measure(stage: str, steps: int, block: int, data: str, extra: list[str]) -> dict[str, float]:
    """Medians over blocks of `block` steps that take turns."""
    with tempfile.TemporaryDirectory() as runs:
        trainer = build_trainer(stage, data, runs, extra)
        name, batch = trainer.config.model.name, trainer.config.data.batch_size
        bare = bare_pretrain(name, batch) if stage == "pretrain" else bare_distill(name, batch)
        batches = trainer.loader.epoch(0)

        def ours() -> None:
            logging = trainer.step % trainer.config.run.log_every == 0
            trainer.train_step([next(batches).to(trainer.accelerator.device)], logging=logging)
            trainer.step += 1

        seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        for number in range(-1, steps // block):
            for side, step in (("trainer", ours), ("bare", bare)):
                start = time.perf_counter()
                for _ in range(block):
                    step()
                if number >= 0:  # the first block warms up
                    seconds[side].append((time.perf_counter() - start) / block)
        trainer.close()
    rates = {side: batch / statistics.median(times) for side, times in seconds.items()}
    paired = [b / t for t, b in zip(seconds["trainer"], seconds["bare"], strict=True)]
    return rates | {"ratio": statistics.median(paired), "batch": batch, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=["pretrain", "distill", "both"], default="both")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--data", default="data")
    parser.add_argument("--out", type=Path)
    args, extra = parser.parse_known_args()
    stages = ["pretrain", "distill"] if args.stage == "both" else [args.stage]
    results = {stage: measure(stage, args.steps, args.block, args.data, extra) for stage in stages}
    print(f"{'stage':10}{'trainer, images/s':>20}{'bare loop, images/s':>22}{'ratio':>8}")
    for stage, r in results.items():
        print(f"{stage:10}{r['trainer']:20.1f}{r['bare']:22.1f}{r['ratio']:8.3f}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
