"""Pictures for TensorBoard: grids of views, heat maps, confusion matrices. Arrays in, uint8 RGB out.

matplotlib is imported inside the functions (it is slow to import), and used without pyplot, which
would keep global state and every figure alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3)"""

GAP = 4  # white pixels between the cells of a grid
HEATMAP_ROWS = 256  # more rows than pixels would only blur
ANNOTATED_CLASSES = 20  # above it numbers and names do not fit the cells


def view_grid(views: Sequence[npt.NDArray[np.uint8]], columns: int = 8, cell: int = 96) -> Image:
    """One row per view, one column per sample: views[v] is (B, H, W, 3) uint8; rows may differ in size.

    The first `columns` samples are shown, enlarged by whole factors without smoothing to about `cell` pixels.
    """
    rows = []
    for view in views:
        factor = max(1, round(cell / view.shape[1]))
        cells = view[:columns].repeat(factor, axis=1).repeat(factor, axis=2)
        padded = np.pad(cells, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(padded), axis=1))
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    grid = np.concatenate(rows, axis=0)
    return np.pad(grid, ((GAP, 0), (GAP, 0), (0, 0)), constant_values=255)


def heatmap(matrix: npt.ArrayLike, *, vmin: float, vmax: float, title: str) -> Image:
    """Heat map of a matrix (R, C) with a colour bar; diverging colours when the range spans 0.

    Of a large matrix the leading HEATMAP_ROWS rows and columns are shown, and the title says so.
    """
    values = np.asarray(matrix, dtype=np.float64)
    rows, columns = values.shape
    if max(rows, columns) > HEATMAP_ROWS:
        values = values[:HEATMAP_ROWS, :HEATMAP_ROWS]
        title = f"{title}\n(first {HEATMAP_ROWS} of {max(rows, columns)} samples)"
    figure, axes = _figure(width=3.9, height=3.3)
    picture = axes.imshow(
        values, vmin=vmin, vmax=vmax, cmap="RdBu_r" if vmin < 0 < vmax else "viridis", interpolation="nearest"
    )
    axes.set_title(title, wrap=True)
    figure.colorbar(picture, ax=axes)
    return _render(figure)


def confusion_matrix(
    counts: npt.ArrayLike, classes: Sequence[str], title: str, column: str = "predicted class"
) -> Image:
    """Confusion matrix (C, C) of counts, rows true: coloured by the share of the true class, in percent.

    Up to ANNOTATED_CLASSES classes are named and their cells numbered.
    """
    values = np.asarray(counts, dtype=np.float64)
    shares = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    small = len(classes) <= ANNOTATED_CLASSES
    size = max(3.2, 0.34 * len(classes) + 1.0) if small else 6.0
    figure, axes = _figure(width=size + 0.6, height=size)
    picture = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    axes.set(xlabel=column, ylabel="true class")
    axes.set_title(title, parse_math=False)
    figure.colorbar(picture, ax=axes, label="% of the true class")
    if small:
        ticks = range(len(classes))
        plain = {"parse_math": False}  # a name may have dollar signs
        axes.set_xticks(ticks, labels=classes, rotation=45, ha="right", rotation_mode="anchor", **plain)
        axes.set_yticks(ticks, labels=classes, **plain)
        for (row, cell), share in np.ndenumerate(shares):
            if values[row, cell]:
                colour = "white" if share > 55 else "black"
                text = f"{share:.0f}" if share >= 0.5 else "<1"
                axes.text(cell, row, text, ha="center", va="center", fontsize=9, color=colour)
    return _render(figure)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches, with one pair of axes, that draws with Agg.

    Small in inches and fine in dots: TensorBoard's cards are 250 to 400 pixels wide, where the text of a
    figure of the usual size cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _render(figure: Figure) -> Image:
    figure.canvas.draw()
    rgba = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined, unused-ignore]
    return np.ascontiguousarray(rgba[..., :3])
