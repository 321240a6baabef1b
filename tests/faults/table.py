"""Each fault made for real, and what came of it, as a Markdown table.

    python -m tests.faults.table [--only WORD]

By the commands that a user types: `python launch/distill.py` on one rank, `accelerate launch` on two.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

from tests.faults.nursery import Job
from tests.faults.scene import LIMIT, Outcome, Scene, Unavailable, scene


@dataclass(frozen=True)
class Fault:
    """One row."""

    name: str
    happen: Callable[[Scene], Outcome]
    code: int
    """Exit code of the process."""
    says: str
    """Pattern of the line that tells of it."""
    least: int | None = 2
    """A checkpoint of this step at least must still load; None: there is none to load."""
    bug: bool = False
    """Whether a traceback may be shown: for whoever has to mend the code."""
    ranks: int = 1

    def complaints(self, outcome: Outcome, launched: bool) -> list[str]:
        """What is not as it has to be. accelerate launch has 1 for every failure of its ranks."""
        code = 1 if launched and self.ranks > 1 and self.code else self.code
        lines = [line for line in outcome.text.splitlines() if line.startswith("error: ")]
        checks = {
            f"exit code {outcome.code}, not {code}": outcome.code == code,
            f"no {self.says!r}": re.search(self.says, outcome.message) is not None,
            # A rank that waited two seconds in vain for the first one to tell does so itself.
            f"{len(lines)} lines of error": len(lines) <= self.ranks,
            "a traceback": self.bug or launched or "Traceback" not in outcome.text,
            f"step {outcome.intact} is what still loads": (outcome.intact or 0) >= (self.least or 0),
            f"left behind: {outcome.debris}": not outcome.debris,
        }
        return [text for text, fine in checks.items() if not fine]


def full_disk(at: Scene) -> Outcome:
    at.mount("32m")
    job = at.under_way()
    since = time.monotonic()
    with (at.runs / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    return at.outcome(job, since)


def read_only_from_the_start(at: Scene) -> Outcome:
    at.mount("64m")
    at.ended("--max-steps", "4")
    at.remount("ro")
    return at.began()


def read_only_under_the_run(at: Scene) -> Outcome:
    job = at.under_way()
    since = time.monotonic()
    at.immutable(at.checkpoints, True)
    return at.outcome(job, since)


def beton(change: Callable[[Path], None]) -> Callable[[Scene], Outcome]:
    def happen(at: Scene) -> Outcome:
        job = at.under_way(loader="ffcv")
        since = time.monotonic()
        change(at.data / "digits_train.beton")
        return at.outcome(job, since)

    return happen


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3_000_000)
        file.write(b"other pixels")


def signalled(rank: int | None, number: int, ranks: int = 2) -> Callable[[Scene], Outcome]:
    def happen(at: Scene) -> Outcome:
        job = at.under_way(ranks=ranks)
        since = job.signal(rank, number)  # type: ignore[arg-type]
        if rank is not None and isinstance(job, Job):  # as accelerate launch does when a rank has ended
            time.sleep(0.1)
            job.signal(None, SIGTERM)
        return at.outcome(job, since)

    return happen


def launcher_stopped(at: Scene) -> Outcome:
    job = at.under_way(ranks=2, launcher=True)
    return at.outcome(job, job.signal_launcher(SIGTERM))  # type: ignore[union-attr]


def twice(at: Scene) -> Outcome:
    job = at.start(sabotage="stall:0:5")
    at.printed(job, "stalling")
    job.signal(None, SIGINT)
    time.sleep(1.5)
    return at.outcome(job, job.signal(None, SIGINT))


def planted(what: str, ranks: int = 2) -> Callable[[Scene], Outcome]:
    def happen(at: Scene) -> Outcome:
        job = at.under_way(ranks=ranks, sabotage=what)
        return at.outcome(job, time.monotonic())

    return happen


def damaged(change: Callable[[Path], None], every: bool = False) -> Callable[[Scene], Outcome]:
    def happen(at: Scene) -> Outcome:
        at.ended("--max-steps", "6")
        for path in at.checkpoints.glob("*.safetensors") if every else [at.newest_file()]:
            change(path)
        return at.began("--max-steps", "8")

    return happen


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def second_job(at: Scene) -> Outcome:
    first, since = at.under_way(), time.monotonic()
    second = at.start()
    assert second.wait(LIMIT) and first.running
    first.signal(None, SIGTERM)
    assert first.wait(LIMIT)
    return at.outcome(second, since)


def changed(*more: str) -> Callable[[Scene], Outcome]:
    def happen(at: Scene) -> Outcome:
        at.ended("--max-steps", "4")
        return at.began(*more)

    return happen


def damaged_manifest(at: Scene) -> Outcome:
    at.ended("--max-steps", "4")
    cut(at.run / "manifest.json")
    return at.began()


def nonfinite(mode: str) -> Callable[[Scene], Outcome]:
    return lambda at: at.began("--lr", "1e30", "--on-nonfinite", mode, "--checkpoint.every_steps", "1")


SAME = "the same command continues"
FAULTS = {
    "full": Fault("disk full", full_disk, 1, "cannot write .*No space left on device; make room"),
    "read-only-start": Fault(
        "run folder read-only at the start", read_only_from_the_start, 2, "Read-only file system"
    ),
    "read-only": Fault(
        "checkpoint folder read-only under the run", read_only_under_the_run, 1, "cannot write .*checkpoints"
    ),
    "beton-cut": Fault("beton cut under the run", beton(cut), 1, r"digits_train\.beton was cut"),
    "beton-written": Fault("beton written to under the run", beton(overwrite), 1, "beton was written to"),
    "beton-removed": Fault(
        "beton removed under the run", beton(lambda path: path.unlink()), 1, "beton does not exist"
    ),
    "kill-1": Fault("rank 1 killed (of 2)", signalled(1, SIGKILL), 1, "another rank has ended", ranks=2),
    "kill-0": Fault("rank 0 killed (of 2)", signalled(0, SIGKILL), 1, "another rank has ended", ranks=2),
    "raise": Fault(
        "rank 1 raises (of 2)", planted("raise:1:6"), 1, r"LookupError .*broken on purpose", bug=True, ranks=2
    ),
    "loader": Fault(
        "loader thread of rank 1 raises (of 2)",
        planted("loader:1:7"),
        1,
        r"Input/output error \(on purpose\)",
        bug=True,
        ranks=2,
    ),
    "flipped": Fault(
        "newest checkpoint: one bit flipped", damaged(flip), 0, "warning: .*SHA-256 of its manifest"
    ),
    "short": Fault("newest checkpoint: cut short", damaged(cut), 0, "warning: .*bytes, its manifest says"),
    "none-left": Fault(
        "all checkpoints damaged", damaged(flip, every=True), 2, "no intact checkpoint left", least=None
    ),
    "nan-stop": Fault("loss not finite", nonfinite("stop"), 1, "nan or infinite at step", least=None),
    "nan-skip": Fault(
        "loss not finite for ever, `--on-nonfinite skip`", nonfinite("skip"), 1, "in a row", least=None
    ),
    "term": Fault("SIGTERM", signalled(None, SIGTERM, ranks=1), 75, f"stopped: SIGTERM .*{SAME}"),
    "int": Fault("Ctrl-C", signalled(None, SIGINT, ranks=1), 75, f"stopped: SIGINT .*{SAME}"),
    "int-twice": Fault("Ctrl-C twice, in a step that takes long", twice, 130, "interrupted twice"),
    "term-2": Fault(
        "SIGTERM to `accelerate launch` (2 ranks)",
        launcher_stopped,
        75,
        f"stopped: SIGTERM .*{SAME}",
        ranks=2,
    ),
    "int-2": Fault("Ctrl-C (2 ranks)", signalled(None, SIGINT), 75, f"stopped: SIGINT .*{SAME}", ranks=2),
    "second": Fault("a second job on the run folder", second_job, 2, "in use by another job"),
    "changed": Fault(
        "another configuration", changed("--lr", "0.5"), 2, r"other values .*optim\.lr: 0\.02 -> 0\.5"
    ),
    "manifest": Fault("run's manifest damaged", damaged_manifest, 2, r"manifest\.json is damaged"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose short name has this")
    args = parser.parse_args()
    print("| fault | exit code | seconds | still loads | what is shown |\n|---|---|---|---|---|", flush=True)
    failed = False
    for short, fault in FAULTS.items():
        if args.only not in short:
            continue
        with tempfile.TemporaryDirectory(prefix="rmd-fault-") as where:
            try:
                with scene(Path(where), None) as at:
                    outcome = fault.happen(at)
            except Unavailable as why:
                print(f"| {fault.name} | | | | not tried: {why} |", flush=True)
                continue
        loads = "none" if outcome.intact is None else f"step {outcome.intact}"
        print(
            f"| {fault.name} | {outcome.code} | {outcome.seconds:.1f} | {loads} | `{outcome.message}` |",
            flush=True,
        )
        for text in fault.complaints(outcome, launched=True):
            failed = True
            print(f"{short}: {text}\n{outcome.text[-3000:]}", file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
