"""Curves of several runs in one picture, from their metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmd_dist.errors import ConfigError
from rmd_dist.runs.history import read_records

PANELS = {
    "test/accuracy": "accuracy on the clean test set",
    "memorisation/wrong_memorised": "wrong labels memorised",
    "memorisation/wrong_recovered": "wrongly labelled, predicted truly",
}


def read_curve(run: Path, tag: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a scalar of a run. Raises ConfigError if the folder has no metrics."""
    path = run / "metrics.jsonl"
    if not path.exists():
        raise ConfigError(f"{path} does not exist; give run folders such as runs/distill/NAME")
    found = [(step, values[tag]) for step, values in read_records(path) if tag in values]
    return [step for step, _ in found], [value for _, value in found]


def plot_runs(runs: Sequence[Path], labels: Sequence[str], out: Path) -> None:
    """Draw each run's test accuracy and what it makes of wrong labels, in per cent over optimizer steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    if out.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{out} is not a picture that can be written; end it in .png, .svg or .pdf")
    axes = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
    for axis, (tag, title) in zip(axes, PANELS.items(), strict=True):
        for run, label in zip(runs, labels, strict=True):
            steps, values = read_curve(run, tag)
            axis.plot(steps, [100 * v for v in values], label=label, linewidth=1.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("%")
    axes[0].legend(frameon=False, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
