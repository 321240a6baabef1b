"""Curves over training: test accuracy, and what is made of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmd_dist.report.conditions import conditions
from rmd_dist.report.pictures import COLOURS, GREY, Picture, legend_below, new_figure, plain_axes
from rmd_dist.report.results import Column, Results, Row, dataset_title
from rmd_dist.runs.history import read_records
from rmd_dist.study.cells import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""(epochs, values in per cent), each (T,)"""

DASHES = ("--", "-", ":", "-.")
"""Of methods, the baseline's first."""
STROKES = ("-", "--", ":", "-.")
"""Of losses, where the colour says K."""

TEST = "test/accuracy"
MEMORISATION = {
    "memorisation/wrong_memorised": "wrongly labelled: predicted as labelled",
    "memorisation/wrong_recovered": "wrongly labelled: predicted truly",
    "memorisation/clean_fitted": "rightly labelled: predicted as labelled",
}


class Curves:
    """What the finished runs of a table and data set recorded while they trained, over epochs."""

    def __init__(self, results: Results, dataset: str) -> None:
        self.study, self.results, self.dataset = results.study, results, dataset
        self.rows = [row for row in results.rows if row.dataset == dataset]
        self._read: dict[str, dict[str, Curve]] = {}

    def of(self, entries: Sequence[Entry], tag: str) -> list[Curve]:
        """A scalar's curve in each of the finished runs that recorded it."""
        read = [self._run(entry.key) for entry in entries if self.study.finished(entry.key)]
        return [curves[tag] for curves in read if tag in curves]

    def columns(self, tag: str) -> list[Column]:
        """Noise settings in which some run recorded a scalar."""
        at = self.results.entries
        return [c for c in self.results.columns if any(self.of(at(row, c), tag) for row in self.rows)]

    def _run(self, key: str) -> dict[str, Curve]:
        if key not in self._read:
            cell = self.study.cells[key]
            found: dict[str, tuple[list[float], list[float]]] = {}
            for step, values in read_records(self.study.run(key) / "metrics.jsonl"):
                for tag in (TEST, *MEMORISATION):
                    if tag in values:
                        epochs, figures = found.setdefault(tag, ([], []))
                        epochs.append(step * cell.config.optim.epochs / max(cell.steps, 1))
                        figures.append(100 * values[tag])
            self._read[key] = {tag: (np.array(x), np.array(y)) for tag, (x, y) in found.items()}
        return self._read[key]


def training_curves(curves: Curves) -> Picture | None:
    """Test accuracy over epochs, a panel of each noise setting."""
    columns = curves.columns(TEST)
    if not columns:
        return None
    across = 2 if len(columns) == 4 else min(3, len(columns))
    down = -(-len(columns) // across)
    figure = new_figure(max(6.2, 3.7 * across), 0.9 + 2.9 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis in panels.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(panels.flat, columns, strict=False):
        clean = curves.of(curves.results.clean_entries(curves.dataset), TEST)
        _band(axis, clean, "CE, clean labels", color=GREY, linestyle="-")
        _bands(axis, curves, column, TEST)
        axis.set_title(column.label, fontsize=10.5)
    for axis in panels[:, 0]:
        axis.set_ylabel("test accuracy, %", fontsize=9)
    legend_below(figure, panels.flat)
    caption = (
        "Accuracy on the clean test images while training: mean over the finished seeds, shaded from the "
        "lowest to the highest seed."
    )
    return _picture(curves, "training", caption, figure)


def memorisation_curves(curves: Curves) -> Picture | None:
    """What is made of the training samples, a row of panels of each noise setting."""
    columns = curves.columns(next(iter(MEMORISATION)))
    if not columns:
        return None
    figure = new_figure(11.4, 0.9 + 2.8 * len(columns))
    panels = figure.subplots(len(columns), len(MEMORISATION), squeeze=False, sharex=True, sharey=True)
    for line, column in zip(panels, columns, strict=True):
        for axis, (tag, title) in zip(line, MEMORISATION.items(), strict=True):
            _bands(axis, curves, column, tag)
            axis.set_title(f"{column.label}\n{title}", fontsize=9.5)
            axis.set_ylim(-2, 102)
        line[0].set_ylabel("share of these samples, %", fontsize=9)
    legend_below(figure, panels.flat)
    caption = (
        "What the model makes of its training samples: of those labelled wrongly the share that it predicts "
        "as labelled (memorised) and the share that it predicts truly; of those labelled rightly the share "
        "that it predicts as labelled. Mean over the finished seeds, shaded from the lowest to the highest."
    )
    return _picture(curves, "memorisation", caption, figure)


def _picture(curves: Curves, subject: str, caption: str, figure: Figure) -> Picture:
    results, dataset = curves.results, curves.dataset
    title = f"{subject.capitalize()} on {dataset_title(dataset)}: {results.spec.name}"
    name = f"{results.spec.name}-{dataset}-{subject}"
    return Picture(name, title, f"{caption} {conditions(results, dataset)}", figure)


def _bands(axis: Any, curves: Curves, column: Column, tag: str) -> None:
    """A scalar over epochs, of each row."""
    results = curves.results
    for row in curves.rows:
        label = f"{row.loss.upper()}, K = {row.K:g}" if results.spec.layout == "K" else row.label
        _band(axis, curves.of(results.entries(row, column), tag), label, **_style(results, row))
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_xlim(left=0)
    axis.xaxis.set_tick_params(labelbottom=True)
    axis.locator_params(axis="x", integer=True)
    plain_axes(axis)


def _band(axis: Any, curves: Sequence[Curve], label: str, **style: Any) -> None:
    """Mean over seeds, and the range between them, where all seeds were measured."""
    if not curves:
        return
    epochs = curves[0][0]
    for other, _ in curves[1:]:
        epochs = np.intersect1d(epochs, other)
    values = np.stack([y[np.isin(x, epochs)][: len(epochs)] for x, y in curves])
    axis.plot(epochs, values.mean(axis=0), label=label, linewidth=1.7, **style)
    if len(values) > 1:
        colour = style["color"]
        axis.fill_between(
            epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )


def _style(results: Results, row: Row) -> dict[str, Any]:
    """A colour of each loss (of one loss: of each method), dashes of each method; or a colour of each K."""
    losses, methods = list(results.spec.losses), list(results.spec.methods)
    if results.spec.layout == "K":
        return {
            "color": _K_colour(results, row.K or 0.0),
            "linestyle": STROKES[losses.index(row.loss) % len(STROKES)],
        }
    method = methods.index(row.method)
    colour = method if len(losses) == 1 else losses.index(row.loss)
    return {"color": COLOURS[colour % len(COLOURS)], "linestyle": DASHES[method % len(DASHES)]}


def _K_colour(results: Results, K: float) -> Any:
    """From dark to light with rising K; none is black."""
    from matplotlib import colormaps

    values = sorted({row.K for row in results.rows if row.K})
    return colormaps["plasma"](0.1 + 0.75 * values.index(K) / max(1, len(values) - 1)) if K else "black"
