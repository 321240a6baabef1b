"""What checkpoints cost: training that saves every 50 steps, beside or waited for, against none saved.

    python benchmarks/saving.py [--stage pretrain|distill] [--every 50] [--rounds 4] [--out FILE.json]

The trainer on the paper's defaults (ResNet-18, batch 64); further options are those of the launch scripts.
Each round trains one block of `--every` steps of each kind, in an order that turns from round to round; a
block that saves begins with the save, and ends when its file is on the disk. The cost, twice:

    by block    time of the block beside that of the round's block without a save; median over rounds
    by save     time held up, and what steps lose while the file is written beside them (against the median
                step without a save), as a share of `--every` steps: other work on the machine weighs less
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from step import build_trainer

from rmd_dist.data.loader import Batch
from rmd_dist.engine.saver import Saver
from rmd_dist.engine.trainer import Trainer
from rmd_dist.files import to_json

KINDS = ("none", "beside", "waited for")


@dataclass
class Block:
    """Seconds of one block, its save and its steps."""

    total: float
    held: float = 0.0
    """How long the save kept training waiting."""
    until_written: float = 0.0
    """From the save's beginning until the file was on the disk."""
    steps: list[float] = field(default_factory=list)
    writing: int = 0
    """So many steps had begun when the file was done."""


def stepper(trainer: Trainer) -> Callable[[], None]:
    """One training step a call, logged as often as in a run."""

    def batches() -> Iterator[Batch]:
        for epoch in count():
            yield from trainer.loader.epoch(epoch)

    stream = batches()

    def step() -> None:
        logging = trainer.step % trainer.config.run.log_every == 0
        trainer.train_step([next(stream).to(trainer.accelerator.device)], logging=logging)

    return step


def block(trainer: Trainer, step: Callable[[], None], kind: str, every: int) -> Block:
    """`every` steps, after a save if the kind says so."""
    saver = trainer.saver
    start = time.perf_counter()
    measured = Block(0.0)
    if kind != "none":
        saver._asynchronous = kind == "beside"
        saver.save(trainer.state.snapshot({"scaler": {}}))
        measured.held = time.perf_counter() - start
    written = kind != "beside"
    measured.until_written = measured.held
    for _ in range(every):
        began = time.perf_counter()
        step()
        now = time.perf_counter()
        measured.steps.append(now - began)
        if not written:
            measured.writing += 1
            if written := not _writing(saver):
                measured.until_written = now - start
    saver.wait()
    measured.total = time.perf_counter() - start
    if not written:
        measured.until_written = measured.total
    return measured


def _writing(saver: Saver) -> bool:
    return saver._thread is not None and saver._thread.is_alive()


def measure(stage: str, every: int, rounds: int, data: str, extra: list[str]) -> dict[str, float]:
    """All rounds of one process, and their figures."""
    blocks: dict[str, list[Block]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as runs:
        trainer = build_trainer(stage, data, runs, extra)
        step = stepper(trainer)
        for _ in range(5):
            step()
        block(trainer, step, "beside", 2)  # buffers are made at the first save
        for number in range(rounds):
            turn = number % len(KINDS)
            for kind in KINDS[turn:] + KINDS[:turn]:
                blocks[kind].append(block(trainer, step, kind, every))
        size = max(path.stat().st_size for path in trainer.folder.checkpoints.glob("*.safetensors"))
        trainer.close()
    plain = statistics.median(s for b in blocks["none"] for s in b.steps)

    def extra_seconds(b: Block) -> float:
        return b.held + sum(b.steps[: b.writing]) - b.writing * plain

    figures = {"step_seconds": plain, "bytes": float(size), "every": float(every), "rounds": float(rounds)}
    for kind in KINDS[1:]:
        pairs = zip(blocks[kind], blocks["none"], strict=True)
        figures[f"{kind}: block"] = statistics.median(b.total / none.total - 1 for b, none in pairs)
        lost = statistics.median(extra_seconds(b) for b in blocks[kind])
        figures[f"{kind}: save"] = lost / (every * plain)
        figures[f"{kind}: held_seconds"] = statistics.median(b.held for b in blocks[kind])
        figures[f"{kind}: written_seconds"] = statistics.median(b.until_written for b in blocks[kind])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=["pretrain", "distill"], default="distill")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--data", default="data")
    parser.add_argument("--out", type=Path)
    args, extra = parser.parse_known_args()
    found = measure(args.stage, args.every, args.rounds, args.data, extra)
    print(
        f"{args.stage}, {found['bytes'] / 1e6:.0f} MB every {args.every} steps, median step "
        f"{1000 * found['step_seconds']:.0f} ms, {args.rounds} rounds"
    )
    print(f"{'save':12}{'cost by block':>15}{'cost by save':>15}{'held up, ms':>14}{'written after, ms':>20}")
    for kind in KINDS[1:]:
        print(
            f"{kind:12}{100 * found[f'{kind}: block']:13.2f} %{100 * found[f'{kind}: save']:13.2f} %"
            f"{1000 * found[f'{kind}: held_seconds']:14.1f}{1000 * found[f'{kind}: written_seconds']:20.0f}"
        )
    if args.out:
        args.out.write_text(to_json(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
