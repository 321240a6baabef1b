"""The choice of K, coarsely over its range, then finely around the best (the paper's advice), or of a method.

Selection reads held-out noisy labels unless the spec says otherwise; the test set is read for the verdict
alone, which says what the choice cost against an oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rmd_dist.config import DistillConfig
from rmd_dist.errors import ConfigError
from rmd_dist.runs.history import SELECTION
from rmd_dist.study.cells import Cell, Entry, Table, plan
from rmd_dist.study.folder import Study, curve_so_far
from rmd_dist.study.spec import StudySpec, Tuning


def prepared(spec: StudySpec) -> StudySpec:
    """A spec whose methods are what is tried, if it searches. Raises ConfigError if it cannot."""
    tune = spec.tune
    if tune is None:
        return spec
    spec = replace(spec, clean=False)
    if tune.among == "K":
        grid = [0.0, *np.geomspace(tune.low, tune.high, tune.coarse).tolist()]
        spec = replace(spec, methods=_methods(grid), layout="K")
    cells, (table,) = plan([spec])
    if len({(e.dataset, e.loss, e.noise, e.rate) for e in table.entries}) > 1:
        what = "K is" if tune.among == "K" else "the best method is"
        raise ConfigError(
            f"{spec.name}: {what} searched for one data set, loss and noise at a time; give one each"
        )
    held_out = min(c.config.validation for c in cells if isinstance(c.config, DistillConfig))
    if tune.select == SELECTION and not held_out:
        raise ConfigError(f"{spec.name}: to select by {SELECTION}, give distill: {{validation: 0.1}}")
    return spec


def _methods(grid: Sequence[float]) -> dict[str, dict[str, float]]:
    return {"" if K == 0 else f"+RMDNet (K={K:.3g})": {"K": float(f"{K:.3g}")} for K in sorted(grid)}


def _tried(table: Table) -> dict[str, list[Entry]]:
    """What is chosen among -> its runs, one of each seed: values of K from the smallest on, or methods."""
    by_K = _tuning(table).among == "K"
    found: dict[str, list[Entry]] = {}
    for entry in sorted(table.entries, key=lambda entry: entry.K) if by_K else table.entries:
        found.setdefault(f"{entry.K:g}" if by_K else entry.label, []).append(entry)
    return found


def scores(study: Study, table: Table) -> dict[str, float]:
    """Of what is `_tried`: selection accuracy in [0, 1], mean over seeds, where all runs went to the end."""
    tune = _tuning(table)
    tried = {
        name: [_score(study, tune, entry) for entry in entries] for name, entries in _tried(table).items()
    }
    return {
        name: float(np.mean([v for v in values if v is not None]))
        for name, values in tried.items()
        if None not in values
    }


def _best(found: dict[str, float]) -> str:
    """What has the highest score; of equals the first."""
    return max(found, key=lambda name: found[name])


def _score(study: Study, tune: Tuning, entry: Entry) -> float | None:
    """The last recorded selection accuracy of a run, if it has finished."""
    values = study.curve(entry.key, tune.select)[1] if study.finished(entry.key) else []
    return values[-1] if values else None


def refined(study: Study, table: Table) -> StudySpec | None:
    """The spec with the fine grid of K added; None if it has it, or the coarse grid is not through."""
    tune = _tuning(table)
    if tune.among != "K" or not _through(study, table):
        return None
    found = scores(study, table)
    tried = {name: entries[0].K for name, entries in _tried(table).items()}
    if not found or len(tried) > tune.coarse + 1 or not tune.fine:
        return None
    values = list(tried.values())
    position = list(tried).index(_best(found))
    finer: list[float] = []
    for a, b in ((position - 1, position), (position, position + 1)):
        if a >= 0 and b < len(values):
            # Below the smallest K there is no logarithm of 0 to go to: two decades stand for it.
            low = values[a] or values[b] / 100
            between = np.geomspace(low, values[b], tune.fine + 2)
            finer += between[1:-1].tolist()
    return replace(table.spec, methods=_methods([*values, *finer]))


def _tuning(table: Table) -> Tuning:
    assert table.spec.tune, f"{table.spec.name} does not search for the best"
    return table.spec.tune


def _through(study: Study, table: Table) -> bool:
    """Whether every run has ended, at its end or as hopeless."""
    return all(study.status[entry.key].done for entry in table.entries)


def verdict(study: Study, table: Table) -> list[str]:
    """What was tried, what is chosen, and what the choice cost against the oracle, as lines."""
    tune, found, tried = _tuning(table), scores(study, table), _tried(table)
    what = "K" if tune.among == "K" else "method"
    if not found:
        return [f"no {what} has been run to the end yet; the same command continues"]
    tests = {name: float(np.mean([_tested(study, entry) for entry in tried[name]])) for name in found}
    width = max(10, *map(len, tried))
    lines = [f"{what}, {tune.select}, test accuracy (for the record, not for the choice):"]
    for name, entries in tried.items():
        states = ", ".join(sorted({study.status[entry.key].state for entry in entries}))
        shown = f"{100 * found[name]:6.2f} %  {100 * tests[name]:6.2f} %" if name in found else states
        lines.append(f"  {name:<{width}} {shown}")
    chosen, oracle = _best(found), max(found, key=lambda name: tests[name])
    called = "K = " if tune.among == "K" else ""
    lines.append(f"chosen: {called}{chosen} by {tune.select}, test accuracy {100 * tests[chosen]:.2f} %")
    lines.append(
        f"oracle: {called}{oracle}, test accuracy {100 * tests[oracle]:.2f} %; the choice cost "
        f"{100 * (tests[oracle] - tests[chosen]):.2f} points"
    )
    if not _through(study, table):
        lines.append(
            "provisional: runs are unfinished or have failed, and the search does not go on without them"
        )
    pruned = sum(study.status[entry.key].state == "pruned" for entry in table.entries)
    if pruned:
        lines.append(
            f"{pruned} of {len(table.entries)} runs were stopped early: not in the curve, "
            "unknown to the oracle"
        )
    edge = {f"{tune.high:g}": "largest; raise tune.high", f"{tune.low:g}": "smallest above 0; lower tune.low"}
    if tune.among == "K" and chosen in edge:
        lines.append(f"the best may lie outside: K = {chosen} is the {edge[chosen]}")
    return lines


def _tested(study: Study, entry: Entry) -> float:
    """Test accuracy in [0, 1] at the end of a finished run."""
    return study.status[entry.key].results.get("last", math.nan)


class MedianPruner:
    """The median rule: stop a run whose accuracy is below the median of its rivals at the same step.

    Rivals are the other runs of its seed that are as long.

    Args:
        tune: when a run may be stopped, how far below, and by which accuracy.
        study: the study's folder.
        cells: all its cells.
    """

    def __init__(self, tune: Tuning, study: Path, cells: Sequence[Cell]) -> None:
        self._tune, self._study = tune, study
        self._students = [cell for cell in cells if cell.stage == "distill"]

    def __call__(self, cell: Cell) -> str | None:
        """Where a running cell stands, if it is hopeless; else None."""
        curve = self._curve(cell)
        step = max(curve, default=0)
        if not self._tune.prune_after * cell.steps <= step < cell.steps or not curve:
            return None
        seed = cell.config.run.seed
        equals = [c for c in self._students if (c.config.run.seed, c.steps) == (seed, cell.steps)]
        rivals = [c for c in equals if c.key != cell.key]
        others = [found[step] for rival in rivals if step in (found := self._curve(rival))]
        if len(others) < 2 or curve[step] >= float(np.median(others)) - self._tune.prune_margin:
            return None
        return f"step {step}, {100 * curve[step]:.2f} %"

    def _curve(self, cell: Cell) -> dict[int, float]:
        """Step -> accuracy so far."""
        return dict(zip(*curve_so_far(cell.run_folder(self._study), self._tune.select), strict=True))
