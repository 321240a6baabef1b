"""Curves over training: test accuracy, and what is made of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmd_dist.history import read_records
from rmd_dist.study.cells import Entry
from rmd_dist.study.conditions import what_was_run
from rmd_dist.study.folder import Study
from rmd_dist.study.pictures import COLOURS, GREY, Picture, dress, legend_below, new_figure
from rmd_dist.study.places import DATASET_TITLES, Places, Row

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

    def __init__(self, study: Study, places: Places, dataset: str) -> None:
        self.study, self.places, self.dataset = study, places, dataset
        self.rows = [row for row in places.rows if row.dataset == dataset]
        self._read: dict[str, dict[str, Curve]] = {}

    def of(self, entries: Sequence[Entry], tag: str) -> list[Curve]:
        """A scalar's curve in each of the finished runs that recorded it."""
        read = [self._run(entry.key) for entry in entries if self.study.finished(entry.key)]
        return [curves[tag] for curves in read if tag in curves]

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
    places = curves.places
    columns = [c for c in places.columns if any(curves.of(places.entries(r, c), TEST) for r in curves.rows)]
    if not columns:
        return None
    across = 2 if len(columns) == 4 else min(3, len(columns))
    down = -(-len(columns) // across)
    figure = new_figure(max(6.2, 3.7 * across), 0.9 + 2.9 * down)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axis in panels.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(panels.flat, columns, strict=False):
        clean = curves.of(places.clean_entries(curves.dataset), TEST)
        _band(axis, clean, "CE, clean labels", color=GREY, linestyle="-")
        for row in curves.rows:
            _band(
                axis, curves.of(places.entries(row, column), TEST), _name(places, row), **_style(places, row)
            )
        axis.set_title(column.label, fontsize=10.5)
        _over_epochs(axis)
    for axis in panels[:, 0]:
        axis.set_ylabel("test accuracy, %", fontsize=9)
    legend_below(figure, panels.flat)
    title = DATASET_TITLES.get(curves.dataset, curves.dataset)
    caption = (
        "Accuracy on the clean test images while training: mean over the finished seeds, shaded from the "
        f"lowest to the highest seed. {what_was_run(curves.study, places, curves.dataset)}"
    )
    name = f"{places.spec.name}-{curves.dataset}-training"
    return Picture(name, f"Training on {title}: {places.spec.name}", caption, figure)


def memorisation_curves(curves: Curves) -> Picture | None:
    """What is made of the training samples, a row of panels of each noise setting."""
    places, wrong = curves.places, next(iter(MEMORISATION))
    columns = [c for c in places.columns if any(curves.of(places.entries(r, c), wrong) for r in curves.rows)]
    if not columns:
        return None
    figure = new_figure(11.4, 0.9 + 2.8 * len(columns))
    panels = figure.subplots(len(columns), len(MEMORISATION), squeeze=False, sharex=True, sharey=True)
    for line, column in zip(panels, columns, strict=True):
        for axis, (tag, title) in zip(line, MEMORISATION.items(), strict=True):
            for row in curves.rows:
                found = curves.of(places.entries(row, column), tag)
                _band(axis, found, _name(places, row), **_style(places, row))
            axis.set_title(f"{column.label}\n{title}", fontsize=9.5)
            axis.set_ylim(-2, 102)
            _over_epochs(axis)
        line[0].set_ylabel("share of these samples, %", fontsize=9)
    legend_below(figure, panels.flat)
    title = DATASET_TITLES.get(curves.dataset, curves.dataset)
    caption = (
        "What the model makes of its training samples: of those labelled wrongly the share that it predicts "
        "as labelled (memorised) and the share that it predicts truly; of those labelled rightly the share "
        "that it predicts as labelled. Mean over the finished seeds, shaded from the lowest to the highest. "
        f"{what_was_run(curves.study, places, curves.dataset)}"
    )
    name = f"{places.spec.name}-{curves.dataset}-memorisation"
    return Picture(name, f"Memorisation on {title}: {places.spec.name}", caption, figure)


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


def _over_epochs(axis: Any) -> None:
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_xlim(left=0)
    axis.xaxis.set_tick_params(labelbottom=True)
    axis.locator_params(axis="x", integer=True)
    dress(axis)


def _style(places: Places, row: Row) -> dict[str, Any]:
    """A colour of each loss (of one loss: of each method), dashes of each method; or a colour of each K."""
    losses, methods = list(places.spec.losses), list(places.spec.methods)
    if places.spec.layout == "K":
        return {
            "color": _K_colour(places, row.K or 0.0),
            "linestyle": STROKES[losses.index(row.loss) % len(STROKES)],
        }
    method = methods.index(row.method)
    colour = method if len(losses) == 1 else losses.index(row.loss)
    return {"color": COLOURS[colour % len(COLOURS)], "linestyle": DASHES[method % len(DASHES)]}


def _K_colour(places: Places, K: float) -> Any:
    """From dark to light with rising K; none is black."""
    from matplotlib import colormaps

    values = sorted({row.K for row in places.rows if row.K})
    return colormaps["plasma"](0.1 + 0.75 * values.index(K) / max(1, len(values) - 1)) if K else "black"


def _name(places: Places, row: Row) -> str:
    return f"{row.loss.upper()}, K = {row.K:g}" if places.spec.layout == "K" else row.label
