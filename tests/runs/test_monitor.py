"""What a person watches: TensorBoard and metrics.jsonl agree, resuming, plain lines, the bar, pictures."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer import event_file_writer

from rmd_dist.runs import console, figures
from rmd_dist.runs.console import Screen, fit
from rmd_dist.runs.monitor import Monitor, trim_metrics

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROOT = Path(__file__).parents[2]


def monitor(folder: Path, resume_step: int = 0, **more: Any) -> Monitor:
    settings = {"enabled": True, "total_steps": 100, "title": "pretrain", "resume_step": resume_step}
    return Monitor(folder, **(settings | more))


def events(folder: Path) -> EventAccumulator:
    # 0: keep every event; the default keeps a sample of them
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def records(folder: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def curves_of_jsonl(folder: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records(folder):
        for tag in record.keys() - {"step", "time"}:
            curves.setdefault(tag, []).append((record["step"], record[tag]))
    return curves


def curves_of_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = events(folder)
    return {t: [(e.step, e.value) for e in accumulator.Scalars(t)] for t in accumulator.Tags()["scalars"]}


def assert_same_curves(folder: Path) -> None:
    from_jsonl, from_events = curves_of_jsonl(folder), curves_of_events(folder)
    assert from_jsonl.keys() == from_events.keys()
    for tag, curve in from_jsonl.items():
        assert [step for step, _ in curve] == [step for step, _ in from_events[tag]]
        np.testing.assert_allclose([v for _, v in curve], [v for _, v in from_events[tag]], rtol=1e-6)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# --- records ---


def test_jsonl_and_tensorboard_hold_the_same_scalars(tmp_path: Path) -> None:
    with monitor(tmp_path / "run") as watch:
        for step in range(1, 31):
            watch.scalars({"loss/total": torch.tensor(1 / step), "lr": np.float32(0.5)}, step)
        watch.scalars({"test/accuracy": 0.25}, 30)
    assert_same_curves(tmp_path / "run")
    assert len(curves_of_jsonl(tmp_path / "run")["loss/total"]) == 30
    assert records(tmp_path / "run")[-1].keys() == {"step", "time", "test/accuracy"}


def test_values_that_are_not_finite_are_null_in_json_and_themselves_in_tensorboard(tmp_path: Path) -> None:
    with monitor(tmp_path) as watch:
        watch.scalars({"a": math.nan, "b": -math.inf, "c": 1.0}, 3)
    (record,) = records(tmp_path)
    assert (record["step"], record["a"], record["b"], record["c"]) == (3, None, None, 1.0)
    curves = curves_of_events(tmp_path)
    assert math.isnan(curves["a"][0][1]) and curves["b"] == [(3, -math.inf)]


def test_a_continued_run_reads_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with monitor(tmp_path) as watch:
        for step in range(1, 9):
            watch.scalars({"loss": 10.0 + step}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # torn by a kill
    with monitor(tmp_path, resume_step=5) as watch:
        for step in range(6, 8):
            watch.scalars({"loss": 20.0 + step}, step)
    expected = [(1, 11.0), (2, 12.0), (3, 13.0), (4, 14.0), (5, 15.0), (6, 26.0), (7, 27.0)]
    assert curves_of_jsonl(tmp_path) == curves_of_events(tmp_path) == {"loss": expected}
    assert "warning: dropped 1 unreadable line(s)" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("*tmp*"))


def test_a_start_from_scratch_forgets_step_0_too(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with monitor(tmp_path) as watch:
            watch.scalars({"knn": value}, 0)
    assert curves_of_jsonl(tmp_path) == curves_of_events(tmp_path) == {"knn": [(0, 2.0)]}


def test_events_of_one_second_are_read_in_the_order_that_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ninth and the tenth writer of a process, whose files' names end in these numbers."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    for value in (1.0, 2.0):
        with monitor(tmp_path) as watch:
            watch.scalars({"knn": value}, 0)
    assert sorted(path.suffix for path in tmp_path.glob("events.*")) == [".10", ".9"]
    assert curves_of_events(tmp_path) == {"knn": [(0, 2.0)]}


def test_trimming_leaves_a_file_alone_that_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert trim_metrics(path, 5) == 0 and not path.exists()
    path.write_text('{"step": 4}\n{"step": 3}\n')
    before = path.stat().st_ino
    assert trim_metrics(path, 5) == 0 and path.stat().st_ino == before
    # Without its newline even a whole record is torn: the next one would be glued to it.
    path.write_text('{"step": 4}\nnonsense\n[1]\n{"step": 5}\n{"step": 3}')
    assert trim_metrics(path, 5) == 3 and path.read_text() == '{"step": 4}\n'


def test_kill_9_loses_seconds_at_most(tmp_path: Path) -> None:
    program = f"""
import os, signal, time
from pathlib import Path
from rmd_dist.runs import monitor
monitor.FLUSH_SECONDS = 0.5
watch = monitor.Monitor(Path({str(tmp_path)!r}), enabled=True, total_steps=9, title="x", resume_step=0)
watch.scalars({{"loss": 1.0}}, 1)
time.sleep(1.5)
watch.scalars({{"loss": 2.0}}, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert curves_of_jsonl(tmp_path) == {"loss": [(1, 1.0), (2, 2.0)]}
    assert curves_of_events(tmp_path)["loss"][0] == (1, 1.0)


def test_a_disabled_monitor_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with monitor(tmp_path / "run", enabled=False) as watch:
        watch.scalars({"loss": 1.0}, 1)
        watch.progress(1, 1.0, 0.1, 100.0)
        watch.images("views", [np.zeros((2, 8, 8, 3), np.uint8)], 1)
        watch.heatmap("graph/node", np.eye(3), 1, vmin=-1, vmax=1, title="node")
        watch.confusion("confusion", np.eye(3), "abc", 1)
        watch.hparams({"lr": 0.1}, {"accuracy": 1.0})
        watch.info("hello")
        watch.warning("hello")
        watch.table("title", ["a"], [[1]])
        watch.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_importing_the_monitor_is_quick() -> None:
    program = "import sys, rmd_dist.runs.monitor as m; print([n for n in %r if n in sys.modules])"
    heavy = ("tensorboard", "matplotlib", "rich", "PIL")
    done = subprocess.run(
        [sys.executable, "-c", program % (heavy,)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


# --- hparams ---


def session(folder: Path, tag: str) -> Any:
    content = events(folder).summary_metadata[tag].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_hparams_are_in_the_runs_own_events(tmp_path: Path) -> None:
    config = {"lr": np.float32(0.5), "K": 0, "path": Path("a/b"), "steps": (1, 2), "clip": None, "on": True}
    with monitor(tmp_path) as watch:
        watch.hparams(config, {})
        assert "_hparams_/session_end_info" not in events(tmp_path).summary_metadata
        watch.scalars({"loss": 1.0}, 40)
        watch.hparams(config, {"last": 0.75, "best": math.nan})
    values = session(tmp_path, "_hparams_/session_start_info").session_start_info.hparams
    assert (values["lr"].number_value, values["K"].number_value) == (0.5, 0.0)
    texts = {key: values[key].string_value for key in ("path", "steps", "clip", "on")}
    assert texts == {"path": "a/b", "steps": "(1, 2)", "clip": "None", "on": "True"}
    assert session(tmp_path, "_hparams_/session_end_info").HasField("session_end_info")
    # With an experiment summary TensorBoard would show one run's settings for all runs.
    assert "_hparams_/experiment" not in events(tmp_path).summary_metadata
    assert curves_of_events(tmp_path)["final/last"] == [(40, 0.75)]
    assert records(tmp_path)[-1]["final/last"] == 0.75
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(list(tmp_path.glob("events.*"))) == 1


# --- console ---


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    long = "a path: " + "x" * 300
    with monitor(tmp_path) as watch:
        watch.info("loader [bold]ffcv[/bold] [1, 2]")
        watch.info(long)
        for step in range(1, 101):
            watch.progress(step, 1.5, 0.03, 512.4)
        watch.warning("collapse")
        watch.table("Results", ["which", "accuracy"], [["last [0]", 0.81234], ["best", 1]])
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[:2] == ["loader [bold]ffcv[/bold] [1, 2]", long]
    assert lines[2].startswith("pretrain: step 1/100 (1 %), loss 1.5000, lr 0.03, 512 images/s")
    # One line each PLAIN_SECONDS, and the last step always.
    assert lines[3] == "pretrain: step 100/100 (100 %), loss 1.5000, lr 0.03, 512 images/s, 0:00:00 left"
    assert lines[4] == "warning: collapse"
    assert any(re.fullmatch(r"\s*last \[0\]\s+0\.8123", line) for line in lines)
    log = (tmp_path / "log.txt").read_text()
    assert "info: loader [bold]ffcv[/bold] [1, 2]\n" in log and "warning: collapse\n" in log
    assert re.search(r"last \[0\]\s+0\.8123\n", log)


def test_progress_lines_come_in_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    screen = Screen("x", 1000, stream)
    for step in range(11, 111):  # a second a step, resumed at step 10
        now[0] += 1
        screen.progress(step, 1.0, 0.1, 1.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == math.ceil(100 / console.PLAIN_SECONDS)
    assert lines[1].startswith("x: step 26/1000") and lines[1].endswith("0:16:14 left")  # 974 s


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "CI": "false"}, True),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_a_bar_needs_a_capable_terminal(
    variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert console.is_interactive(Terminal()) is expected
    assert not console.is_interactive(io.StringIO())


@pytest.mark.parametrize("width", [20, 40, 80, 140])
def test_the_bar_fits_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    screen = Screen("distill cifar10-gce-symmetric0.4-K0.001", 48000, stream)
    screen.progress(1200, 1.2345, 0.01, 5678.0)
    screen.line("between [brackets]")
    screen.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "between [brackets]" in lines
    bars = [line for line in lines if "loss 1.2345" in line]
    assert bars and all(len(line) <= width for line in bars)
    shown = bars[-1]
    for least, word in ((40, "1200/48000"), (80, "5678 img/s"), (80, "lr 0.01"), (140, "gce-symmetric")):
        assert (word in shown) == (width >= least), word


def test_what_the_bar_gives_up_first() -> None:
    figures = ["loss 1.0000", "0:10:00 left", "100 img/s", "lr 0.1"]
    shown = [fit("title", "1/9", figures, width) for width in (63, 62, 56, 48, 37, 23, 5)]
    assert [s["head"] for s in shown] == ["title 1/9", "1/9", "1/9", "1/9", "1/9", "", ""]
    assert [s["figures"].count("  ") + 1 for s in shown] == [4, 4, 3, 2, 1, 1, 1]


# --- pictures ---


def test_view_grid_enlarges_without_smoothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 255, (20, 32, 32, 3), dtype=np.uint8)
    with monitor(tmp_path) as watch:
        watch.images("views", [torch.from_numpy(first), 254 - first], 7)
    (event,) = events(tmp_path).Images("views")
    grid = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    cell, gap = 96, figures.GAP
    assert event.step == 7 and grid.shape == (2 * (cell + gap) + gap, 8 * (cell + gap) + gap, 3)
    for row, view in enumerate((first, 254 - first)):
        for column in range(8):
            top, left = row * (cell + gap) + gap, column * (cell + gap) + gap
            shown = grid[top : top + cell, left : left + cell]
            assert np.array_equal(shown, np.kron(view[column], np.ones((3, 3, 1), np.uint8)))
    assert (grid[:gap] == 255).all() and (grid[:, -gap:] == 255).all()


def middle_column(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(map(int, pixel)) for pixel in picture[:, picture.shape[1] // 3]}


def test_heatmap_shows_values_and_says_what_it_leaves_out() -> None:
    red, blue, dark = (103, 0, 31), (5, 48, 97), (68, 1, 84)  # ends of the colour maps
    low = figures.heatmap(-np.ones((8, 8)), vmin=-1, vmax=1, title="t")
    high = figures.heatmap(np.full((8, 8), 3.0), vmin=-1, vmax=1, title="t")
    assert blue in middle_column(low) and red not in middle_column(low)
    assert red in middle_column(high) and blue not in middle_column(high)
    assert dark in middle_column(figures.heatmap(np.zeros((8, 8)), vmin=0, vmax=1, title="t"))
    large = -np.ones((300, 300))
    large[256:] = large[:, 256:] = 1.0  # beyond what is shown
    cut = figures.heatmap(large, vmin=-1, vmax=1, title="t")
    assert red not in middle_column(cut)
    whole = figures.heatmap(-np.ones((256, 256)), vmin=-1, vmax=1, title="t")
    assert not np.array_equal(cut[: cut.shape[0] // 6], whole[: whole.shape[0] // 6])  # the title


@pytest.mark.parametrize("count", [2, 10, 100])
def test_confusion_matrix_is_whole(count: int) -> None:
    classes = CLASSES[:count] if count <= 10 else [f"class {i}" for i in range(count)]
    picture = figures.confusion_matrix(np.eye(count) * 50 + 1, classes, "confusion/test at step 400")
    border = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((edge == 255).all() for edge in border), "a label is cut off at the border"
    assert picture.std() > 10


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    with monitor(tmp_path) as watch:
        watch.heatmap("graph/node", torch.eye(5), 2, vmin=-1, vmax=1, title="node")
        watch.confusion("confusion/test", np.eye(10, dtype=np.int64), CLASSES, 3)
    accumulator = events(tmp_path)
    assert sorted(accumulator.Tags()["images"]) == ["confusion/test", "graph/node"]
    assert [e.step for e in accumulator.Images("confusion/test")] == [3]


def test_names_with_dollar_signs_are_drawn_as_they_are():
    picture = figures.confusion_matrix(np.eye(2), ["c$_{x$ d", "b"], "own$_{$")
    assert picture.shape[2] == 3 and picture.std() > 10
