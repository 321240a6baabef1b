"""What the repository promises about itself: one set-up, pinned versions, no traces of a machine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GENERATED = {"build", "dist", "data", "runs"}


def project_files() -> Iterator[Path]:
    """Files that are, or would be, committed; without git, all but hidden and generated ones."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / line for line in listing.stdout.splitlines()]
    else:
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)
            and path.relative_to(ROOT).parts[0] not in GENERATED
        ]
    yield from (path for path in paths if path.is_file())


def texts() -> Iterator[tuple[str, str]]:
    """(name, content) of every text file."""
    for path in project_files():
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def occurrences(pattern: str) -> list[str]:
    """`name:line: text` of every match, this file left out."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts()
        if name != "tests/test_house.py"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def project() -> dict[str, object]:
    data: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return data


def pins() -> dict[str, str]:
    """Package -> version of constraints.txt; every line must be an exact version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert not [line for line in wanted if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in wanted)}


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", str(ROOT / "scripts" / name), *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_dependency_is_pinned() -> None:
    """Each requirement of pyproject.toml, extras included, has a fitting version in constraints.txt."""
    data = project()
    extras = data["optional-dependencies"]
    assert isinstance(extras, dict)
    found = pins()
    for line in [*data["dependencies"], *(line for extra in extras.values() for line in extra)]:  # type: ignore[misc]
        requirement = Requirement(line)
        version = found.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version), (
            f"constraints.txt has {version}, pyproject.toml {line}"
        )


def test_one_version_everywhere() -> None:
    """pyproject.toml, the package, CITATION.cff and the newest entry of CHANGELOG.md agree."""
    import rmd_dist

    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest
    assert {project()["version"], newest[1], citation["version"]} == {rmd_dist.__version__}


def test_no_traces_of_a_machine() -> None:
    """No path of somebody's machine; files name what lies beside them."""
    assert not occurrences(r"(?<![\w.])/(work|root|home|Users|opt|mnt|scratch)/\w")


def test_no_registry_hosts() -> None:
    """Where packages come from is the machine's own setting."""
    assert not occurrences(
        r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian|archive\.ubuntu|download\.pytorch"
    )


def test_no_mail_addresses() -> None:
    """Of nobody."""
    mail = re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}")
    suffixes = {".md", ".cff", ".toml", ".yaml", ".txt", ""}
    assert not [name for name, text in texts() if Path(name).suffix in suffixes and mail.search(text)]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_mappings(path: Path) -> None:
    """Every YAML file under configs loads, says something, and opens with a comment on what it is for."""
    text = path.read_text()
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    assert loaded
    assert text.startswith("#")


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml"],
    ids=lambda p: p.name,
)
def test_files_of_the_code_host_parse(path: Path) -> None:
    """A workflow or a form that does not parse is passed over there without a word."""
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_scripts_are_thin(path: Path) -> None:
    """An entry script parses, builds, runs and closes."""
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("folder", ["rmd_dist", "launch"])
def test_no_file_is_huge(folder: str) -> None:
    """A file is one idea, most are under 300 lines; past this length it has become several."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > 400}


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "scripts").glob("*.sh")), *(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"],
    ids=lambda path: path.name,
)
def test_scripts_are_sound(path: Path) -> None:
    """Executable, stop at the first error, and parse."""
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH of a machine with Python, apt and an ordinary user, but without compiler and sudo."""
    for tool in ("bash", "cat", "dirname", "env", "mktemp", "rm", "sha256sum", "xargs"):
        found = shutil.which(tool)
        assert found, tool
        (tmp_path / tool).symlink_to(found)
    (tmp_path / "python3").symlink_to(sys.executable)
    for name, body in {"id": "echo 1000", "apt-get": "echo called >&2; exit 9"}.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_system_packages_need_root(bare_path: Path) -> None:
    """Without root and sudo the script installs nothing, and says what to install and how to do without."""
    done = run_script("install-system.sh", PATH=str(bare_path))
    assert done.returncode == 1
    assert "called" not in done.stderr
    assert "libopencv-core-dev" in done.stderr
    assert "FFCV=0" in done.stderr


def test_system_packages_need_apt(bare_path: Path) -> None:
    """On another system it names what ffcv needs, in words."""
    (bare_path / "apt-get").unlink()
    done = run_script("install-system.sh", PATH=str(bare_path))
    assert done.returncode == 1
    assert "OpenCV" in done.stderr


def test_old_python_is_refused(bare_path: Path, tmp_path: Path) -> None:
    """One line, with the remedy; a copy of the scripts, so that the .venv of this run is left alone."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    (bare_path / "old").write_text(f"#!{shutil.which('bash')}\nexit 1\n")
    (bare_path / "old").chmod(0o755)
    done = subprocess.run(
        ["bash", str(copy / "scripts" / "setup-venv.sh")],
        env=os.environ | {"PATH": str(bare_path), "PYTHON": "old"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (copy / ".venv").exists()


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_documents_are_finished(path: Path) -> None:
    """No place is left to be filled in."""
    text = path.read_text()
    assert "@@" not in text and "TODO" not in text
    assert not [line for line in text.splitlines() if line.isupper() and line.isalpha()]
