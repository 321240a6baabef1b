"""The tables of a report as plain rows and columns, the same for Markdown, HTML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rmd_dist.study.folder import KINDS
from rmd_dist.study.places import DATASET_TITLES, Column, Places, Row
from rmd_dist.study.stats import LEVEL, SMALLEST_GAP, Estimate, estimate, paired

NOTHING = "–"  # noqa: RUF001 - a dash of the width of a digit
BESIDE = "Beside or below it the paper's (ResNet-18, all training images, 240 epochs)."
KIND_TITLES = {
    "last": "last",
    "selected": "selected on noisy validation labels",
    "best_on_test": "best on test (oracle)",
}


@dataclass(frozen=True)
class Cell:
    """A place of a grid: our figure, and beside it the paper's."""

    main: str
    interval: str = ""
    seeds: str = ""
    """How many seeds the figure is of."""
    paper: str = ""
    partial: bool = False
    """Seeds are missing."""
    clear: bool = False
    """The interval leaves out 0."""

    @property
    def text(self) -> str:
        """Our figure in one line."""
        return " ".join(part for part in (self.main, self.interval, self.seeds) if part)


@dataclass
class Grid:
    """A table to print."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    stubs: int
    """How many columns on the left name the row."""
    notes: list[str] = field(default_factory=list)
    blocks: frozenset[int] = frozenset()
    """Rows that begin another data set."""
    long: bool = False
    """A row for each place rather than for each method."""


def grids(places: Places) -> list[Grid]:
    """What a report prints of a table; grids without a figure to show are left out."""
    made = [accuracy_grid(places), gain_grid(places), gap_grid(places), kinds_grid(places)]
    return [grid for grid in made if grid is not None and grid.rows]


def accuracy_grid(places: Places) -> Grid:
    """Test accuracy at the end of training, in the paper's layout."""

    def cell(row: Row, column: Column) -> Cell:
        entries = places.entries(row, column)
        if not entries:
            return Cell(NOTHING)
        found = estimate(places.values(row, column).values())
        return _cell(found, len(entries), spread, places.paper(row, column))

    notes = [
        "Test accuracy in %, at the end of training: mean ± standard deviation over seeds (their number)."
    ]
    if any(places.paper(row, column) is not None for row in places.rows for column in places.columns):
        notes[0] += f" {BESIDE}"
    for dataset in places.datasets:
        if entries := places.clean_entries(dataset):
            text = _cell(estimate(places.clean(dataset).values()), len(entries), spread).text
            notes.append(f"CE on clean labels, {DATASET_TITLES.get(dataset, dataset)}: {text}.")
    return _grid("Accuracy", places, places.rows, cell, notes)


def gain_grid(places: Places) -> Grid | None:
    """What each method adds to its loss alone, paired by seed."""
    rows = [row for row in places.rows if places.baseline(row) is not None]

    def cell(row: Row, column: Column) -> Cell:
        base = places.baseline(row)
        entries = places.entries(row, column)
        if base is None or not entries:
            return Cell(NOTHING)
        found = paired(places.values(row, column), places.values(base, column))
        pair = places.paper(row, column), places.paper(base, column)
        gain = pair[0] - pair[1] if pair[0] is not None and pair[1] is not None else None
        return _cell(found, len(entries), gained, gain, interval=True)

    note = (
        "Percentage points of test accuracy over the same loss alone, paired by seed: mean "
        f"[{100 * LEVEL:g} % confidence interval, Student's t] (seeds); bold where the interval leaves "
        "out 0. A single seed has none."
    )
    return _grid("Gain", places, rows, cell, [note]) if rows else None


def gap_grid(places: Places) -> Grid | None:
    """The share of the damage of wrong labels that each method undoes."""
    rows = [row for row in places.rows if not places.is_ce(row)]
    at = [(row.dataset, column) for row in rows for column in places.columns]
    if not any(
        places.clean_entries(dataset) and places.ce_entries(dataset, column) for dataset, column in at
    ):
        return None
    note = (
        "(accuracy - CE on noisy labels) / (CE on clean labels - CE on noisy labels) of each seed, in %: "
        "mean ± standard deviation (seeds). 0: no better than CE, 100: as good as clean labels. Undefined, "
        f"and left out of the mean, where wrong labels cost CE less than {SMALLEST_GAP:g} percentage point."
    )
    if len(rows) == len(places.rows):
        note += " The runs of CE are those of another table of this study, under the conditions of this one."

    def cell(row: Row, column: Column) -> Cell:
        entries = places.entries(row, column)
        if not (entries and places.clean_entries(row.dataset) and places.ce_entries(row.dataset, column)):
            return Cell(NOTHING)
        shares = places.shares(row, column)
        if not shares and places.has_gap(row, column):
            return Cell("undefined")
        return _cell(estimate(100 * share for share in shares.values()), len(entries), rounded)

    return _grid("Share of the noise gap undone", places, rows, cell, [note])


def kinds_grid(places: Places) -> Grid | None:
    """Last, selected and best accuracy side by side, where there is more than the last."""
    rows: list[list[Cell]] = []
    present = {
        kind for kind in KINDS for r in places.rows for c in places.columns if places.values(r, c, kind)
    }
    kinds = [kind for kind in ("last", "selected", "best_on_test") if kind in present]
    if len(kinds) < 2:
        return None
    for row in places.rows:
        for column in places.columns:
            if entries := places.entries(row, column):
                found = [estimate(places.values(row, column, kind).values()) for kind in kinds]
                shown = [_cell(e, len(entries), spread) for e in found]
                rows.append([*_stub(places, row), Cell(column.label), *shown])
    columns = [*_stub_titles(places), "noise", *(KIND_TITLES[kind] for kind in kinds)]
    notes = [
        "Test accuracy in %. The oracle reads the test set: it is no result, but what stopping could gain."
    ]
    return Grid("Last, selected and best", columns, rows, len(columns) - len(kinds), notes, long=True)


def spread(e: Estimate) -> str:
    """`62.10 ± 0.40`."""
    return f"{e.mean:.2f}" if e.sd is None else f"{e.mean:.2f} ± {e.sd:.2f}"


def rounded(e: Estimate) -> str:
    """`36 ± 5`."""
    mean = round(e.mean)  # an integer has no -0
    return f"{mean}" if e.sd is None else f"{mean} ± {e.sd:.0f}"


def gained(e: Estimate) -> str:
    """`+3.20`."""
    return f"{e.mean:+.2f}"


def _cell(
    found: Estimate | None,
    wanted: int,
    show: Callable[[Estimate], str],
    paper: float | None = None,
    *,
    interval: bool = False,
) -> Cell:
    """What the seeds that are in say, out of `wanted`; their number says so if some are missing."""
    theirs = "" if paper is None else f"{paper:+.2f}" if interval else f"{paper:.2f}"
    if found is None:
        return Cell(NOTHING, seeds=f"(0 of {wanted})", paper=theirs, partial=True)
    missing = found.n < wanted
    seeds = f"({found.n} of {wanted})" if missing else f"({found.n})"
    within = found.interval if interval else None
    around = f"[{within[0]:+.2f}, {within[1]:+.2f}]" if within else ""
    clear = within is not None and not within[0] <= 0 <= within[1]
    return Cell(show(found), around, seeds, theirs, missing, clear)


def _grid(
    title: str,
    places: Places,
    rows: Sequence[Row],
    cell: Callable[[Row, Column], Cell],
    notes: list[str],
) -> Grid:
    """Rows of a table by its noise settings; a data set is named in its first row."""
    stubs = _stub_titles(places)
    body: list[list[Cell]] = []
    blocks = []
    for previous, row in zip([None, *rows[:-1]], rows, strict=True):
        stub = _stub(places, row)
        if previous is not None and previous.dataset != row.dataset:
            blocks.append(len(body))
        elif previous is not None and len(places.datasets) > 1:
            stub[0] = Cell("")
        body.append([*stub, *(cell(row, column) for column in places.columns)])
    columns = [*stubs, *(column.label for column in places.columns)]
    return Grid(title, columns, body, len(stubs), notes, frozenset(blocks))


def _stub_titles(places: Places) -> list[str]:
    """A single data set is named above the table, not in it."""
    several = len(places.datasets) > 1
    return ["data set"] * several + ["loss" if places.spec.layout == "K" else "method", "K"]


def _stub(places: Places, row: Row) -> list[Cell]:
    values = places.K_of(row)
    K = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    label = row.label
    if places.spec.layout == "K":
        same = [r for r in places.rows if (r.dataset, r.loss, r.K) == (row.dataset, row.loss, row.K)]
        label = row.label if len(same) > 1 else row.loss.upper()
    dataset = [Cell(DATASET_TITLES.get(row.dataset, row.dataset))] * (len(places.datasets) > 1)
    return [*dataset, Cell(label), Cell(K)]
