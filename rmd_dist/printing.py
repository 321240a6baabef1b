"""What the short commands print: tables, evaluation figures, the progress of writing betons."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rmd_dist.console import PLAIN_SECONDS, is_interactive, make_table, plain_console

LARGEST_CONFUSION = 20  # classes; a larger matrix is only written to --out


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table to standard output: coloured on a terminal, plain text elsewhere."""
    from rich.console import Console

    console = Console() if is_interactive(sys.stdout) else plain_console(sys.stdout)
    console.print(make_table(title, columns, rows))


def print_assessment(assessment: dict[str, Any]) -> None:
    """Print what `Assessment.to_json()` gave."""
    title = f"{assessment['model']} on {assessment['dataset']} (clean test labels)"
    rows = [[name, _percent(value)] for name, value in assessment["figures"].items()]
    classes = assessment["classes"]
    rows += [
        [f"class {name}", _percent(share)]
        for name, share in zip(classes, assessment["per_class"], strict=True)
    ]
    print_table(title, ["measure", "value"], rows)
    confusion = assessment["confusion"]
    if confusion is not None and len(classes) > LARGEST_CONFUSION:
        print(f"confusion matrix of {len(classes)} classes: write it with --out FILE.json")
    elif confusion is not None:
        counts = [[name, *row] for name, row in zip(classes, confusion, strict=True)]
        print_table("confusion matrix (rows: true class, columns: predicted)", ["", *classes], counts)


@contextlib.contextmanager
def preparation_progress(*, enabled: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (what, done, total) for `rmd_dist.data.prepare`: a bar, or without a terminal lines."""
    if not enabled:
        yield None
    elif is_interactive(sys.stdout):
        with _bar() as callback:
            yield callback
    else:
        yield _Lines()


class _Lines:
    """Plain progress: a line when something starts and every few seconds."""

    def __init__(self) -> None:
        self._what, self._next = "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what or now >= self._next:
            self._what, self._next = what, now + PLAIN_SECONDS
            print(f"{what}: {done}/{total}" if total else what, flush=True)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns) as bar:

        def callback(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield callback


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
