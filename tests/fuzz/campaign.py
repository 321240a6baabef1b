"""A campaign: every handmade input, then random ones, shared evenly among the targets; and its table."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.bombs import BOMBS, HARMLESS
from tests.fuzz.mutate import BYTES, FORBIDDEN, PATHS, json_value, replace
from tests.fuzz.server import OUTCOMES, Result, Server
from tests.fuzz.targets import TARGETS, Target

DEFECTS = OUTCOMES[2:]


@dataclass
class Report:
    """What was tried, by target and outcome, and every defect."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    defects: list[tuple[str, str, Result]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, target: str, what: str, result: Result) -> None:
        self.counts.setdefault(target, Counter())[result.outcome] += 1
        self.slowest = max(self.slowest, (result.seconds, f"{target}: {what}"))
        if result.outcome in DEFECTS:
            self.defects.append((target, what, result))

    @property
    def tried(self) -> int:
        return sum(sum(counter.values()) for counter in self.counts.values())

    def table(self) -> str:
        """Inputs by target (rows) and outcome (columns)."""
        columns = ("inputs", *OUTCOMES)
        rows = [
            (name, [sum(counter.values()), *(counter[outcome] for outcome in OUTCOMES)])
            for name, counter in self.counts.items()
        ]
        rows.append(("all", [sum(column) for column in zip(*(values for _, values in rows), strict=True)]))
        lines = [" " * 20 + "".join(f"{column:>11}" for column in columns)]
        lines += [f"{name:20}" + "".join(f"{value:11}" for value in values) for name, values in rows]
        return "\n".join(lines)


def _random_input(target: Target, folder: Path, rng: random.Random) -> tuple[str, bool]:
    """Spoil a valid input; returns (what was done, whether to open it without being root)."""
    if rng.random() < 0.1:
        name, kind = rng.choice(target.files), rng.choice((*PATHS, FORBIDDEN))
        replace(folder / name, kind)
        return f"{name}: {kind}", kind == FORBIDDEN
    name = rng.choice(list(target.views))
    view = target.views[name]
    data = view.read(folder)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutator = json_value if view.is_json and rng.random() < 0.7 else rng.choice(BYTES)
        data = mutator(data, rng)
        done.append(mutator.__name__)
    view.write(folder, data)
    return f"{name}: {', '.join(done)}", False


def run(
    base: Path,
    inputs: int,
    seed: int,
    targets: Sequence[str] = (),
    bombs: Sequence[tuple[str, str]] | None = None,
) -> Report:
    """Open every target's valid input, `bombs` (default: all) and `inputs` random ones, below `base`.

    Input number n depends on (seed, n) alone. AssertionError if a valid input is not accepted.
    """
    names = list(targets or TARGETS)
    report = Report()
    templates = {name: base / f"valid-{number}" / "input" for number, name in enumerate(names)}
    with Server() as server:
        for name, folder in templates.items():
            folder.mkdir(parents=True)
            TARGETS[name].make(folder)
        for name in names:
            with _copy(templates[name], base) as folder:
                result = server.open(name, folder)
            assert result.outcome == "accepted", f"the valid input of {name}: {result}"
        for name, what in BOMBS if bombs is None else bombs:
            if name not in names:
                continue
            with _copy(templates[name], base) as folder:
                BOMBS[name, what](folder)
                result = server.open(name, folder)
            if result.outcome == "accepted" and what not in HARMLESS:
                result = Result("exception", "accepted, and should not be", result.seconds)
            report.add(name, what, result)
        for number in range(inputs):
            name = names[number % len(names)]
            rng = random.Random(f"{seed} {number}")
            with _copy(templates[name], base) as folder:
                what, as_nobody = _random_input(TARGETS[name], folder, rng)
                result = server.open(name, folder, as_nobody=as_nobody)
            report.add(name, f"{what} (seed {seed}, input {number})", result)
    return report


class _copy:
    """A copy of a folder, in a folder of its own that is removed afterwards."""

    def __init__(self, template: Path, base: Path) -> None:
        self._template, self._home = template, base / f"input-{time.monotonic_ns()}"

    def __enter__(self) -> Path:
        folder = self._home / "input"
        shutil.copytree(self._template, folder)
        return folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._home)


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    yield report.table()
    seconds, what = report.slowest
    yield f"{report.tried} inputs, {len(report.defects)} defects; slowest {seconds:.2f} s ({what})"
    for target, what, result in report.defects:
        yield f"DEFECT {result.outcome}: {target}: {what}: {result.detail} ({result.seconds:.1f} s)"
