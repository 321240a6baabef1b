"""What a study will take: cells, optimizer steps, hours, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_high

from rmd_dist.config import PretrainConfig, crops_of
from rmd_dist.errors import ConfigError
from rmd_dist.runs.console import grouped
from rmd_dist.study.cells import Cell
from rmd_dist.study.folder import Study, curve_so_far

Kind = tuple[str, str, str, str, int]
"""Stage, data set, model, objective or the graph's teacher, crops: what the time of a step depends on."""


def kind_of(cell: Cell) -> Kind:
    """The kind of a cell."""
    config = cell.config
    kind, crops = "", 0
    if isinstance(config, PretrainConfig):
        kind = "" if config.objective == "simsiam" else config.objective
    else:
        crops = crops_of(config)
        if config.K > 0:
            kind = "teacher's table" if config.graph.teacher_table else "teacher"
    return cell.stage, config.data.dataset, config.model.name, kind, crops


@dataclass
class StepTimes:
    """Seconds of one optimizer step, by kind of cell: given, or measured in cells that have finished."""

    given: dict[str, float] = field(default_factory=dict)
    """`pretrain`, `distill` or `all` -> seconds."""
    measured: dict[Kind, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None, study: Study) -> StepTimes:
        """From `0.02`, or `pretrain=0.05,distill=0.02`, and from what has been measured.

        Raises ConfigError for anything else.
        """
        given: dict[str, float] = {}
        for part in text.split(",") if text else []:
            name, _, value = part.rpartition("=")
            try:
                seconds = float(value)
            except ValueError:
                seconds = -1.0
            if name not in ("", "pretrain", "distill") or not 0 < seconds < 1e6:
                raise ConfigError(
                    f"--step-seconds {text} is not valid; give seconds such as 0.02, "
                    "or pretrain=0.05,distill=0.02"
                )
            given[name or "all"] = seconds
        times: dict[Kind, list[float]] = {}
        for cell in filter(lambda cell: study.finished(cell.key), study.cells.values()):
            if found := step_seconds(study.run(cell.key), cell.config.data.batch_size):
                times.setdefault(kind_of(cell), []).append(found)
        return cls(given, {kind: median_high(values) for kind, values in times.items()})

    def of(self, cell: Cell) -> float | None:
        """Seconds of one step of a cell; None if nobody knows."""
        given = self.given.get(cell.stage, self.given.get("all"))
        return given if given is not None else self.measured.get(kind_of(cell))


def step_seconds(run: Path, batch_size: int, after: int = 0) -> float | None:
    """Median time of an optimizer step of a run, of those logged beyond step `after`; None without any."""
    curve = zip(*curve_so_far(run, "train/images_per_second"), strict=True)
    rates = [rate for step, rate in curve if step > after and rate > 0]
    return batch_size / median_high(rates) if rates else None


def outlook_rows(study: Study, times: StepTimes) -> tuple[list[str], list[list[str]], list[str]]:
    """(columns, rows, closing lines): cells grouped by kind, what is left of them, steps and hours."""
    groups: dict[Kind, list[Cell]] = {}
    for cell in study.cells.values():
        groups.setdefault(kind_of(cell), []).append(cell)
    rows, total_steps, total_hours, unknown = [], 0, 0.0, False
    for (stage, dataset, model, kind, crops), members in sorted(
        groups.items(), key=lambda item: item[0][0] != "pretrain"
    ):
        left = [cell for cell in members if not study.status[cell.key].done]
        steps = sum(cell.steps for cell in left)
        seconds = times.of(members[0])
        hours = steps * seconds / 3600 if seconds is not None else None
        total_steps, total_hours = total_steps + steps, total_hours + (hours or 0.0)
        unknown = unknown or (hours is None and bool(left))
        what = stage + (f" with {kind}" if kind else "") + (f", {crops} crops" if crops > 1 else "")
        shown = [
            f"{1000 * seconds:.1f}" if seconds is not None else "?",
            f"{hours:.1f}" if hours is not None else "?",
        ]
        rows.append([what, dataset, model, str(len(members)), str(len(left)), grouped(steps), *shown])
    columns = ["stage", "data set", "model", "cells", "left", "steps left", "ms a step", "hours"]
    closing = [f"{len(study.cells)} cells, {grouped(total_steps)} steps left"]
    if unknown:
        closing.append(
            "hours unknown: give --step-seconds, or --measure to time a few steps of each kind here"
        )
    else:
        closing[0] += f", {total_hours:.1f} hours on one device (evaluation and start-up not counted)"
    return columns, rows, closing
