"""The choice of K: coarsely over its whole range, then finely around the best (the paper's own advice).

Selection reads held-out noisy labels unless the spec says otherwise; the test set is read for the verdict
alone, which says what the choice cost against an oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rmd_dist.config import ConfigError, DistillConfig
from rmd_dist.history import SELECTION
from rmd_dist.study.cells import Cell, Table, plan
from rmd_dist.study.ledger import Status
from rmd_dist.study.spec import StudySpec, Tuning


def prepared(spec: StudySpec) -> StudySpec:
    """A spec whose methods are the coarse grid, if it searches for K. Raises ConfigError if it cannot."""
    tune = spec.tune
    if tune is None:
        return spec
    grid = [0.0, *np.geomspace(tune.low, tune.high, tune.coarse).tolist()]
    spec = replace(spec, methods=_methods(grid), layout="K", clean=False)
    cells, (table,) = plan([spec])
    if len({(e.dataset, e.loss, e.noise, e.rate) for e in table.entries}) > 1:
        raise ConfigError(
            f"{spec.name}: K is searched for one data set, loss and noise at a time; give one each"
        )
    held_out = min(c.config.validation for c in cells if isinstance(c.config, DistillConfig))
    if tune.select == SELECTION and not held_out:
        raise ConfigError(f"{spec.name}: to select by {SELECTION}, give distill: {{validation: 0.1}}")
    return spec


def _methods(grid: Sequence[float]) -> dict[str, dict[str, float]]:
    return {"" if K == 0 else f"+RMDNet (K={K:.3g})": {"K": float(f"{K:.3g}")} for K in sorted(grid)}


def scores(table: Table, status: dict[str, Status]) -> dict[float, float]:
    """K -> selection accuracy in [0, 1], mean over seeds, of the values whose runs all went to the end."""
    by_K: dict[float, list[float | None]] = {}
    for entry in table.entries:
        by_K.setdefault(entry.K, []).append(_score(status[entry.key]))
    return {
        K: float(np.mean([v for v in values if v is not None]))
        for K, values in by_K.items()
        if None not in values
    }


def _best(found: dict[float, float]) -> float:
    """The K of the highest score; of equal ones the smallest."""
    return max(found, key=lambda K: (found[K], -K))


def _score(status: Status) -> float | None:
    """The last recorded selection accuracy of a finished run."""
    if status.state != "finished" or not status.intermediate:
        return None
    return status.intermediate[max(status.intermediate)]


def refined(spec: StudySpec, table: Table, status: dict[str, Status]) -> StudySpec | None:
    """The spec with the fine grid added; None if it has it, or the coarse grid is not through."""
    assert spec.tune
    tried = sorted({entry.K for entry in table.entries})
    if not _through(table, status):
        return None
    found = scores(table, status)
    if not found or len(tried) > spec.tune.coarse + 1 or not spec.tune.fine:
        return None
    best = _best(found)
    position = tried.index(best)
    finer: list[float] = []
    for a, b in ((position - 1, position), (position, position + 1)):
        if a >= 0 and b < len(tried):
            # Below the smallest K there is no logarithm of 0 to go to: two decades stand for it.
            low = tried[a] or tried[b] / 100
            between = np.geomspace(low, tried[b], spec.tune.fine + 2)
            finer += between[1:-1].tolist()
    return replace(spec, methods=_methods([*tried, *finer]))


def _through(table: Table, status: dict[str, Status]) -> bool:
    """Whether every run has ended, at its end or as hopeless."""
    return all(e.key in status and status[e.key].done for e in table.entries)


def verdict(spec: StudySpec, table: Table, status: dict[str, Status]) -> list[str]:
    """The curve, the chosen K, and what the choice cost against the oracle, as lines."""
    assert spec.tune
    if not all(entry.key in status for entry in table.entries):
        return ["the search has not begun"]
    found = scores(table, status)
    if not found:
        return ["no K has been run to the end yet; the same command continues"]
    tests = _tests(table, status)
    lines = [f"K, {spec.tune.select}, test accuracy (for the record, not for the choice):"]
    for K in sorted({entry.K for entry in table.entries}):
        states = {status[e.key].state for e in table.entries if e.K == K}
        shown = (
            f"{100 * found[K]:6.2f} %  {100 * tests[K]:6.2f} %" if K in found else ", ".join(sorted(states))
        )
        lines.append(f"  {K:<10g} {shown}")
    chosen = _best(found)
    oracle = max(found, key=lambda K: tests[K])
    edge = {spec.tune.high: "largest; raise tune.high", spec.tune.low: "smallest above 0; lower tune.low"}
    lines.append(f"chosen: K = {chosen:g} by {spec.tune.select}, test accuracy {100 * tests[chosen]:.2f} %")
    lines.append(
        f"oracle: K = {oracle:g}, test accuracy {100 * tests[oracle]:.2f} %; the choice cost "
        f"{100 * (tests[oracle] - tests[chosen]):.2f} points"
    )
    if not _through(table, status):
        lines.append(
            "provisional: runs are unfinished or have failed, and the search does not go on without them"
        )
    pruned = [e for e in table.entries if status[e.key].state == "pruned"]
    if pruned:
        lines.append(
            f"{len(pruned)} of {len(table.entries)} runs were stopped early: not in the curve, "
            "unknown to the oracle"
        )
    if chosen in edge:
        lines.append(f"the best may lie outside: K = {chosen:g} is the {edge[chosen]}")
    return lines


def _tests(table: Table, status: dict[str, Status]) -> dict[float, float]:
    by_K: dict[float, list[float]] = {}
    for entry in table.entries:
        by_K.setdefault(entry.K, []).append(status[entry.key].results.get("last", math.nan))
    return {K: float(np.mean(values)) for K, values in by_K.items()}


class Pruner:
    """Optuna's median rule: stop a run that falls below the median of earlier runs of its seed.

    Written for cells, not for optuna.Trial: those that count are the current ones of each cell.
    """

    def __init__(self, tune: Tuning, cells: Sequence[Cell], status: Callable[[], dict[str, Status]]) -> None:
        self._tune, self._status = tune, status
        self._seeds = {cell.key: cell.config.run.seed for cell in cells if cell.stage == "distill"}

    def __call__(self, cell: Cell, curve: Sequence[tuple[int, float]]) -> bool:
        """Whether the cell is hopeless; `curve` is (step, accuracy) so far."""
        step, value = curve[-1]
        if not self._tune.prune or step < self._tune.prune_after * cell.steps or step >= cell.steps:
            return False
        status = self._status()
        others = [
            status[key].intermediate[step]
            for key, seed in self._seeds.items()
            if key != cell.key and seed == cell.config.run.seed and step in status[key].intermediate
        ]
        return len(others) >= 2 and value < float(np.median(others)) - self._tune.prune_margin
