"""What the runs of a study's table have found, by its rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rmd_dist.config.convert import flatten
from rmd_dist.report.paper import K_TABLES, paper_accuracy
from rmd_dist.report.stats import gap_share
from rmd_dist.study.cells import CLEAN, Entry, Table
from rmd_dist.study.folder import Study


def dataset_title(dataset: str) -> str:
    """A data set's name as the paper writes it."""
    return {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}.get(dataset, dataset)


@dataclass(frozen=True)
class Row:
    """A method on a data set; in a table of K, one value of K."""

    dataset: str
    loss: str
    method: str
    K: float | None = None
    """None where a row may hold several."""

    @property
    def label(self) -> str:
        """As the paper writes it: CE+RMDNet."""
        return self.loss.upper() + self.method


@dataclass(frozen=True)
class Column:
    """A noise setting."""

    noise: str
    rate: float

    @property
    def label(self) -> str:
        """Such as `symmetric 0.4`; human label files have no rate of their own."""
        return self.noise if ":" in self.noise else f"{self.noise} {self.rate:g}"


@dataclass(frozen=True)
class Place:
    """Where a table has references: the students of a place share images, labels and teacher."""

    table: str
    dataset: str
    column: Column
    seed: int


REFERENCES = ("teacher, logistic regression", "teacher, kNN (200)", "teacher, regression through T")
"""What classifiers of the teacher's features are called, see `report.references`."""

References = Mapping[Place, Mapping[str, float]]
"""Test accuracy in [0, 1] of each of REFERENCES; empty at a place without a finished run."""


class Results:
    """What a table of a study shows. Accuracies are in per cent, of finished runs alone."""

    def __init__(self, study: Study, table: Table, references: References | None = None) -> None:
        self.study, self.table, self.spec = study, table, table.spec
        self._references = {p: v for p, v in (references or {}).items() if p.table == table.spec.name}
        self.baseline_method = next(iter(table.spec.methods))
        self._at: dict[tuple[Row, Column], list[Entry]] = {}
        self._clean: dict[str, list[Entry]] = {}
        self._lent: dict[tuple[str, Column], list[Entry]] = {}
        for entry in table.entries:
            if entry.method == CLEAN:
                self._clean.setdefault(entry.dataset, []).append(entry)
            else:
                self._at.setdefault((self.row_of(entry), column_of(entry)), []).append(entry)

    def row_of(self, entry: Entry) -> Row:
        """The row that shows an entry."""
        K = entry.K if self.spec.layout == "K" else None
        return Row(entry.dataset, entry.loss, entry.method, K)

    @cached_property
    def rows(self) -> list[Row]:
        """Blocks of a data set; in them the methods in the spec's order, or of each loss falling K."""
        found = list(dict.fromkeys(row for row, _ in self._at))
        if self.spec.layout == "methods":
            return sorted(found, key=lambda row: self.spec.datasets.index(row.dataset))
        datasets, losses = self.spec.datasets, self.spec.losses
        return sorted(found, key=lambda r: (datasets.index(r.dataset), losses.index(r.loss), -(r.K or 0.0)))

    @cached_property
    def columns(self) -> list[Column]:
        """Noise settings in the spec's order."""
        return list(dict.fromkeys(column for _, column in self._at))

    @property
    def datasets(self) -> list[str]:
        """Data sets of the rows."""
        return list(dict.fromkeys(row.dataset for row in self.rows))

    def entries(self, row: Row, column: Column) -> list[Entry]:
        """The runs of a row and column, one of each seed; empty if the table has none there."""
        return self._at.get((row, column), [])

    def clean_entries(self, dataset: str) -> list[Entry]:
        """CE on clean labels, one entry of each seed."""
        return self._clean.get(dataset, [])

    def values(self, row: Row, column: Column, kind: str = "last") -> dict[int, float]:
        """Seed -> accuracy; see `folder.KINDS`."""
        return self._measured(self.entries(row, column), kind)

    def clean(self, dataset: str) -> dict[int, float]:
        """Seed -> accuracy of CE on clean labels."""
        return self._measured(self.clean_entries(dataset))

    def baseline(self, row: Row) -> Row | None:
        """The row of the same loss without what the method adds; None of a baseline itself."""
        return self._plain(row.dataset, row.loss) if row.method != self.baseline_method else None

    def is_ce(self, row: Row) -> bool:
        """Whether a row is CE without anything added, the lower end of the noise gap."""
        return row.loss == "ce" and row.method == self.baseline_method

    def ce_entries(self, dataset: str, column: Column) -> list[Entry]:
        """CE without anything added, one entry of each seed.

        A table without that loss borrows it from the study's other tables, if it was run there under the
        conditions of this one's baselines.
        """
        if row := self._plain(dataset, "ce"):
            return self.entries(row, column)
        if (dataset, column) not in self._lent:
            self._lent[dataset, column] = self._borrowed(dataset, column)
        return self._lent[dataset, column]

    def reference_places(self, dataset: str, column: Column | None = None) -> list[Place]:
        """Where a data set has references; empty where none were asked for, or there is no teacher."""
        return [p for p in self._references if p.dataset == dataset and column in (None, p.column)]

    def reference(self, name: str, dataset: str, column: Column) -> dict[int, float]:
        """Seed -> accuracy of one of REFERENCES."""
        found = {place.seed: self._references[place] for place in self.reference_places(dataset, column)}
        return {seed: 100 * values[name] for seed, values in found.items() if name in values}

    def shares(self, row: Row, column: Column) -> dict[int, float | None]:
        """Seed -> share of the noise gap undone, None where undefined; of the seeds whose runs are all in."""
        own, clean = self.values(row, column), self.clean(row.dataset)
        noisy = self._measured(self.ce_entries(row.dataset, column))
        return {s: gap_share(own[s], noisy[s], clean[s]) for s in own if s in noisy and s in clean}

    def paper(self, row: Row, column: Column) -> float | None:
        """The paper's accuracy."""
        method = f"{row.loss.upper()}+RMDNet" if self.spec.table in K_TABLES else row.label
        return paper_accuracy(self.spec.table, row.dataset, method, column.noise, column.rate, row.K)

    def K_of(self, row: Row) -> list[float]:
        """The values of K in a row, rising."""
        return sorted({e.K for column in self.columns for e in self.entries(row, column)})

    def _plain(self, dataset: str, loss: str) -> Row | None:
        wanted = (dataset, loss, self.baseline_method)
        return next((row for row in self.rows if (row.dataset, row.loss, row.method) == wanted), None)

    def _borrowed(self, dataset: str, column: Column) -> list[Entry]:
        plain = [row for row in self.rows if (row.dataset, row.method) == (dataset, self.baseline_method)]
        wanted = {self._conditions(entry) for row in plain for entry in self.entries(row, column)}
        found: dict[int, Entry] = {}
        for table in self.study.tables:
            setting = {"dataset": dataset, "loss": "ce", "noise": column.noise, "rate": column.rate}
            for entry in self.study.entries(table, **setting):
                if self._conditions(entry) in wanted:
                    found.setdefault(entry.seed, entry)
        return list(found.values())

    def _conditions(self, entry: Entry) -> str:
        """What a run is made with, but for its loss."""
        values = flatten(self.study.cells[entry.key].config)
        return repr({key: value for key, value in values.items() if not key.startswith("loss")})

    def _measured(self, entries: Sequence[Entry], kind: str = "last") -> dict[int, float]:
        found = {entry.seed: self.study.accuracy(entry.key, kind) for entry in entries}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def column_of(entry: Entry) -> Column:
    """The column that shows an entry."""
    return Column(entry.noise, entry.rate)
