"""The choice of K: coarse, then fine around the best, by noisy validation labels; the oracle beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rmd_dist.commands.study import arguments
from rmd_dist.errors import ConfigError
from rmd_dist.study import commands, tune
from rmd_dist.study.cells import Cell, Table, plan
from rmd_dist.study.folder import Study, read_study
from rmd_dist.study.spec import StudySpec
from rmd_dist.study.status import Status
from tests.study.small import StandIn, spec

SPEC = """
# A search for K.
datasets: [digits]
losses: [ce]
noise: {symmetric: [0.4]}
seeds: [0]
pretrain: {optim: {epochs: 1}}
distill: {validation: 0.1, optim: {epochs: 3}}
tune: {low: 0.01, high: 1.0, coarse: 3, fine: 1, prune: false}
"""


def _measured(cell: Cell, folder: Path, curve: dict[int, float]) -> None:
    """Write what a run has measured: step -> selection accuracy."""
    run = cell.run_folder(folder)
    run.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "validation/accuracy_noisy": v}) + "\n" for step, v in curve.items()]
    (run / "metrics.jsonl").write_text("".join(lines))


def _searched(folder: Path, spec: StudySpec, scores: dict[float, tuple[float, float]]) -> tuple[Study, Table]:
    """A finished search: K -> (selection, test) accuracy of its run, (0.5, 0.5) where not given."""
    cells, tables = plan([spec])
    study = Study(folder, {cell.key: cell for cell in cells}, tables, {})
    for entry in tables[0].entries:
        selection, test = scores.get(entry.K, (0.5, 0.5))
        _measured(study.cells[entry.key], folder, {22: 0.1, 66: selection})
        study.status[entry.key] = Status("finished", results={"last": test})
    return study, tables[0]


def test_the_coarse_grid_is_uniform_in_log_K_and_has_0(tmp_path):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    assert [delta["K"] for delta in prepared.methods.values()] == [0.0, 0.01, 0.1, 1.0]
    assert next(iter(prepared.methods)) == ""  # the baseline
    assert prepared.layout == "K"


@pytest.mark.parametrize(
    ("best", "added"),
    [(0.1, [0.0316, 0.316]), (1.0, [0.316]), (0.0, [0.001]), (0.01, [0.001, 0.0316])],
)
def test_the_fine_grid_lies_between_the_best_and_its_neighbours(tmp_path, best, added):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    study, table = _searched(tmp_path, prepared, {best: (0.9, 0.5)})
    finer = tune.refined(study, table)
    assert finer
    tried = {delta["K"] for delta in finer.methods.values()}
    assert tried - {e.K for e in table.entries} == set(added)
    assert tune.refined(*_searched(tmp_path, finer, {})) is None  # once is enough


def test_no_fine_grid_before_the_coarse_one_is_through(tmp_path):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    study, table = _searched(tmp_path, prepared, {})
    study.status[table.entries[0].key] = Status("waiting")
    assert tune.refined(study, table) is None


def test_the_verdict_chooses_by_validation_and_tells_what_the_oracle_had(tmp_path):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    scores = {0.0: (0.40, 0.50), 0.01: (0.55, 0.60), 0.1: (0.50, 0.70), 1.0: (0.99, 0.99)}
    study, table = _searched(tmp_path, prepared, scores | {1.0: (0.30, 0.20)})
    said = tune.verdict(study, table)
    assert said[-3].startswith("chosen: K = 0.01 by validation/accuracy_noisy, test accuracy 60.00 %")
    assert said[-1] == "the best may lie outside: K = 0.01 is the smallest above 0; lower tune.low"
    assert said[-2] == "oracle: K = 0.1, test accuracy 70.00 %; the choice cost 10.00 points"
    worst = table.entries[-1].key
    study, table = _searched(tmp_path, prepared, scores)
    study.status[worst] = Status("pruned", results={"last": 0.99})  # neither chosen nor an oracle
    said = tune.verdict(study, table)
    assert said[-4].startswith("chosen: K = 0.01") and "1 of 4 runs were stopped early" in said[-2]
    study.status[worst] = Status("failed")
    assert any(line.startswith("provisional: runs are unfinished") for line in tune.verdict(study, table))


def test_a_run_below_the_median_of_the_others_is_hopeless_after_a_while(tmp_path):
    prepared = tune.prepared(
        spec(tmp_path, SPEC.replace("prune: false", "prune_after: 0.5, prune_margin: 0.02"))
    )
    cells, _ = plan([prepared])
    *others, late = (cell for cell in cells if cell.stage == "distill")
    pruner = tune.MedianPruner(prepared.tune, tmp_path, cells)
    for cell, value in zip(others, (0.5, 0.6, 0.55), strict=True):
        _measured(cell, tmp_path, {20: value, 60: value})
    assert late.steps == 20 * 3
    assert pruner(late) is None  # nothing is measured yet
    _measured(late, tmp_path, {20: 0.1})
    assert pruner(late) is None  # too early
    _measured(late, tmp_path, {20: 0.1, 60: 0.1})
    assert pruner(late) is None  # at its end
    late.config.optim.epochs = 4
    assert pruner(late) is None  # the others are shorter, and further on in their schedules
    for cell in others:
        cell.config.optim.epochs = 4
    assert pruner(late) == "step 60, 10.00 %"
    _measured(late, tmp_path, {20: 0.1, 60: 0.535})
    assert pruner(late) is None  # within the margin of the median, 0.55


METHODS = """
# A search for a learning rate.
datasets: [digits]
losses: [ce]
methods: {"": {K: 0}, ", lr 0.1": {K: 0, optim: {lr: 0.1}}, ", 2 epochs": {K: 0, optim: {epochs: 2}}}
noise: {symmetric: [0.4]}
seeds: [0]
distill: {validation: 0.1, optim: {epochs: 3}}
tune: {among: methods, prune: false}
"""


def test_the_best_method_is_chosen_as_the_best_K_is(tmp_path):
    prepared = tune.prepared(spec(tmp_path, METHODS))
    assert list(prepared.methods) == ["", ", lr 0.1", ", 2 epochs"] and not prepared.clean
    cells, (table,) = plan([prepared])
    study = Study(tmp_path, {cell.key: cell for cell in cells}, (table,), {})
    for entry, (selection, test) in zip(table.entries, [(0.5, 0.9), (0.7, 0.8), (0.7, 0.6)], strict=True):
        _measured(study.cells[entry.key], tmp_path, {22: 0.99, 44: selection})
        study.status[entry.key] = Status("finished", results={"last": test})
    assert tune.refined(study, table) is None
    head, *rows, chosen, oracle = tune.verdict(study, table)
    assert head.startswith("method, validation/accuracy_noisy, test accuracy")
    assert rows[1] == "  CE, lr 0.1    70.00 %   80.00 %"
    # Of equals the first.
    assert chosen == "chosen: CE, lr 0.1 by validation/accuracy_noisy, test accuracy 80.00 %"
    assert oracle == "oracle: CE, test accuracy 90.00 %; the choice cost 10.00 points"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("validation: 0.1, ", "", "give distill: {validation: 0.1}"),
        ("[ce]", "[ce, gce]", "one data set, loss and noise at a time"),
    ],
)
def test_searches_that_cannot_work_are_refused(tmp_path, old, new, told):
    with pytest.raises(ConfigError, match=told):
        tune.prepared(spec(tmp_path, SPEC.replace(old, new)))


def test_the_command_runs_both_grids_and_prints_the_choice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "_topologies", lambda _: [StandIn()])
    path, out = tmp_path / "s.yaml", tmp_path / "study"
    path.write_text(SPEC)
    out.mkdir()
    names = {K: f"digits-ce-symmetric0.4-K{K:g}-seed0" for K in (0, 0.01, 0.0316, 0.1, 0.316, 1)}
    curve = {
        K: {"accuracy": 0.3 + K / 10, "validation": 0.5 - abs(np.log10(max(K, 1e-3)) + 0.6) / 10}
        for K in names
    }
    (out / "plan.json").write_text(json.dumps({name: curve[K] for K, name in names.items()}))
    assert commands.study(arguments().parse_args([str(path), "--out", str(out)])) == 0
    said = capsys.readouterr().out
    assert "chosen: K = 0.316 by validation/accuracy_noisy, test accuracy 33.16 %" in said
    assert "oracle: K = 1, test accuracy 40.00 %; the choice cost 6.84 points" in said
    assert len(read_study(out).status) == 1 + 6
    again = Path(out / "specs/s.yaml").read_text()
    assert commands.study(arguments().parse_args([str(path), "--out", str(out)])) == 0
    assert "0 finished by this command" in capsys.readouterr().out
    assert Path(out / "specs/s.yaml").read_text() == again
