"""Curves of runs, read from their metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmd_dist.errors import ConfigError
from rmd_dist.runs.curves import PANELS, plot_runs, read_curve


def run_folder(folder: Path, accuracies: list[float | None], tail: str = "") -> Path:
    folder.mkdir()
    lines = ['{"step": 1, "train/loss": 2.0}']
    lines += [
        json.dumps({"step": 10 * i, **dict.fromkeys(PANELS, value)})
        for i, value in enumerate(accuracies, start=1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + tail)
    return folder


def test_a_curve_is_the_finite_values_of_its_tag(tmp_path):
    run = run_folder(tmp_path / "a", [0.25, None, 0.5])
    assert read_curve(run, "test/accuracy") == ([10, 30], [0.25, 0.5])
    assert read_curve(run, "train/loss") == ([1], [2.0])
    assert read_curve(run, "never/logged") == ([], [])


def test_a_folder_without_metrics_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics\.jsonl does not exist; give run folders"):
        read_curve(tmp_path, "test/accuracy")


def test_a_picture_of_several_runs(tmp_path):
    runs = [run_folder(tmp_path / "a", [0.2, 0.4]), run_folder(tmp_path / "b", [0.3])]
    out = tmp_path / "new" / "curves.png"
    plot_runs(runs, ["a", "b"], out)
    assert out.read_bytes().startswith(b"\x89PNG")
    from matplotlib.image import imread

    two = imread(out)
    plot_runs(runs[:1], ["a"], out)
    one = imread(out)
    assert one.shape == two.shape and (one != two).any(), "the second run left no trace"


def test_a_torn_last_line_is_passed_over(tmp_path):
    run = run_folder(tmp_path / "a", [0.25], tail='{"step": 20, "test/acc')
    assert read_curve(run, "test/accuracy") == ([10], [0.25])


def test_an_unknown_picture_format_is_told(tmp_path):
    run = run_folder(tmp_path / "a", [0.25])
    with pytest.raises(ConfigError, match="png"):
        plot_runs([run], ["a"], tmp_path / "curves.picture")
