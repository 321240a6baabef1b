"""The commands: a mistake is one line on stderr with exit code 2, and nothing is made or overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rmd_dist.data.prepare import prepare
from tests.data.archives import cifar10, write_tar

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds of one command
ALONE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    changed: list[str]
    """Files and folders that were made, changed or deleted."""

    def files(self) -> list[str]:
        """Those that are files with content: a lock that was held may stay."""
        return [name for name in self.changed if not name.endswith(("/", ".lock"))]


def snapshot(folder: Path) -> dict[str, str]:
    """Path below `folder` -> digest of the file; folders end in a slash."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[f"{name}/"] = ""
    return found


class Command:
    """`python launch/NAME.py ...` in a folder of its own, started at once."""

    def __init__(self, folder: Path, script: str, *words: str) -> None:
        self.folder, self.before = folder, snapshot(folder)
        environment = {k: v for k, v in os.environ.items() if k not in ALONE}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / f"{script}.py"), *words],
            cwd=folder,
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def outcome(self) -> Outcome:
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
        after = snapshot(self.folder)
        changed = sorted(k for k in after.keys() | self.before.keys() if after.get(k) != self.before.get(k))
        return Outcome(self.process.returncode, out, err, changed)


def assert_refused(outcome: Outcome, *named: str) -> None:
    """Exit code 2, one line `error: ...` on stderr that has all of `named`, no traceback anywhere."""
    lines = outcome.err.splitlines()
    assert outcome.code == 2 and len(lines) == 1, (outcome.code, outcome.err)
    assert lines[0].startswith("error: ") and "Traceback" not in outcome.out
    for part in named:
        assert part in lines[0], (part, lines[0])


HELP = """
import contextlib, io, runpy, sys
sys.argv = [sys.argv[1], "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    runpy.run_path(sys.argv[0], run_name="__main__")
heavy = [m for m in ("torch", "timm", "accelerate", "torchvision", "sklearn", "ffcv") if m in sys.modules]
print(out.getvalue(), heavy)
"""


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("pretrain", "--optim.epochs"),
        ("distill", "--student_init"),
        ("evaluate", "--knn_k"),
        ("prepare", "--source"),
        ("compare", "--plot"),
        ("study", "--dry-run"),
    ],
)
def test_help_is_quick(script, shown):
    """Quick means: without torch and what else takes seconds to import."""
    path = str(ROOT / "launch" / f"{script}.py")
    done = subprocess.run(
        [sys.executable, "-c", HELP, path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0 and shown in done.stdout, done.stderr
    assert done.stdout.strip().endswith("[]"), done.stdout[-100:]


@pytest.mark.parametrize(
    ("script", "words", "named"),
    [
        ("pretrain", ["--lr", "fast"], ["optim.lr", "fast", "float"]),
        ("distill", ["--noise-rate", "1.5"], ["noise.rate", "1.5", "0 to 1"]),
        ("distill", ["--config", "bad.yaml"], ["optim.speed"]),
        ("evaluate", ["--frobnicate", "1"], ["frobnicate", "--help"]),
        ("study", ["bad.yaml"], ["bad.yaml", "optim"]),
        ("study", ["nowhere.yaml"], ["nowhere.yaml", "neither a file nor a preset"]),
        ("pretrain", ["--dataset", "mnist"], ["'mnist'", "cifar10, cifar100, digits"]),
        ("evaluate", ["x", "--dataset", "mnist"], ["'mnist'", "cifar10, cifar100, digits"]),
        ("prepare", ["--dataset", "mnist"], ["'mnist'", "cifar10, cifar100, digits"]),
        ("prepare", ["--dataset", "cifar10", "--source", "nowhere"], ["nowhere"]),
        ("prepare", ["--dataset", "cifar10", "--source", "empty.tar.gz"], ["empty.tar.gz"]),
        ("prepare", ["--dataset", "cifar10", "--source", "cut.tar.gz"], ["cut.tar.gz"]),
        ("prepare", ["--dataset", "cifar10", "--source", "."], ["cifar"]),
        ("prepare", ["noise", "--dataset", "digits", "--rate", "2"], ["rate", "2"]),
        ("prepare", ["noise", "--dataset", "digits", "--protocol", "sym"], ["sym", "symmetric-inclusive"]),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else value,
)
def test_a_mistake_costs_one_line_and_no_file(script, words, named, tmp_path):
    (tmp_path / "bad.yaml").write_text("optim: {speed: 3}\n")
    (tmp_path / "empty.tar.gz").write_bytes(b"")
    whole = write_tar(tmp_path / "cut.tar.gz", cifar10())
    whole.write_bytes(whole.read_bytes()[:3000])
    outcome = Command(tmp_path, script, *words).outcome()
    assert_refused(outcome, *named)
    assert outcome.files() == []


# Short, should one of them start after all.
DIGITS = "--dataset digits --model resnet18_cifar_w16 --cpu true --workers 1 --max-steps 1".split()
LATER = {
    "no teacher": ("distill", [*DIGITS, "--loader", "memory"]),
    "a damaged beton": ("distill", [*DIGITS, "--teacher", "random"]),
    "a wrong model": ("evaluate", ["nowhere/at/all"]),
    "no run": ("compare", ["nowhere", "--plot", "curves.png"]),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Commands that import torch before they can know: two at a time."""
    damaged = tmp_path_factory.mktemp("damaged")
    prepare("digits", damaged / "data")
    beton = damaged / "data" / "digits_train.beton"
    content = bytearray(beton.read_bytes())
    content[len(content) // 2] ^= 1
    beton.write_bytes(content)
    found, waiting = {}, list(LATER.items())
    while waiting:
        pair, waiting = waiting[:2], waiting[2:]
        started = {}
        for name, (script, words) in pair:
            folder = damaged if name == "a damaged beton" else tmp_path_factory.mktemp(name.replace(" ", "-"))
            started[name] = Command(folder, script, *words)
        found |= {name: command.outcome() for name, command in started.items()}
    return found


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("no teacher", ["no finished run of digits", "rmd pretrain", "--teacher PATH", "--K 0"]),
        ("a damaged beton", ["digits_train.beton", "SHA-256", "rmd prepare"]),
        ("a wrong model", ["nowhere/at/all does not exist"]),
        ("no run", ["nowhere is not a run folder"]),
    ],
)
def test_what_is_missing_or_damaged_is_told_in_one_line(name, named, outcomes):
    assert_refused(outcomes[name], *named)
    assert outcomes[name].files() == []


@pytest.mark.parametrize("name", ["no teacher", "a damaged beton"])
def test_a_refused_start_leaves_no_run_folder(name, outcomes):
    assert set(outcomes[name].changed) <= {"runs/", "runs/distill/"}


@pytest.fixture
def here(monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Run a script in this process, which has torch already: (exit code, stderr)."""
    from accelerate.state import AcceleratorState, GradientState

    def call(script: str, *words: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        path = str(ROOT / "launch" / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        return ended.value.code, capfd.readouterr().err

    return call


def test_evaluating_nothing_says_how(here):
    code, err = here("evaluate", "--cpu", "true")
    assert code == 2 and err == "error: no checkpoint given; use: rmd evaluate RUN_FOLDER_OR_FILE\n"


def exported_in(folder: Path) -> Path:
    from rmd_dist.models.export import create, export

    name = "resnet18_cifar_w16"
    export(folder, create(name, 10), name, 10, {"dataset": "digits"})
    return folder


def test_figures_are_written(here, tmp_path):
    out = tmp_path / "figures.json"
    words = f"{exported_in(tmp_path)} --loader memory --test_samples 9 --cpu true --out {out}"
    assert here("evaluate", *words.split())[0] == 0
    figures = json.loads(out.read_text())
    assert sum(map(sum, figures["confusion"])) == 9 and 0 <= figures["figures"]["accuracy"] <= 1


def test_figures_for_a_folder_that_is_missing(here, tmp_path):
    """Made, or refused in one line: not a traceback after the work is done."""
    out = tmp_path / "new" / "figures.json"
    words = f"{exported_in(tmp_path)} --loader memory --test_samples 9 --cpu true --out {out}"
    code, err = here("evaluate", *words.split())
    assert (code == 0 and out.exists()) or (code == 2 and err.startswith("error: "))


def test_runs_are_compared(tmp_path):
    """Each figure under its own heading; a run without one gets a dash."""
    for name, results in (("a", {"last": 0.5, "best_on_test": 0.75}), ("b", {})):
        (tmp_path / name).mkdir()
        found = {kind: {"tag": "test/accuracy", "value": v, "step": 3} for kind, v in results.items()}
        manifest = {"status": "finished" if found else "running", "results": found}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    outcome = Command(tmp_path, "compare", "a", "b").outcome()
    assert outcome.code == 0 and outcome.changed == [], outcome.err
    first, second = (
        next(line for line in outcome.out.splitlines() if line.split()[:1] == [name]) for name in "ab"
    )
    cells = [cell.strip() for cell in re.split(r"\s{2,}", first) if cell.strip()]
    assert cells == ["a", "finished", "test/accuracy", "50.00 %", "-", "75.00 %"]
    assert "running" in second and "%" not in second
