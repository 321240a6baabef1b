"""Everything a person watches: TensorBoard, metrics.jsonl, the progress bar and the log of a run.

Rank 0 owns an enabled Monitor; elsewhere a disabled one takes the same calls and does nothing, so the
trainer needs no rank test. tensorboard, matplotlib and rich are imported when first needed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from rmd_dist.errors import ConfigError, writing
from rmd_dist.files import atomic_path, parse_json, regular_size, to_json
from rmd_dist.runs import figures
from rmd_dist.runs.console import Screen, make_table, plain_text

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = npt.NDArray[Any] | Tensor

FLUSH_SECONDS = 2  # what a kill -9 can take from TensorBoard; metrics.jsonl loses no whole record


class Monitor:
    """What one run shows and records.

    Writes RUN_DIR/events.* (TensorBoard), RUN_DIR/metrics.jsonl (the same scalars, one JSON object a line:
    {"step": int, "time": seconds since the epoch, TAG: value, ...}, values that are not finite as null) and
    RUN_DIR/log.txt (messages and tables).

    A run that continues after `resume_step` (0: from the start) forgets what an interrupted run recorded
    beyond that step, and then reads as if nothing had happened. What cannot be written raises a Fault.
    """

    def __init__(
        self, run_dir: Path, *, enabled: bool, total_steps: int, title: str, resume_step: int
    ) -> None:
        self.enabled = enabled
        self._last_step = resume_step
        if not enabled:
            return
        self._events = run_dir / "events.*"
        had_events = any(run_dir.glob("events.out.tfevents.*"))
        # Step 0 belongs to what a start from scratch repeats, but not to what a continuation does.
        repeated_from = resume_step + 1 if resume_step else 0
        with writing(run_dir):
            run_dir.mkdir(parents=True, exist_ok=True)
            damaged = trim_metrics(run_dir / "metrics.jsonl", repeated_from)
            self._metrics: IO[str] = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
            self._log: IO[str] = (run_dir / "log.txt").open("a", encoding="utf-8", buffering=1)
            self._writer = _summary_writer(run_dir, repeated_from if had_events else None)
        self._screen = Screen(title, total_steps)
        if damaged:
            self.warning(f"dropped {damaged} unreadable line(s) of {run_dir / 'metrics.jsonl'}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` (tag -> number, NumPy scalar or tensor of one element) at optimizer step `step`."""
        if not self.enabled:
            return
        numbers = {tag: float(value) for tag, value in values.items()}
        record = {"step": step, "time": round(time.time(), 3)} | numbers
        with writing(self._events):
            for tag, number in numbers.items():
                self._writer.add_scalar(tag, number, step)
        with writing(Path(self._metrics.name)):
            self._metrics.write(to_json(record) + "\n")
        self._last_step = max(self._last_step, step)

    def progress(self, step: int, loss: float, lr: float, images_per_second: float) -> None:
        """Move the bar to `step` optimizer steps done; without a terminal, print a line now and then."""
        if self.enabled:
            self._screen.progress(step, loss, lr, images_per_second)

    def images(self, tag: str, views: Sequence[Array], step: int) -> None:
        """Grid of the first samples of a batch: one row per view, views[v] being (B, H, W, 3) uint8."""
        if self.enabled:
            self._picture(tag, figures.view_grid([_numpy(view) for view in views]), step)

    def heatmap(self, tag: str, matrix: Array, step: int, vmin: float, vmax: float, title: str) -> None:
        """Heat map with colour bar of a (R, C) matrix, colours from `vmin` to `vmax`."""
        if self.enabled:
            picture = figures.heatmap(_numpy(matrix), vmin=vmin, vmax=vmax, title=title)
            self._picture(tag, picture, step)

    def confusion(self, tag: str, matrix: Array, classes: Sequence[str], step: int) -> None:
        """Confusion matrix (C, C) of counts, rows true, coloured by the share of the true class."""
        if self.enabled:
            picture = figures.confusion_matrix(_numpy(matrix), classes, f"{tag} at step {step}")
            self._picture(tag, picture, step)

    def hparams(self, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Settings (flat: dotted key -> value) for TensorBoard's HPARAMS page.

        Without `metrics` (at the start) the run is shown as running. With them (at the end) it is marked as
        finished, and each is recorded as scalar `final/NAME` at the last step seen.

        The summaries go into the run's own events; SummaryWriter.add_hparams would make a second run.
        """
        if not self.enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        writer = self._writer.file_writer
        # Left out, the first makes TensorBoard list the settings of all runs, not of one of them.
        settings = {key: _plain(value) for key, value in config.items()}
        _, start, end = hparams(settings, {})  # type: ignore[no-untyped-call]
        with writing(self._events):
            writer.add_summary(start, 0)
            if metrics:
                self.scalars({f"final/{name}": value for name, value in metrics.items()}, self._last_step)
                writer.add_summary(end, self._last_step)
            self._writer.flush()

    def info(self, message: str) -> None:
        """Print and log a message."""
        if self.enabled:
            self._screen.line(message)
            self._log_line("info", message)

    def warning(self, message: str) -> None:
        """Print and log a message that somebody should act on."""
        if self.enabled:
            self._screen.line(f"warning: {message}", style="bold yellow")
            self._log_line("warning", message)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print and log a table; numbers are aligned right, floats shown with 4 digits."""
        if self.enabled:
            table = make_table(title, columns, rows)
            self._screen.table(table)
            self._log_line("table", "\n" + plain_text(table))

    def close(self) -> None:
        """Write out what is pending and leave the terminal as it was; more calls do nothing."""
        if not self.enabled:
            return
        self.enabled = False
        self._screen.close()
        with writing(self._events):
            self._writer.close()
        with writing(Path(self._metrics.name)):
            self._metrics.close()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _picture(self, tag: str, picture: figures.Image, step: int) -> None:
        with writing(self._events):
            self._writer.add_image(tag, picture, step, dataformats="HWC")

    def _log_line(self, level: str, message: str) -> None:
        with writing(Path(self._log.name)):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {level}: {message}\n")


def trim_metrics(path: Path, first_step: int) -> int:
    """Drop from a metrics.jsonl the records of `first_step` and later, atomically.

    Lines that cannot be read (a kill or a power failure can tear the last) go too; returns their number.
    Raises ConfigError if the file cannot be read at all.
    """
    try:
        regular_size(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it or remove it") from error
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept, damaged = [], 0
    for line in lines:
        step = _step_of(line)
        if step is None:
            damaged += 1
        elif step < first_step:
            kept.append(line)
    if len(kept) < len(lines):
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
    return damaged


def _step_of(line: str) -> int | None:
    """Step of a whole metrics line, else None."""
    if not line.endswith("\n"):
        return None
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError):
        return None
    return step if isinstance(step, int) else None


def _summary_writer(run_dir: Path, purge_step: int | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard reads event files in the order of their names: by the second of their start, and within one
    # by a count of the process's, as text, where 10 comes before 9.
    while any(run_dir.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.02)
    return SummaryWriter(str(run_dir), purge_step=purge_step, flush_secs=FLUSH_SECONDS)


def _plain(value: Any) -> int | float | str:
    """A setting as TensorBoard takes it: it refuses lists and paths, and drops NumPy scalars in silence."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _numpy(values: Array) -> npt.NDArray[Any]:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
