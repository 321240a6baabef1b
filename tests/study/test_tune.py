"""The choice of K: coarse, then fine around the best, by noisy validation labels; the oracle beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from launch.study import arguments
from rmd_dist.config import ConfigError
from rmd_dist.study import commands, tune
from rmd_dist.study.cells import plan
from rmd_dist.study.folder import read_study
from rmd_dist.study.ledger import Status
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


def _status(value: float, last: float = 0.5, state: str = "finished") -> Status:
    return Status(state, None, None, {"last": last}, {66: value}, 1, 0)


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
    _, (table,) = plan([prepared])
    status = {e.key: _status(0.9 if best == e.K else 0.5) for e in table.entries}
    finer = tune.refined(prepared, table, status)
    assert finer
    tried = {delta["K"] for delta in finer.methods.values()}
    assert tried - {e.K for e in table.entries} == set(added)
    _, (larger,) = plan([finer])
    assert (
        tune.refined(finer, larger, {e.key: _status(0.5) for e in larger.entries}) is None
    )  # once is enough


def test_no_fine_grid_before_the_coarse_one_is_through(tmp_path):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    _, (table,) = plan([prepared])
    status = {e.key: _status(0.5) for e in table.entries}
    status[table.entries[0].key] = _status(0.5, state="waiting")
    assert tune.refined(prepared, table, status) is None


def test_the_verdict_chooses_by_validation_and_tells_what_the_oracle_had(tmp_path):
    prepared = tune.prepared(spec(tmp_path, SPEC))
    _, (table,) = plan([prepared])
    scores = {0.0: (0.40, 0.50), 0.01: (0.55, 0.60), 0.1: (0.50, 0.70), 1.0: (0.30, 0.20)}
    status = {e.key: _status(*scores[e.K]) for e in table.entries}
    said = tune.verdict(prepared, table, status)
    assert said[-3].startswith("chosen: K = 0.01 by validation/accuracy_noisy, test accuracy 60.00 %")
    assert said[-1] == "the best may lie outside: K = 0.01 is the smallest above 0; lower tune.low"
    assert said[-2] == "oracle: K = 0.1, test accuracy 70.00 %; the choice cost 10.00 points"
    worst = table.entries[-1].key
    status[worst] = _status(0.99, 0.99, "pruned")  # what was stopped is neither chosen nor an oracle
    said = tune.verdict(prepared, table, status)
    assert said[-4].startswith("chosen: K = 0.01") and "1 of 4 runs were stopped early" in said[-2]
    status[worst] = _status(0.5, state="failed")
    assert any(
        line.startswith("provisional: runs are unfinished") for line in tune.verdict(prepared, table, status)
    )


def test_a_run_below_the_median_of_the_others_is_hopeless_after_a_while(tmp_path):
    prepared = tune.prepared(
        spec(tmp_path, SPEC.replace("prune: false", "prune_after: 0.5, prune_margin: 0.02"))
    )
    cells, (table,) = plan([prepared])
    values = dict(zip([e.key for e in table.entries], (0.5, 0.6, 0.55, math.nan), strict=True))

    def status() -> dict[str, Status]:
        return {key: Status("running", None, None, {}, {60: v, 20: v}, 1, 0) for key, v in values.items()}

    students = {cell.key: cell for cell in cells}
    values.pop(table.entries[-1].key)
    values[table.entries[-1].key] = 0.1
    pruner = tune.Pruner(prepared.tune, cells, status)
    late = students[table.entries[-1].key]
    assert late.steps == 20 * 3
    assert not pruner(late, [(20, 0.1)])  # too early
    assert not pruner(late, [(60, 0.1)])  # at its end
    late.config.optim.epochs = 4
    assert pruner(late, [(60, 0.1)])
    assert not pruner(late, [(60, 0.535)])  # within the margin of the median, 0.55


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
