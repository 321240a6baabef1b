"""prepare, open_dataset and launch/prepare.py: one process builds, nothing intact is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.prepare import open_dataset, prepare
from rmd_dist.data.sources.beton import beton_path, check_beton
from rmd_dist.errors import ConfigError
from rmd_dist.files import exclusive

from .archives import cifar10, write_folder, write_tar

REPOSITORY = Path(__file__).parents[2]


def listing(root: Path) -> dict[str, tuple[int, bytes]]:
    """Each visible file of a folder, with its time and content."""
    files = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", cifar10())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_prepare_writes_both_splits_once(root: Path, source: Path) -> None:
    prepare("cifar10", root, source)
    before = listing(root)
    assert list(before) == [
        "cifar10_test.beton", "cifar10_test.json", "cifar10_train.beton", "cifar10_train.json"
    ]  # fmt: skip
    prepare("cifar10", root, source)
    prepare("cifar10", root)
    assert listing(root) == before


def test_both_loaders_get_the_same_samples(root: Path, source: Path) -> None:
    for split, count in (("train", 50), ("test", 20)):
        mapped = open_dataset("cifar10", split, root=root, source=source)
        held = open_dataset("cifar10", split, root=root, source=source, loader="memory")
        back = open_dataset("cifar10", split, root=root, loader="memory")  # from the beton
        assert len(mapped) == len(held) == count
        assert mapped.beton == beton_path(root, "cifar10", split)
        assert mapped.images is None
        assert held.beton is None
        assert held.images is not None
        assert back.images is not None
        np.testing.assert_array_equal(mapped.labels, held.labels)
        np.testing.assert_array_equal(back.images, held.images)
        assert mapped.sha256 == held.sha256 == back.sha256 != ""


def test_memory_writes_nothing(root: Path, source: Path) -> None:
    open_dataset("cifar10", "train", root=root, source=source, loader="memory")
    assert not root.exists()


def test_digits_need_no_source(root: Path) -> None:
    data = open_dataset("digits", "test", root=root)
    assert data.info is dataset_info("digits")
    assert len(data) == 360
    assert check_beton(beton_path(root, "digits", "train")).image_size == 16


def test_a_missing_split_is_added_without_touching_the_other(root: Path, source: Path) -> None:
    prepare("cifar10", root, source)
    train = listing(root)["cifar10_train.beton"]
    beton_path(root, "cifar10", "test").unlink()
    prepare("cifar10", root, source)
    assert listing(root)["cifar10_train.beton"] == train
    assert "cifar10_test.beton" in listing(root)


def test_the_same_samples_in_another_form_are_fine(root: Path, source: Path, tmp_path: Path) -> None:
    prepare("cifar10", root, source)
    prepare("cifar10", root, write_tar(tmp_path / "x.tgz", cifar10()))


def test_another_source_is_refused(root: Path, source: Path, tmp_path: Path) -> None:
    prepare("cifar10", root, source)
    other = write_folder(tmp_path / "other", cifar10(seed=5))
    before = listing(root)
    with pytest.raises(ConfigError, match=r"cifar10_train.beton was written from .*leave --source out"):
        prepare("cifar10", root, other)
    # Nor are the two splits ever mixed from two sources.
    beton_path(root, "cifar10", "test").unlink()
    with pytest.raises(ConfigError, match=r"cifar10_train.beton was written from"):
        prepare("cifar10", root, other)
    assert set(before) - set(listing(root)) == {"cifar10_test.beton"}


def test_damage_is_refused_and_left_alone(root: Path, source: Path) -> None:
    prepare("cifar10", root, source)
    path = beton_path(root, "cifar10", "train")
    content = path.read_bytes()
    for spoilt in (content[:-24], content[:-1] + b"x", b""):
        path.write_bytes(spoilt)
        for loader in ("ffcv", "memory"):
            with pytest.raises(ConfigError, match=r"cifar10_train.beton .*; delete it and run rmd prepare"):
                open_dataset("cifar10", "train", root=root, loader=loader)
        assert path.read_bytes() == spoilt
    path.unlink()  # the remedy
    prepare("cifar10", root, source)
    assert path.read_bytes() == content


def test_a_beton_of_another_name_is_refused(root: Path, source: Path) -> None:
    prepare("cifar10", root, source)
    for suffix in (".beton", ".json"):
        path = beton_path(root, "cifar10", "train").with_suffix(suffix)
        path.write_bytes(beton_path(root, "cifar10", "test").with_suffix(suffix).read_bytes())
    with pytest.raises(ConfigError, match="holds cifar10 test, not cifar10 train; delete it"):
        prepare("cifar10", root)


def test_a_bad_source_writes_no_beton(root: Path, source: Path) -> None:
    (source / "cifar-10-batches-py/test_batch").write_bytes(b"")
    with pytest.raises(ConfigError, match="test_batch is damaged"):
        prepare("cifar10", root, source)
    assert "cifar10_test.beton" not in listing(root)


def test_bad_names(root: Path) -> None:
    with pytest.raises(ConfigError, match="dataset 'mnist' is unknown"):
        prepare("mnist", root)
    with pytest.raises(ConfigError, match="loader 'disk' is unknown"):
        open_dataset("digits", "train", root=root, loader="disk")  # type: ignore[arg-type]
    assert not root.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*choose another folder"):
        prepare("cifar10", tmp_path / "file", source)


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE)


SLOW = """
import sys, time
from pathlib import Path
from rmd_dist.data.prepare import prepare
def slow(what, done, total):
    print(what, flush=True)
    time.sleep(0.3 if total else 0)
prepare("cifar10", Path({root!r}), Path({source!r}), progress=slow)
"""


def test_one_process_builds_and_the_others_wait(root: Path, source: Path) -> None:
    code = SLOW.format(root=str(root), source=str(source))
    processes = [start(code) for _ in range(3)]
    output = "".join(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert output.count("cifar10_train.beton") == output.count("cifar10_test.beton") == 1
    assert output.count("waiting for the process that writes") >= 1


def test_a_killed_builder_frees_the_others(root: Path, source: Path) -> None:
    builder = start(SLOW.format(root=str(root), source=str(source)).replace("0.3", "60"))
    assert builder.stdout is not None
    while "beton" not in builder.stdout.readline():
        pass
    assert not beton_path(root, "cifar10", "train").exists()
    waiter = start(SLOW.format(root=str(root), source=str(source)))
    assert waiter.stdout is not None
    assert "waiting" in waiter.stdout.readline()
    builder.send_signal(signal.SIGKILL)
    assert waiter.wait(timeout=60) == 0
    builder.communicate()
    waiter.communicate()
    check_beton(beton_path(root, "cifar10", "train"))
    assert not [path for path in root.iterdir() if path.suffix == ".tmp"]


def test_lock_excludes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    order: list[str] = []

    def second() -> None:
        with exclusive(path, lambda: order.append("waits")):
            order.append("second")

    with exclusive(path):
        thread = threading.Thread(target=second)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("first is done")
    thread.join()
    assert order == ["waits", "first is done", "second"]


def script(*args: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "launch/prepare.py", *map(str, args)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=60
    )


def test_script(root: Path, source: Path) -> None:
    done = script("--dataset", "cifar10", "--source", source, "--out", root)
    assert done.returncode == 0, done.stderr
    assert f"{root}/cifar10_train.beton: 50 images from {source}/cifar-10-batches-py, intact" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr  # plain lines where there is no terminal

    done = script("noise", "--dataset", "cifar10", "--protocol", "pairflip", "--rate", "1", "--out", root)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout[: done.stdout.index("}") + 1])
    assert (manifest["protocol"], manifest["realised_rate"]) == ("pairflip", 1)
    ships = (open_dataset("cifar10", "train", root=root).labels == 8).sum()
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["ship"])
    assert row.split() == ["ship", *"000000000", str(ships)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "cifar10", "--source", "nowhere"], "error: source nowhere does not exist; give"),
        (["noise", "--dataset", "digits", "--protocol", "asymmetric"], "is not defined for digits"),
        (["noise", "--dataset", "digits", "--rate", "2"], "noise rate 2.0 is not in"),
    ],
)
def test_script_says_what_is_wrong_in_one_line(root: Path, args: list[str], message: str) -> None:
    done = script(*args, "--out", root)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not root.exists() or not listing(root)
