"""The tables of a report as plain rows and columns, the same for Markdown, HTML and CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rmd_dist.report.results import REFERENCES, Column, Results, Row, column_of, dataset_title
from rmd_dist.report.stats import LEVEL, SMALLEST_GAP, Estimate, estimate, paired
from rmd_dist.study.cells import CLEAN
from rmd_dist.study.folder import KINDS

NOTHING = "–"  # noqa: RUF001 - a dash of the width of a digit
BESIDE = "Beside or below it the paper's (ResNet-18, all training images, 240 epochs)."
REFERENCES_NOTE = (
    "In italics references, no students: classifiers of the teacher's features of the same images with the "
    "same given labels. Logistic regression, its L2 penalty by the likelihood of held-out given labels; the "
    "vote of the 200 nearest neighbours; logistic regression through an estimated noise matrix T."
)
KIND_TITLES = {
    "last": "last",
    "selected": "selected on noisy validation labels",
    "best_on_test": "best on test (oracle)",
}


@dataclass(frozen=True)
class TableCell:
    """Our figure, and beside it the paper's."""

    main: str
    interval: str = ""
    seeds: str = ""
    """How many seeds the figure is of."""
    paper: str = ""
    partial: bool = False
    """Seeds are missing."""
    significant: bool = False
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
    rows: list[list[TableCell]]
    stubs: int
    """How many columns on the left name the row."""
    notes: list[str] = field(default_factory=list)
    blocks: frozenset[int] = frozenset()
    """Rows that begin another data set, or the references of one."""
    references: frozenset[int] = frozenset()
    """Rows of no student, set apart from the methods."""
    long: bool = False
    """A row for each noise setting of each method."""


def grids(results: Results) -> list[Grid]:
    """What a report prints of a table; grids without a figure to show are left out."""
    made = [accuracy_grid(results), gain_grid(results), gap_grid(results), kinds_grid(results)]
    return [grid for grid in made if grid is not None and grid.rows]


def accuracy_grid(results: Results) -> Grid:
    """Test accuracy at the end of training, in the paper's layout."""

    def cell(row: Row, column: Column) -> TableCell:
        entries = results.entries(row, column)
        if not entries:
            return TableCell(NOTHING)
        found = estimate(results.values(row, column).values())
        return _cell(found, len(entries), mean_sd, results.paper(row, column))

    notes = [
        "Test accuracy in %, at the end of training: mean ± standard deviation over seeds (their number)."
    ]
    if any(results.paper(row, column) is not None for row in results.rows for column in results.columns):
        notes[0] += f" {BESIDE}"
    for dataset in results.datasets:
        if entries := results.clean_entries(dataset):
            text = _cell(estimate(results.clean(dataset).values()), len(entries), mean_sd).text
            notes.append(f"CE on clean labels, {dataset_title(dataset)}: {text}.")
    return _with_references(_grid("Accuracy", results, results.rows, cell, notes), results)


def _with_references(grid: Grid, results: Results) -> Grid:
    """`grid`, which has all rows, with those of the references below each data set's methods."""
    body: list[list[TableCell]] = []
    blocks, references = set(), set()
    for dataset in results.datasets:
        own = [line for row, line in zip(results.rows, grid.rows, strict=True) if row.dataset == dataset]
        if body:
            blocks.add(len(body))
        body += own
        if results.reference_places(dataset):
            blocks.add(len(body))
            references |= set(range(len(body), len(body) + len(REFERENCES)))
            body += [_reference_row(results, dataset, name) for name in REFERENCES]
    if not references:
        return grid
    notes = [*grid.notes, REFERENCES_NOTE]
    return replace(grid, rows=body, notes=notes, blocks=frozenset(blocks), references=frozenset(references))


def _reference_row(results: Results, dataset: str, name: str) -> list[TableCell]:
    stub = [*[TableCell("")] * (len(results.datasets) > 1), TableCell(name), TableCell(NOTHING)]
    for column in results.columns:
        wanted = len(results.reference_places(dataset, column))
        found = estimate(results.reference(name, dataset, column).values())
        stub.append(_cell(found, wanted, mean_sd) if wanted else TableCell(NOTHING))
    return stub


def gain_grid(results: Results) -> Grid | None:
    """What each method adds to its loss alone, paired by seed."""
    rows = [row for row in results.rows if results.baseline(row) is not None]

    def cell(row: Row, column: Column) -> TableCell:
        base = results.baseline(row)
        entries = results.entries(row, column)
        if base is None or not entries:
            return TableCell(NOTHING)
        found = paired(results.values(row, column), results.values(base, column))
        pair = results.paper(row, column), results.paper(base, column)
        gain = pair[0] - pair[1] if pair[0] is not None and pair[1] is not None else None
        return _cell(found, len(entries), signed_mean, gain, interval=True)

    note = (
        "Percentage points of test accuracy over the same loss alone, paired by seed: mean "
        f"[{100 * LEVEL:g} % confidence interval, Student's t] (seeds); bold where the interval leaves "
        "out 0. A single seed has none."
    )
    return _grid("Gain", results, rows, cell, [note]) if rows else None


def gap_grid(results: Results) -> Grid | None:
    """The share of the damage of wrong labels that each method undoes."""
    rows = [row for row in results.rows if not results.is_ce(row)]
    at = [(row.dataset, column) for row in rows for column in results.columns]
    if not any(
        results.clean_entries(dataset) and results.ce_entries(dataset, column) for dataset, column in at
    ):
        return None
    note = (
        "(accuracy - CE on noisy labels) / (CE on clean labels - CE on noisy labels) of each seed, in %: "
        "mean ± standard deviation (seeds). 0: no better than CE, 100: as good as clean labels. Undefined, "
        f"and left out of the mean, where wrong labels cost CE less than {SMALLEST_GAP:g} percentage point."
    )
    if len(rows) == len(results.rows):
        note += " The runs of CE are those of another table of this study, under the conditions of this one."

    def cell(row: Row, column: Column) -> TableCell:
        entries = results.entries(row, column)
        if not (entries and results.clean_entries(row.dataset) and results.ce_entries(row.dataset, column)):
            return TableCell(NOTHING)
        shares = results.shares(row, column).values()
        defined = [100 * share for share in shares if share is not None]
        if shares and not defined:
            return TableCell("undefined")
        return _cell(estimate(defined), len(entries), whole_mean_sd)

    return _grid("Share of the noise gap undone", results, rows, cell, [note])


def kinds_grid(results: Results) -> Grid | None:
    """Last, selected and best accuracy side by side, where there is more than the last."""
    at = [(row, c) for row in results.rows for c in results.columns if results.entries(row, c)]
    kinds = [kind for kind in KIND_TITLES if any(results.values(row, c, kind) for row, c in at)]
    if len(kinds) < 2:
        return None
    rows = []
    for row, column in at:
        found = [estimate(results.values(row, column, kind).values()) for kind in kinds]
        shown = [_cell(e, len(results.entries(row, column)), mean_sd) for e in found]
        rows.append([*_stub(results, row), TableCell(column.label), *shown])
    columns = [*_stub_titles(results), "noise", *(KIND_TITLES[kind] for kind in kinds)]
    notes = [
        "Test accuracy in %. The oracle reads the test set: it is no result, but what stopping could gain."
    ]
    return Grid("Last, selected and best", columns, rows, len(columns) - len(kinds), notes, long=True)


def csv_rows(results: Results) -> list[dict[str, str]]:
    """A row of each run that the table shows, by column of the CSV file; accuracies in per cent."""
    rows = []
    for entry in results.table.entries:
        row, column = results.row_of(entry), column_of(entry)
        status = results.study.status[entry.key]
        figures: dict[str, float | None] = {}
        for kind in KINDS:
            accuracy = results.study.accuracy(entry.key, kind)
            figures[kind] = None if accuracy is None else 100 * accuracy
        clean = entry.method == CLEAN
        figures["gap_share"] = None if clean else results.shares(row, column).get(entry.seed)
        figures["steps"] = results.study.cells[entry.key].steps
        figures["seconds"] = status.results.get("seconds")
        figures["paper"] = None if clean else results.paper(row, column)
        about = {
            "table": results.spec.name,
            "dataset": entry.dataset,
            "loss": entry.loss,
            "method": f"{entry.loss.upper()}, {CLEAN}" if clean else entry.label,
            "noise": entry.noise,
            "rate": f"{entry.rate:g}",
            "K": f"{entry.K:g}",
            "seed": str(entry.seed),
            "cell": entry.key,
            "state": status.state,
            "why": status.why or "",
        }
        rows.append(about | {name: _number(value) for name, value in figures.items()})
    return rows + [dict.fromkeys(rows[0], "") | row for row in _reference_csv_rows(results)]


def _reference_csv_rows(results: Results) -> list[dict[str, str]]:
    """What the CSV file has of each reference at each place: no loss, no K, no run."""
    places = [place for dataset in results.datasets for place in results.reference_places(dataset)]
    return [
        {
            "table": place.table,
            "dataset": place.dataset,
            "method": name,
            "noise": place.column.noise,
            "rate": f"{place.column.rate:g}",
            "seed": str(place.seed),
            "state": "reference",
            "last": _number(results.reference(name, place.dataset, place.column).get(place.seed)),
        }
        for name in REFERENCES
        for place in places
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def mean_sd(e: Estimate) -> str:
    """`62.10 ± 0.40`."""
    return f"{e.mean:.2f}" if e.sd is None else f"{e.mean:.2f} ± {e.sd:.2f}"


def whole_mean_sd(e: Estimate) -> str:
    """`36 ± 5`."""
    mean = round(e.mean)  # an integer has no -0
    return f"{mean}" if e.sd is None else f"{mean} ± {e.sd:.0f}"


def signed_mean(e: Estimate) -> str:
    """`+3.20`."""
    return f"{e.mean:+.2f}"


def _cell(
    found: Estimate | None,
    wanted: int,
    show: Callable[[Estimate], str],
    paper: float | None = None,
    *,
    interval: bool = False,
) -> TableCell:
    """What the seeds that are in say, out of `wanted`; their number says so if some are missing."""
    theirs = "" if paper is None else f"{paper:+.2f}" if interval else f"{paper:.2f}"
    if found is None:
        return TableCell(NOTHING, seeds=f"(0 of {wanted})", paper=theirs, partial=True)
    missing = found.n < wanted
    seeds = f"({found.n} of {wanted})" if missing else f"({found.n})"
    within = found.interval if interval else None
    around = f"[{within[0]:+.2f}, {within[1]:+.2f}]" if within else ""
    significant = within is not None and not within[0] <= 0 <= within[1]
    return TableCell(show(found), around, seeds, theirs, missing, significant)


def _grid(
    title: str,
    results: Results,
    rows: Sequence[Row],
    cell: Callable[[Row, Column], TableCell],
    notes: list[str],
) -> Grid:
    """Rows of a table by its noise settings; a data set is named in its first row."""
    stubs = _stub_titles(results)
    body: list[list[TableCell]] = []
    blocks = []
    for previous, row in zip([None, *rows[:-1]], rows, strict=True):
        stub = _stub(results, row)
        if previous is not None and previous.dataset != row.dataset:
            blocks.append(len(body))
        elif previous is not None and len(results.datasets) > 1:
            stub[0] = TableCell("")
        body.append([*stub, *(cell(row, column) for column in results.columns)])
    columns = [*stubs, *(column.label for column in results.columns)]
    return Grid(title, columns, body, len(stubs), notes, frozenset(blocks))


def _stub_titles(results: Results) -> list[str]:
    """A single data set is named above the table, not in it."""
    several = len(results.datasets) > 1
    return ["data set"] * several + ["loss" if results.spec.layout == "K" else "method", "K"]


def _stub(results: Results, row: Row) -> list[TableCell]:
    values = results.K_of(row)
    K = f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    label = row.label
    if results.spec.layout == "K":
        same = [r for r in results.rows if (r.dataset, r.loss, r.K) == (row.dataset, row.loss, row.K)]
        label = row.label if len(same) > 1 else row.loss.upper()
    dataset = [TableCell(dataset_title(row.dataset))] * (len(results.datasets) > 1)
    return [*dataset, TableCell(label), TableCell(K)]
