"""What metrics.jsonl tells of a run: last, selected on noisy validation labels, best on test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmd_dist.runs.history import SELECTION, History

RECORDS = [
    {"step": 1, "train/loss": 2.0},
    {"step": 10, "test/accuracy": 0.5, SELECTION: 0.30},
    {"step": 10, "train/loss": 1.0},
    {"step": 20, "test/accuracy": 0.8, SELECTION: 0.35},
    {"step": 30, "test/accuracy": 0.7, SELECTION: 0.40},
    {"step": 40, "test/accuracy": 0.6, SELECTION: 0.40, "note": "text", "missing": None},
]


def write(folder: Path, records: list[dict[str, object]], tail: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def history_of(metrics: Path, step: int, tag: str = "test/accuracy") -> History:
    return History(metrics, step, tag)


def values(history: History) -> dict[str, tuple[float, int]]:
    return {kind: (result["value"], result["step"]) for kind, result in history.results().items()}


def test_each_kind_is_what_it_says(tmp_path):
    found = history_of(write(tmp_path, RECORDS), 40).results()
    assert {k: (r["value"], r["step"]) for k, r in found.items()} == {
        "last": (0.6, 40),
        "selected": (0.7, 30),  # the first of equals; the test accuracy plays no part
        "best_on_test": (0.8, 20),
    }
    assert {r["tag"] for r in found.values()} == {"test/accuracy"}


def test_later_steps_than_the_checkpoint_are_not_the_past(tmp_path):
    path = write(tmp_path, RECORDS)
    assert values(history_of(path, 20)) == {
        "last": (0.8, 20),
        "selected": (0.8, 20),
        "best_on_test": (0.8, 20),
    }
    assert values(history_of(path, 10))["last"] == (0.5, 10)
    assert values(history_of(path, 9)) == {}
    assert history_of(path, 0).table()[2] == []


@pytest.mark.parametrize("tail", ['{"step": 50, "test/accu', '{"step": 50', "\x00\x00\x00", "\n\n"])
def test_a_torn_last_line_is_passed_over(tail, tmp_path):
    assert values(history_of(write(tmp_path, RECORDS, tail), 99))["last"] == (0.6, 40)


def test_no_file_is_an_empty_past(tmp_path):
    history = history_of(tmp_path / "metrics.jsonl", 5)
    assert history.results() == {}
    history.add(6, {"test/accuracy": 0.1})
    assert values(history) == {"last": (0.1, 6), "best_on_test": (0.1, 6)}


def test_only_a_better_validation_is_a_selection(tmp_path):
    history = history_of(write(tmp_path, RECORDS[:4]), 20)
    assert not history.add(30, {"test/accuracy": 0.9, SELECTION: 0.34})
    assert not history.add(40, {"test/accuracy": 0.9, SELECTION: 0.35})
    assert history.add(50, {"test/accuracy": 0.1, SELECTION: 0.36})
    assert not history.add(60, {"test/accuracy": 0.95})
    assert values(history) == {"last": (0.95, 60), "selected": (0.1, 50), "best_on_test": (0.95, 60)}
    # What was told to be the best so far is what the table calls selected, also after a restart.
    again = history_of(write(tmp_path, [{"step": s, **v} for s, v in history.records]), 60)
    assert again.results() == history.results()


def test_without_validation_nothing_is_selected_and_the_table_says_what_is_what(tmp_path):
    records = [{"step": 5, "eval/knn_accuracy": 0.25}, {"step": 6, "eval/knn_accuracy": 0.125}]
    _, columns, rows = history_of(write(tmp_path, records), 6, "eval/knn_accuracy").table()
    assert len(columns) == 4
    assert rows[0] == ["last", "eval/knn_accuracy", "12.50 %", "6"]
    assert rows[1][1:] == ["eval/knn_accuracy", "25.00 %", "5"] and "oracle" in rows[1][0]
    assert len(rows) == 2
    labels = [row[0] for row in history_of(write(tmp_path, RECORDS), 40).table()[2]]
    assert len(labels) == 3 and "noisy validation" in labels[1]
