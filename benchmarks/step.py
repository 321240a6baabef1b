"""Time of the trainer's step beside a bare PyTorch loop over the same model, in one process, in turns.

    python benchmarks/step.py [--stage pretrain|distill|both] [--steps 24] [--data data] [--out FILE.json]
    PYTHONPATH=. python benchmarks/step.py --device cuda --synthetic --variants bf16 "bf16 compiled"

Both sides run the paper's defaults (full width, batch 64); other flags are those of a launch script. The
trainer's side includes reading and augmenting images, moving and normalising them, logging and, in
distillation, measuring gradient ratios. The bare loop has its batches ready in memory: what it measures is
the model, the loss (plainly written, whole matrices), backward and SGD, under the same autocast, launched
kernel by kernel. The teacher's forward pass is on both sides.

`kernels` of a step that is not logged, and `MiB` that a step takes above what is kept, are CUDA's.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState
from on_device import kernels, peak_mib, seconds, title
from torch import Tensor

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.cli import parse
from rmd_dist.engine.start import opened_trainer
from rmd_dist.engine.trainer import Trainer
from rmd_dist.files import to_json
from rmd_dist.models import SimSiam
from rmd_dist.models.export import create
from rmd_dist.models.weights import save_tensors

FASTEST = "--deterministic false"
COMPILED = "--model.compile true"
LAUNCHED = "--cuda_graph false"
DEVICE_VIEWS = "--data.render device"
TABLE = "--teacher_table true --data.train_samples 1000"
VARIANTS = {
    "fp32": "--precision no",
    "fp32 fastest": f"--precision no {FASTEST}",
    "tf32": "--precision tf32",
    "bf16": "--precision bf16",
    "bf16 launched": f"--precision bf16 {LAUNCHED}",
    "bf16 fastest": f"--precision bf16 {FASTEST}",
    "bf16 compiled": f"--precision bf16 {COMPILED}",
    "bf16 compiled fastest": f"--precision bf16 {COMPILED} {FASTEST}",
    "bf16 compiled launched": f"--precision bf16 {COMPILED} {LAUNCHED}",
    "bf16 device views": f"--precision bf16 {DEVICE_VIEWS}",
    "bf16 compiled device views": f"--precision bf16 {COMPILED} {DEVICE_VIEWS}",
    "fp16": "--precision fp16",
    "fp32 table": f"--precision no {TABLE}",
    "bf16 table": f"--precision bf16 {TABLE}",
    "bf16 compiled table": f"--precision bf16 {COMPILED} {TABLE}",
}
"""Name -> flags; `fastest`: kernels that need not give equal bits; `launched`: one by one, not as a graph;
`table`: the teacher's features of 1 000 images' crops are read, in distillation alone."""

STAGES = {"pretrain": "", "distill": "--loss gce --K 0.001 --teacher random"}


def bare_pretrain(
    model_name: str, batch: int, size: int, device: torch.device, views: int = 2
) -> Callable[[], None]:
    """One SimSiam step on ready batches, one a view."""
    model = SimSiam(create(model_name, 0), 2048, 512).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    x = [images(batch, size, device) for _ in range(views)]

    def step() -> None:
        predicted, z = model(*x)
        total = torch.stack(z).detach().sum(0)
        others = [(total - own.detach()) / (views - 1) for own in z]
        loss = -sum(F.cosine_similarity(p, t).mean() for p, t in zip(predicted, others, strict=True)) / views
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_distill(model_name: str, batch: int, size: int, device: torch.device) -> Callable[[], None]:
    """One GCE + graph step on a ready batch, with a frozen teacher."""
    student, teacher = (create(model_name, classes) for classes in (10, 0))
    student.to(device, memory_format=torch.channels_last)
    teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    x, rows_of, eye = (images(batch, size, device), torch.arange(batch), torch.eye(batch, device=device))
    rows_of, y = rows_of.to(device), torch.randint(0, 10, (batch,), device=device)

    def rows(features: Tensor) -> Tensor:
        return F.normalize(features - features.mean(1, keepdim=True), dim=1)

    def step() -> None:
        features = student.forward_head(student.forward_features(x), pre_logits=True)
        p_y = student.get_classifier()(features).softmax(1)[rows_of, y]
        with torch.no_grad():
            t = rows(teacher(x))
        s = rows(features)
        node, edge = (t @ s.T - eye).norm(), (t @ t.T - s @ s.T).norm()
        loss = ((1 - p_y**0.7) / 0.7).mean() + 0.001 * (0.8 * node + 0.35 * edge)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def images(batch: int, size: int, device: torch.device) -> Tensor:
    return torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def opened(stage: str, words: list[str]) -> Iterator[Trainer]:
    """The trainer that the launch scripts build, before its first step."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the variant before
    GradientState._reset_state()
    with tempfile.TemporaryDirectory() as runs:
        words = [*STAGES[stage].split(), "--runs", runs, "--eval.every_epochs", "0", *words]
        config: Any = parse(PretrainConfig if stage == "pretrain" else DistillConfig, words)
        if stage == "distill" and config.graph.teacher_table:  # which keeps features by the weights' file
            config.teacher = f"{runs}/teacher.safetensors"
            save_tensors(Path(config.teacher), create(config.model.name, 0).state_dict())
        with opened_trainer(config) as trainer:
            yield trainer


def steps_of(trainer: Trainer) -> Iterator[Callable[..., None]]:
    """Calls that make one step each, with the next batches of whatever epoch it is."""
    device, micro = trainer.accelerator.device, trainer.config.optim.accumulation

    def step(batches: list[Any], logging: bool | None = None) -> None:
        if logging is None:
            logging = trainer.step % trainer.config.run.log_every == 0
        _, output = trainer.train_step([batch.to(device) for batch in batches], logging=logging)
        if logging:
            trainer._fetch(output.values)

    for epoch in range(2**31):
        with contextlib.closing(trainer.loader.epoch(epoch)) as batches:  # type: ignore[type-var]
            while len(ready := [b for _, b in zip(range(micro), batches, strict=False)]) == micro:
                yield partial(step, ready)


def measure(stage: str, steps: int, block: int, words: list[str]) -> dict[str, Any]:
    """Medians over blocks of `block` steps that take turns."""
    with opened(stage, words) as trainer:
        config, device = trainer.config, trainer.accelerator.device
        size = trainer.task.preprocess.size[0]
        where = (config.model.name, config.data.batch_size, size, device)
        bare_step = bare_pretrain(*where, config.views.count) if stage == "pretrain" else bare_distill(*where)
        dtype, coming = trainer.task.compute.autocast, steps_of(trainer)

        def bare() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                bare_step()

        def ours() -> None:
            next(coming)()

        times: dict[str, list[float]] = {"trainer": [], "bare": []}
        for number in range(-1, max(1, steps // block)):
            for side, step in (("trainer", ours), ("bare", bare)):
                taken = seconds(device, step, block)
                if number >= 0:  # the first block warms up
                    times[side].append(taken)
        quiet = partial(next(coming), logging=False)
        launched = kernels(device, quiet)
        taken_up = peak_mib(device, partial(next(coming), logging=False)) if launched is not None else None
        coming.close()
    trainer_s, bare_s = (statistics.median(times[side]) for side in ("trainer", "bare"))
    return {
        "ms": 1000 * trainer_s,
        "bare_ms": 1000 * bare_s,
        "ratio": statistics.median(b / t for t, b in zip(times["trainer"], times["bare"], strict=True)),
        "images_per_second": config.data.batch_size / trainer_s,
        "batch": config.data.batch_size,
        "steps": steps,
        "kernels": launched,
        "peak_mib": taken_up,
    }


def serve(stage: str, words: list[str]) -> None:
    """For each line of stdin, a number of seconds: train so long; prints the steps a second."""
    with opened(stage, words) as trainer:
        coming, device = steps_of(trainer), trainer.accelerator.device
        for _ in range(3):
            next(coming)()
        print("answer: ready", flush=True)
        for line in sys.stdin:
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < float(line):
                for _ in range(5):
                    next(coming)()
                count += 5
                seconds(device, lambda: None)  # what is under way is done
            print("answer:", count / (time.perf_counter() - start), flush=True)
        coming.close()


@contextlib.contextmanager
def data_words(args: argparse.Namespace) -> Iterator[list[str]]:
    """Flags that say where images are."""
    if not args.synthetic:
        yield ["--data_root", args.data]
        return
    from tests.data.archives import cifar10, write_folder

    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), cifar10(train=10_000, test=500))
        yield ["--data_root", folder, "--source", f"{folder}/cifar-10-batches-py", "--loader", "memory"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=[*STAGES, "both"], default="both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="default: on a CPU those of fp32, else all"
    )
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--data", default="data")
    parser.add_argument("--synthetic", action="store_true", help="10 000 made-up images of CIFAR-10's size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args, extra = arguments().parse_known_args()
    device = torch.device(args.device)
    on_cpu = ["fp32", "fp32 fastest"]
    variants = args.variants or (on_cpu if args.device == "cpu" else list(VARIANTS))
    cpu = ["--cpu", "true"] if args.device == "cpu" else []
    results: dict[str, Any] = {"device": title(device), "rows": []}
    with data_words(args) as where:
        if args.serve:
            serve(args.stage, [*cpu, *where, *VARIANTS[variants[0]].split(), *extra])
            return
        print(results["device"])
        print(
            f"{'stage':10}{'variant':24}{'ms':>9}{'bare':>9}{'ratio':>8}{'images/s':>10}{'kernels':>9}{'MiB':>7}"
        )
        for stage in list(STAGES) if args.stage == "both" else [args.stage]:
            for variant in variants:
                if stage == "pretrain" and variant.endswith("table"):
                    continue
                words = [*cpu, *where, *VARIANTS[variant].split(), *extra]
                row = {"stage": stage, "variant": variant}
                row |= measure(stage, args.steps, args.block, words)
                results["rows"].append(row)
                print(line(row), flush=True)
                if args.out:
                    args.out.write_text(to_json(results, indent=2) + "\n")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    shown = f"{row['stage']:10}{row['variant']:24}{row['ms']:9.2f}{row['bare_ms']:9.2f}{row['ratio']:8.3f}"
    shown += f"{row['images_per_second']:10.0f}"
    for number, width in ((row["kernels"], 9), (row["peak_mib"], 7)):
        shown += f"{'-' if number is None else f'{number:.0f}':>{width}}"
    return shown


if __name__ == "__main__":
    main()
