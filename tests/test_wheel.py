"""Installed from a wheel, without the checkout: every command and preset is there, in any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 300.0  # seconds of one command; the first of each stage compiles its augmentation
SMALL = (
    "--loader memory --cpu --data.train_samples 320 --data.test_samples 96 --eval.train_samples 96 "
    "--max-steps 3 --workers 1 --threads 1"
).split()
STUDY = """
name: small
extends: {preset}
losses: [ce]
methods: {{"+RMDNet": {{K: 2}}}}
noise: {{symmetric: [0.4]}}
seeds: [0]
clean: false
pretrain: {{data: {{train_samples: 320, test_samples: 96}}, run: {{max_steps: 3}}}}
distill: {{data: {{train_samples: 320, test_samples: 96}}, run: {{max_steps: 3}}}}
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints that must succeed, in a folder and an environment that know no checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> None:
    """The running interpreter's pip, without network."""
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", *words, *options, cwd=cwd)


def environment(folder: Path, *installed: str | Path) -> Path:
    """A fresh environment with the project in it; its bin folder.

    The packages that the project needs are those of the running interpreter. Their folder stands in a .pth
    file, which makes its modules importable but does not read its own .pth files: an editable install of the
    project that is among them stays out.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", folder / "bin/python", "install", *installed, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("build") / "source"
    for name in ("rmd_dist", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Built as a release is: from a source distribution."""
    code = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", code, cwd=source)
    (archive,) = source.parent.glob("*.tar.gz")
    pip("wheel", "--wheel-dir", source.parent, archive, cwd=source.parent)
    (path,) = source.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def rmd(wheel: Path) -> Callable[..., str]:
    """`rmd(...)`: what the installed command prints, in a folder that was empty at first."""
    bin_folder = environment(wheel.parent / "venv", wheel)
    (wheel.parent / "anywhere").mkdir()
    return lambda *words: run(bin_folder / "rmd", *words, cwd=wheel.parent / "anywhere")


def test_a_wheel_has_all_that_is_read(source: Path, wheel: Path) -> None:
    """Presets and their teacher, tables, templates; the same from the tree as from the source archive."""
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if name.startswith("rmd_dist/")}
    presets = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*") if path.is_file()}
    wanted = {f"rmd_dist/presets/{path}" for path in presets}
    for path in (ROOT / "rmd_dist").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and "presets" not in path.parts:
            wanted.add(str(path.relative_to(ROOT)))
    assert packed == wanted
    direct = source.parent / "direct"
    pip("wheel", "--wheel-dir", direct, source, cwd=source.parent)
    with zipfile.ZipFile(next(direct.iterdir())) as file:
        assert {name for name in file.namelist() if name.startswith("rmd_dist/")} == packed


def test_an_editable_install_finds_presets(source: Path) -> None:
    bin_folder = environment(source.parent / "editable", "--editable", source)
    found = run(bin_folder / "rmd", "--presets", "digits/distill", cwd=source.parent)
    assert Path(found.strip()).resolve() == (source / "configs/digits/distill.yaml").resolve()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_digits_path_from_any_folder(rmd: Callable[..., str], wheel: Path) -> None:
    """Pretraining, distillation, figures, a comparison, a study and its report, by names of presets."""
    here = wheel.parent / "anywhere"
    python = wheel.parent / "venv/bin/python"
    package, *path = run(
        python, "-c", "import rmd_dist, sys; print(rmd_dist.__file__, *sys.path, sep='\\n')", cwd=here
    ).splitlines()
    assert Path(package).is_relative_to(wheel.parent / "venv")
    others = Path(sysconfig.get_path("purelib"))
    assert not [p for p in path if p and Path(p) != others and Path(p).is_relative_to(ROOT)]

    rmd("pretrain", "--config", "digits/pretrain", "--name", "t", *SMALL)
    rmd("distill", "--config", "digits/distill", "--name", "s", *SMALL)
    assert "accuracy" in rmd(
        "evaluate", "runs/distill/s", "--loader", "memory", "--cpu", "--test_samples", "96"
    )
    assert re.search(
        r"s\s+finished\s+test/accuracy\s+\d", rmd("compare", "runs/distill/s", "runs/pretrain/t")
    )

    (here / "small.yaml").write_text(STUDY.format(preset=rmd("--presets", "digits/study").strip()))
    said = rmd("study", "small.yaml", "--loader", "memory", "--cpu", "--threads", "1")
    assert "2 finished" in said
    assert "2 of 2 cells have finished" in rmd("report", "studies/small")
    assert {folder.name for folder in here.iterdir()} == {"runs", "small.yaml", "studies"}


def test_a_study_by_name_finds_its_teacher(rmd: Callable[..., str]) -> None:
    """The kept teacher lies beside the preset, in the package."""
    assert "75 cells" in rmd("study", "paper/reduced/table1", "--dry-run", "--step-seconds", "0.02")
