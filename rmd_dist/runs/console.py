"""What is printed: bars and colours on a terminal, plain lines in a log file, in CI or on a dumb terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table

PLAIN_SECONDS = 15.0  # between progress lines where there is no bar
PLAIN_WIDTH = 160  # greatest, of tables in log files


def is_interactive(stream: TextIO) -> bool:
    """Whether `stream` can show a bar that redraws itself.

    rich alone would draw one wherever FORCE_COLOR is set, as CI services do.
    """
    ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and not ci


class Screen:
    """Progress, messages and tables on one stream; the bar stays below the messages."""

    def __init__(self, title: str, total_steps: int, stream: TextIO | None = None) -> None:
        from rich.console import Console

        stream = stream or sys.stdout
        self._title = title
        self._total = total_steps
        self._interactive = is_interactive(stream)
        self._console: Console = (
            Console(file=stream, highlight=False) if self._interactive else plain_console(stream)
        )
        self._bar: Progress | None = None
        self._started: tuple[float, int] | None = None  # time and step of the first progress report
        self._next_line = 0.0

    def progress(self, step: int, loss: float, lr: float, images_per_second: float) -> None:
        """Show that `step` optimizer steps are done; the time left allows for evaluation pauses."""
        now = time.monotonic()
        self._started = self._started or (now, step)
        left = _duration(self._seconds_left(step, now))
        if self._interactive:
            figures = [f"loss {loss:.4f}", f"{left} left", f"{images_per_second:.0f} img/s", f"lr {lr:.3g}"]
            self._draw(step, figures)
        elif now >= self._next_line or step >= self._total:
            self._next_line = now + PLAIN_SECONDS
            share = 100 * step / max(self._total, 1)
            self.line(
                f"{self._title}: step {step}/{self._total} ({share:.0f} %), loss {loss:.4f}, lr {lr:.3g}, "
                f"{images_per_second:.0f} images/s, {left} left"
            )

    def line(self, text: str, style: str = "") -> None:
        """Print a message above the bar; `text` is taken as it is, brackets included."""
        from rich.text import Text

        # Soft wrap keeps a long line whole, for somebody to search or copy.
        self._console.print(Text(text, style=style), soft_wrap=True)
        self._console.file.flush()

    def table(self, table: Table) -> None:
        """Print a table: above a bar that still runs, below one that is done."""
        if self._bar is not None and self._bar.finished:
            self.close()
        self._console.print(table)
        self._console.file.flush()

    def close(self) -> None:
        """Take the bar down, leaving its last state and a visible cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, step: int, now: float) -> float | None:
        assert self._started is not None
        start, first = self._started
        if step <= first:
            return None
        return (now - start) / (step - first) * max(self._total - step, 0)

    def _draw(self, step: int, figures: list[str]) -> None:
        from rich.progress import BarColumn, Progress, TaskID, TextColumn

        shown = fit(self._title, f"{step}/{self._total}", figures, self._console.width)
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.fields[head]}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}", markup=False),
                console=self._console,
                expand=True,
                refresh_per_second=4,
            )
            self._bar.add_task("", total=self._total, **shown)
            self._bar.start()
        self._bar.update(TaskID(0), completed=step, **shown)


def fit(title: str, count: str, figures: Sequence[str], width: int) -> dict[str, Any]:
    """What of the bar's line fits into `width` columns beside a bar of 8: {"head": ..., "figures": ...}.

    Given up one after the other: the title, all figures but the first from the last on, the count.
    """
    choices = [(f"{title} {count}", len(figures))]
    choices += [(count, number) for number in range(len(figures), 0, -1)]
    for head, number in [*choices, ("", 1)]:
        text = "  ".join(figures[:number])
        if len(head) + len(text) + 8 + 2 <= width:
            break
    return {"head": head, "figures": text}


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A rich table; numbers are aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{value:.4g}" if isinstance(value, float) else str(value)) for value in row))
    return table


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table to standard output: coloured on a terminal, plain text elsewhere."""
    from rich.console import Console

    console = Console() if is_interactive(sys.stdout) else plain_console(sys.stdout)
    console.print(make_table(title, columns, rows))


def plain_text(content: RenderableType) -> str:
    """`content` as it looks in a log file, without the newline at its end."""
    out = StringIO()
    plain_console(out).print(content)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def plain_console(stream: TextIO) -> Console:
    """A rich console that writes text alone: no colours, no control characters."""
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        width=PLAIN_WIDTH,
        highlight=False,
    )


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
    """Plain progress: a line when something starts, every few seconds, and at the end, with its speed."""

    def __init__(self) -> None:
        self._what, self._next, self._start = "", 0.0, (0.0, 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = what != self._what
        if began:
            self._what, self._start = what, (now, done)
        if began or now >= self._next or (total and done == total):
            self._next = now + PLAIN_SECONDS
            seconds, more = now - self._start[0], done - self._start[1]
            speed = f", {more / seconds:.0f}/s" if seconds and more else ""
            print(f"{what}: {done}/{total}{speed}" if total else what, flush=True)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "")

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [Speed(), TimeRemainingColumn()]
    tasks: dict[str, TaskID] = {}
    with Progress(*columns) as bar:

        def callback(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done, total=total or None)

        yield callback


def grouped(number: int) -> str:
    """An integer with its digits in groups: 12 345 678."""
    return f"{number:,}".replace(",", " ")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
