"""Every cell by itself: what is unfinished, and the rows of a report's CSV file."""

from __future__ import annotations

from collections.abc import Sequence

from rmd_dist.study.cells import CLEAN, Entry
from rmd_dist.study.folder import KINDS, Study
from rmd_dist.study.places import Places, column_of


def unfinished(study: Study, keys: Sequence[str] | None = None) -> list[tuple[str, str, str]]:
    """(key, state, why) of each cell that has no result yet, of `keys` or of the whole study."""
    found = []
    for key in study.cells if keys is None else dict.fromkeys(keys):
        status = study.status.get(key)
        if status is None:
            found.append((key, "not entered", ""))
        elif status.state != "finished":
            found.append((key, status.state, status.why or ""))
    return found


CSV_COLUMNS = (
    *("table", "dataset", "loss", "method", "noise", "rate", "K", "seed", "cell", "state", "why"),
    *("last", "selected", "best_on_test", "gap_share", "steps", "seconds", "paper"),
)


def csv_rows(study: Study, places: Places) -> list[list[str]]:
    """One row of each place and seed, by CSV_COLUMNS; accuracies in per cent."""
    rows = []
    for entry in places.table.entries:
        row, column = places.row_of(entry), column_of(entry)
        share = paper = None
        if entry.method != CLEAN:
            share, paper = places.shares(row, column).get(entry.seed), places.paper(row, column)
        status = study.status.get(entry.key)
        accuracies = [study.accuracy(entry.key, kind) for kind in KINDS]
        rows.append(
            [
                *(places.spec.name, entry.dataset, entry.loss, _method(entry), entry.noise),
                *(f"{entry.rate:g}", f"{entry.K:g}", str(entry.seed), entry.key),
                *((status.state, status.why or "") if status else ("not entered", "")),
                *(_number(None if accuracy is None else 100 * accuracy) for accuracy in accuracies),
                *(_number(share), str(study.cells[entry.key].steps)),
                *(_number(status.results.get("seconds") if status else None), _number(paper)),
            ]
        )
    return rows


def _method(entry: Entry) -> str:
    return f"{entry.loss.upper()}, {CLEAN}" if entry.method == CLEAN else entry.label


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")
