"""The figures of a study's table; accuracy over K."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rmd_dist.report.conditions import conditions
from rmd_dist.report.pictures import COLOURS, GREY, Picture, legend_below, new_figure, plain_axes
from rmd_dist.report.results import Results, dataset_title
from rmd_dist.report.stats import LEVEL, Estimate, estimate
from rmd_dist.report.training import Curves, memorisation_curves, training_curves

HOLLOW: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "alpha": 0.55,
}
"""Of the paper's figures."""


def plots(results: Results) -> list[Picture]:
    """The figures of a table that have something to show."""
    found = [K_curves(results)] if results.spec.layout == "K" else []
    for dataset in results.datasets:
        curves = Curves(results, dataset)
        found += [training_curves(curves), memorisation_curves(curves)]
    return [picture for picture in found if picture is not None]


def K_curves(results: Results) -> Picture | None:
    """Accuracy over K, a panel of each data set and loss, a line of each noise setting."""
    panels = list(dict.fromkeys((row.dataset, row.loss) for row in results.rows))
    if not any(results.values(row, column) for row in results.rows for column in results.columns):
        return None
    at = K_positions([row.K or 0.0 for row in results.rows])
    figure = new_figure(max(6.2, 4.4 * len(panels)), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    has_paper = False
    for axis, (dataset, loss) in zip(axes, panels, strict=True):
        rows = sorted(
            (r for r in results.rows if (r.dataset, r.loss) == (dataset, loss)), key=lambda r: r.K or 0.0
        )
        for number, column in enumerate(results.columns):
            colour = COLOURS[number % len(COLOURS)]
            ours = [(at[row.K or 0.0], estimate(results.values(row, column).values())) for row in rows]
            _draw(axis, [(x, e) for x, e in ours if e is not None], column.label, colour)
            paper = [(at[row.K or 0.0], results.paper(row, column)) for row in rows]
            if points := [(x, y) for x, y in paper if y is not None]:
                axis.plot(*zip(*points, strict=True), color=colour, **HOLLOW)
                has_paper = True
        axis.set_title(f"{dataset_title(dataset)}, {loss.upper()}", fontsize=10.5)
        axis.set_xticks(list(at.values()), labels=[f"{K:g}" for K in at])
        axis.set_xlabel("K, weight of the relation graph (logarithmic; 0 set apart)", fontsize=9)
        if 0.0 in at and len(at) > 1:
            left, right = list(at.values())[:2]
            axis.axvline((left + right) / 2, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        plain_axes(axis)
    axes[0].set_ylabel("test accuracy at the end, %", fontsize=9)
    if has_paper:
        axes[0].plot([], [], label="the paper's", color=GREY, **HOLLOW)
    legend_below(figure, axes)
    hollow = " Hollow: the paper's, at its own scale." if has_paper else ""
    run = " ".join(conditions(results, dataset) for dataset in results.datasets)
    caption = (
        f"Test accuracy over K: mean over seeds, bars: {100 * LEVEL:g} % confidence interval of the mean "
        f"(Student's t; none of a single seed).{hollow} {run}"
    )
    return Picture(f"{results.spec.name}-K", f"Accuracy over K: {results.spec.name}", caption, figure)


def K_positions(values: Sequence[float]) -> dict[float, float]:
    """K -> position on the axis, rising: its decade; 0 stands a little left of the smallest."""
    positive = sorted({K for K in values if K > 0})
    at = {K: math.log10(K) for K in positive}
    if 0.0 not in values:
        return at
    width = at[positive[-1]] - at[positive[0]] if positive else 0.0
    return {0.0: (at[positive[0]] if positive else 0.0) - max(0.5, 0.18 * width)} | at


def _draw(axis: Any, points: Sequence[tuple[float, Estimate]], label: str, colour: str) -> None:
    """A line through the means, with their intervals."""
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
            label=label,
        )
