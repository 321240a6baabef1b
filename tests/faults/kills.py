"""Kill a real run at random moments until it has ended all the same, and compare it with one left in peace.

    python -m tests.faults.kills --kills 100 --seed 1

Runs of two ranks, of both stages in turn, which save every 2 steps beside training. SIGKILL goes to both
ranks at once, or to one of them; then the other must end by itself. Each time the same command goes on. When
it has come to its end, weights, momentum, the exported model and all records must be those of the
uninterrupted run, bit for bit. A moment is drawn (any; or soon after a sign of start-up, training, a save,
an evaluation, the end); what was really going on is read off the files that the kill has left.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import torch

from rmd_dist.engine.checkpoint import newest
from rmd_dist.models.weights import read_tensors
from tests.engine.test_kill import scalars
from tests.faults.nursery import Job, Nursery
from tests.tiny import words

EVERY = 2  # steps between saves
EPOCH = 10  # steps of one; each ends in an evaluation
ALONE = 20.0  # seconds that a rank has to notice that the other has gone
HANG = 120.0  # seconds without any progress that nothing takes

MOMENTS = ("any", "any", "start-up", "training", "save", "save", "save", "evaluation", "end")
VICTIMS = ("both", "both", "rank 0", "rank 1")


@dataclass
class Kill:
    """One kill and what it met."""

    stage: str
    moment: str
    """As it was drawn."""
    victim: str
    phase: str
    """What training did: start-up, before the first save, training, evaluation, end."""
    save: str
    """How far a save had come: "" (none), tensors, manifest, retention."""
    lost: int
    """Steps done since the run went on, less those of the newest intact checkpoint."""
    seconds: float
    """Until all processes were gone."""
    alone: bool
    """Whether those that were not killed ended by themselves."""


class Run:
    """A run that is killed and continued: its folder and what can be read there at any moment."""

    def __init__(self, stage: str, runs: Path, steps: int) -> None:
        self.stage, self.runs, self.steps = stage, runs, steps
        self.folder = runs / stage / "tiny"
        self.argv = words(
            stage, runs, "--model", "resnet10t", "--batch-size", "24", "--data.train_samples",
            str(24 * EPOCH), "--max-steps", str(steps), "--checkpoint.every_steps", str(EVERY), "--keep", "2",
            "--eval.every_epochs", "1",
        )  # fmt: skip
        self.attempts = 0

    def start(self, nursery: Nursery) -> Job:
        self.attempts += 1
        self.runs.mkdir(parents=True, exist_ok=True)
        return nursery.start(
            self.stage, self.argv, ranks=2, output=self.runs / f"attempt-{self.attempts}.txt"
        )

    def trained(self) -> int:
        """Steps whose records are written."""
        return max((r["step"] for r in self._records() if "train/loss" in r), default=0)

    def evaluating(self) -> bool:
        """Whether an epoch is done and its evaluation is not."""
        records = self._records()
        trained = self.trained()
        return trained > 0 and trained % EPOCH == 0 and not any(
            r["step"] == trained and "train/loss" not in r for r in records
        )  # fmt: skip

    def saving(self) -> str:
        """How far a save has come that is not finished, by its files."""
        checkpoints = self.folder / "checkpoints"
        names = {p.name for p in checkpoints.iterdir()} if checkpoints.exists() else set()
        if any(re.fullmatch(r"\.step-\d+\.safetensors\..*\.tmp", name) for name in names):
            return "tensors"
        tensors = {name.split(".")[0] for name in names if re.fullmatch(r"step-\d+\.safetensors", name)}
        manifests = {name.split(".")[0] for name in names if re.fullmatch(r"step-\d+\.json", name)}
        if max(tensors, default="") > max(manifests, default=""):
            return "manifest"  # of tensors that are there already
        return "retention" if tensors != manifests or len(manifests) > 2 else ""

    def intact(self) -> int:
        """Step of the newest intact checkpoint; 0: none. A damaged one that is not hidden is an error."""

        def refuse(text: str) -> None:
            raise AssertionError(f"a kill left a damaged checkpoint: {text}")

        found = newest(self.folder / "checkpoints", warn=refuse)
        return found.step if found else 0

    def _records(self) -> list[dict[str, float]]:
        path = self.folder / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:  # being written
                continue
        return records


def begun(job: Job) -> bool:
    """Whether training has begun: what an attempt before this one did beyond its checkpoint is forgotten."""
    return bool(re.search(r"(starting|continuing at step \d+):", job.text()))


def wait_for(moment: str, run: Run, job: Job, rng: random.Random, span: float) -> None:
    """Until the moment has come, or the job has ended; `span`: seconds of an uninterrupted run."""
    began = time.monotonic()
    signs: dict[str, tuple[Callable[[], bool], float]] = {
        # a sign, and the longest delay after it
        "any": (lambda: True, span),
        "start-up": (lambda: True, 2.5),
        "training": (lambda: begun(job), 2.0),
        "save": (lambda: begun(job) and bool(run.saving()), 0.05),
        "evaluation": (lambda: begun(job) and run.evaluating(), 0.4),
        "end": (lambda: begun(job) and run.trained() >= run.steps, 1.5),
    }
    sign, longest = signs[moment]
    # Some saves and steps go by first.
    passed = time.monotonic() + (rng.uniform(0, 3.0) if moment in ("training", "save") else 0.0)
    while job.running and (time.monotonic() < passed or not sign()):
        assert time.monotonic() - began < HANG, f"no {moment} in {HANG:g} s:\n{job.text()[-2000:]}"
        time.sleep(0.002)
    job.wait(rng.uniform(0, longest))


def phase_of(run: Run, job: Job) -> str:
    """What training was doing, by the records."""
    if not begun(job):
        return "start-up"
    if run.trained() >= run.steps and not run.evaluating():
        return "end"
    if run.evaluating():
        return "evaluation"
    return "training" if run.intact() else "before the first save"


def attempt(
    run: Run, nursery: Nursery, moment: str, victim: str, rng: random.Random, span: float
) -> Kill | None:
    """Start or continue the run and kill it; None if it came to its end before that."""
    job = run.start(nursery)
    try:
        wait_for(moment, run, job, rng, span)
        rank = None if victim == "both" else int(victim[-1])
        saving = run.saving()
        killed = job.signal(rank, SIGKILL)
        if victim == "both":
            job.wait(30)
            saving = run.saving()  # nothing moves any more
        alone = job.end(ALONE)
    finally:
        job.signal(None, SIGKILL)
    codes = job.codes()
    if -SIGKILL not in codes:
        assert codes == [0, 0], f"exit codes {codes}:\n{job.text()[-3000:]}"
        return None
    phase, intact, trained = phase_of(run, job), run.intact(), run.trained()
    lost = max(0, trained - intact) if begun(job) else 0
    assert lost <= 2 * EVERY, f"{lost} steps lost at step {trained}"
    return Kill(run.stage, moment, victim, phase, saving, lost, job.gone() - killed, alone)


def finish(run: Run, nursery: Nursery) -> float:
    """Let the run come to its end; the seconds that took."""
    began = time.monotonic()
    job = run.start(nursery)
    try:
        assert job.wait(10 * HANG) and job.codes() == [0, 0], job.text()[-3000:]
    finally:
        job.signal(None, SIGKILL)
    return job.gone() - began


def differences(run: Run, whole: Run) -> list[str]:
    """What a run has left that another has not, but for clocks."""
    found = []
    names = [f"checkpoints/step-{run.steps:09d}.safetensors", "model.safetensors"]
    for name in names:
        ours, theirs = (read_tensors(r.folder / name) for r in (run, whole))
        found += [f"{name}: {k}" for k in ours.keys() ^ theirs.keys()]
        found += [f"{name}: {k}" for k in ours.keys() & theirs.keys() if not torch.equal(ours[k], theirs[k])]
    records = [[json.dumps(record) for record in scalars(r.folder)] for r in (run, whole)]
    if records[0] != records[1]:
        found += [f"metrics.jsonl: {line[:150]}" for line in difflib.unified_diff(*records, n=0, lineterm="")]
    for name in ("status", "step", "results"):
        told = [json.loads((r.folder / "manifest.json").read_text())[name] for r in (run, whole)]
        found += [f"manifest.json: {name}"] if told[0] != told[1] else []
    return found + [f"left behind: {path.name}" for path in run.folder.rglob("*.tmp")]


def campaign(
    nursery: Nursery, where: Path, moments: Iterator[tuple[str, str]], seed: int, kills: int, steps: int
) -> tuple[list[Kill], int, list[str]]:
    """Kill runs until `kills` are done, each run to its end; (kills, runs, differences)."""
    done: list[Kill] = []
    wrong: list[str] = []
    rng, number = random.Random(seed), 0
    whole: dict[str, tuple[Run, float]] = {}
    stages = ("distill", "pretrain")
    while len(done) < kills:
        stage = stages[number % 2]
        number += 1
        if stage not in whole:
            peaceful = Run(stage, where / "whole" / stage, steps)
            whole[stage] = (peaceful, finish(peaceful, nursery))
        run = Run(stage, where / f"killed-{number}", steps)
        while len(done) < kills:
            moment, victim = next(moments)
            kill = attempt(run, nursery, moment, victim, rng, whole[stage][1])
            if kill is None:
                break
            done.append(kill)
            print(f"{len(done):4} {kill}", file=sys.stderr, flush=True)
        else:
            finish(run, nursery)
        wrong += [f"run {number} ({stage}): {what}" for what in differences(run, whole[stage][0])]
    return done, number, wrong


def drawn(seed: int) -> Iterator[tuple[str, str]]:
    """Moments and victims without end."""
    rng = random.Random(f"moments {seed}")
    while True:
        yield rng.choice(MOMENTS), rng.choice(VICTIMS)


def report(kills: list[Kill], runs: int, wrong: list[str]) -> str:
    """The figures, as Markdown."""
    rows = ["| what training did | kills | in a save | steps lost, mean | most |", "|---|---|---|---|---|"]
    for phase in ("start-up", "before the first save", "training", "evaluation", "end", "all"):
        chosen = [k for k in kills if phase in ("all", k.phase)]
        if chosen:
            lost = [k.lost for k in chosen]
            saves = sum(bool(k.save) for k in chosen)
            rows.append(f"| {phase} | {len(chosen)} | {saves} | {statistics.mean(lost):.1f} | {max(lost)} |")
    victims, stages = Counter(k.victim for k in kills), Counter(k.stage for k in kills)
    saves = Counter(k.save for k in kills if k.save)
    drawn_any = [k for k in kills if k.moment == "any"]
    left = [k.seconds for k in kills if k.victim != "both" and k.alone]
    forced = [k for k in kills if not k.alone]
    listed = lambda counter: ", ".join(f"{name} {n}" for name, n in sorted(counter.items()))  # noqa: E731
    rows += [
        "",
        f"- {len(kills)} kills in {runs} runs of 2 ranks ({listed(stages)}); killed: {listed(victims)}",
        f"- in a save: {sum(saves.values())} ({listed(saves)}), "
        f"{sum(bool(k.save) for k in kills if k.victim != 'rank 1')} of them with the rank that writes; "
        f"of the {len(drawn_any)} at any moment: {sum(bool(k.save) for k in drawn_any)}",
        f"- steps lost: {listed(Counter(k.lost for k in kills))} (steps, kills); a save every {EVERY} steps",
        f"- one rank killed, the other gone by itself: {len(left)} times, after {max(left, default=0):.1f} s "
        f"at most; ended by the launcher's SIGTERM or SIGKILL: {len(forced)} "
        f"({listed(Counter(k.phase for k in forced)) or 'none'})",
        f"- differences to the uninterrupted runs in weights, momentum, model, metrics: {len(wrong)}",
        *[f"  - {what}" for what in wrong[:20]],
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rmd-kills-") as where, Nursery() as nursery:
        kills, runs, wrong = campaign(
            nursery, Path(where), drawn(args.seed), args.seed, args.kills, args.steps
        )
    print(report(kills, runs, wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
