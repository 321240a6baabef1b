"""The figures of a study's table; accuracy over K."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rmd_dist.study.conditions import what_was_run
from rmd_dist.study.folder import Study
from rmd_dist.study.pictures import COLOURS, GREY, Picture, dress, legend_below, new_figure
from rmd_dist.study.places import DATASET_TITLES, Column, Places, Row
from rmd_dist.study.stats import LEVEL, estimate
from rmd_dist.study.training import Curves, memorisation_curves, training_curves

HOLLOW: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "alpha": 0.55,
}
"""Of the paper's figures."""


def plots(study: Study, places: Places) -> list[Picture]:
    """The figures of a table that have something to show."""
    found = [K_curves(study, places)] if places.spec.layout == "K" else []
    for dataset in places.datasets:
        curves = Curves(study, places, dataset)
        found += [training_curves(curves), memorisation_curves(curves)]
    return [picture for picture in found if picture is not None]


def K_curves(study: Study, places: Places) -> Picture | None:
    """Accuracy over K, a panel of each data set and loss, a line of each noise setting."""
    panels = list(dict.fromkeys((row.dataset, row.loss) for row in places.rows))
    shown = [row for row in places.rows if any(places.values(row, column) for column in places.columns)]
    if not shown:
        return None
    at = K_positions([row.K or 0.0 for row in places.rows])
    figure = new_figure(max(6.2, 4.4 * len(panels)), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    has_paper = False
    for axis, (dataset, loss) in zip(axes, panels, strict=True):
        rows = sorted(
            (r for r in places.rows if (r.dataset, r.loss) == (dataset, loss)), key=lambda r: r.K or 0.0
        )
        for number, column in enumerate(places.columns):
            colour = COLOURS[number % len(COLOURS)]
            _K_line(axis, places, rows, column, at, colour)
            has_paper = _paper_points(axis, places, rows, column, at, colour) or has_paper
        axis.set_title(f"{DATASET_TITLES.get(dataset, dataset)}, {loss.upper()}", fontsize=10.5)
        axis.set_xticks(list(at.values()), labels=[f"{K:g}" for K in at])
        axis.set_xlabel("K, weight of the relation graph (logarithmic; 0 set apart)", fontsize=9)
        if 0.0 in at and len(at) > 1:
            left, right = list(at.values())[:2]
            axis.axvline((left + right) / 2, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        dress(axis)
    axes[0].set_ylabel("test accuracy at the end, %", fontsize=9)
    if has_paper:
        axes[0].plot([], [], label="the paper's", color=GREY, **HOLLOW)
    legend_below(figure, axes)
    paper = " Hollow: the paper's, at its own scale." if has_paper else ""
    caption = (
        f"Test accuracy over K: mean over seeds, bars: {100 * LEVEL:g} % confidence interval of the mean "
        f"(Student's t; none of a single seed).{paper} {what_was_run(study, places)}"
    )
    return Picture(f"{places.spec.name}-K", f"Accuracy over K: {places.spec.name}", caption, figure)


def K_positions(values: Sequence[float]) -> dict[float, float]:
    """K -> place on the axis, rising: its decade; 0 stands a little left of the smallest."""
    positive = sorted({K for K in values if K > 0})
    at = {K: math.log10(K) for K in positive}
    if 0.0 not in values:
        return at
    width = at[positive[-1]] - at[positive[0]] if positive else 0.0
    return {0.0: (at[positive[0]] if positive else 0.0) - max(0.5, 0.18 * width)} | at


def _K_line(
    axis: Any, places: Places, rows: Sequence[Row], column: Column, at: Mapping[float, float], colour: str
) -> None:
    found = [(at[row.K or 0.0], estimate(places.values(row, column).values())) for row in rows]
    points = [(x, e) for x, e in found if e is not None]
    if points:
        axis.errorbar(
            [x for x, _ in points],
            [e.mean for _, e in points],
            yerr=[e.margin or 0.0 for _, e in points],
            color=colour,
            marker="o",
            markersize=4.5,
            linewidth=1.8,
            capsize=3,
            elinewidth=1.1,
            label=column.label,
        )


def _paper_points(
    axis: Any, places: Places, rows: Sequence[Row], column: Column, at: Mapping[float, float], colour: str
) -> bool:
    found = [(at[row.K or 0.0], places.paper(row, column)) for row in rows]
    points = [(x, y) for x, y in found if y is not None]
    if points:
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, **HOLLOW)
    return bool(points)
