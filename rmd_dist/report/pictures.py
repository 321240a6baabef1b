"""A figure of a report: drawn once, written as PNG beside Markdown and into the HTML page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmd_dist.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6fb4", "#d4571e", "#2a9050", "#8a4fb0", "#b0821b", "#c2388a", "#4a5560", "#18a0a8")
GREY = "#8c949c"
PIXELS = 110  # of an inch, at most, in the page
DOTS = 130  # per inch, of PNG files
LARGEST_SVG = 1_000_000  # bytes; beyond, PNG is smaller and quicker to show
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "rmd-dist",
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Picture:
    """A figure and its words."""

    name: str
    """Of the file, without its ending."""
    title: str
    caption: str
    """What is drawn, what was run. Also read out where the picture cannot be seen."""
    figure: Figure
    raster: bool = False
    """Thousands of points: PNG in the page too."""

    def png(self) -> bytes:
        """The picture as a PNG file."""
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png", dpi=DOTS, metadata={"Software": None})
        return stream.getvalue()

    def write(self, folder: Path) -> Path:
        """Write NAME.png into `folder`."""
        path = folder / f"{self.name}.png"
        with atomic_path(path) as temporary:
            temporary.write_bytes(self.png())
        return path

    @property
    def width(self) -> int | None:
        """Pixels of the page that it fills at most; None: as many as there are."""
        return None if self.raster else round(PIXELS * self.figure.get_figwidth())

    def data_url(self) -> str:
        """The picture as the `src` of an <img>: SVG, or PNG of thousands of points."""
        svg = b"" if self.raster else self._svg().encode()
        kind, data = ("png", self.png()) if self.raster or len(svg) > LARGEST_SVG else ("svg+xml", svg)
        return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

    def _svg(self) -> str:
        from matplotlib import rc_context

        stream = io.StringIO()
        with rc_context(STYLE):
            self.figure.savefig(stream, format="svg", metadata={"Date": None})
        # A hundredth of a point is finer than any screen.
        return re.sub(r"(?<= )(-?\d+\.\d\d)\d+", r"\1", stream.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, without pyplot, which would keep it alive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axis: Any) -> None:
    """Two axes without a frame, and a faint grid."""
    axis.grid(color="#e3e7ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)


def legend_below(figure: Any, axes: Any) -> None:
    """One legend for all panels, below them."""
    lines: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        lines |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in lines}
    wide = max(1, int(figure.get_figwidth() // 2.3))
    columns = min(len(lines), wide)
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
        markerscale=1.4,
    )
