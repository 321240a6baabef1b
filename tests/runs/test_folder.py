"""Run folders: names, what may continue in one, one job at a time, and which pretraining is found."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.cli import parse
from rmd_dist.errors import ConfigError
from rmd_dist.files import sha256, write_json
from rmd_dist.runs.folder import RunFolder, default_name, newest_finished, read_manifest, results_of


def distill(root: Path, *words: str) -> RunFolder:
    return RunFolder(parse(DistillConfig, ["--runs", str(root), "--name", "a", *words]))


def begun(root: Path, *words: str) -> Path:
    """A run that was started and has ended."""
    folder = distill(root, *words)
    folder.open()
    folder.update(status="finished", step=7)
    return folder.path


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "cifar10-resnet18_cifar-ce-symmetric0.4-K1-seed0"),
        (["--loss", "gce", "--K", "0.001"], "cifar10-resnet18_cifar-gce-symmetric0.4-K0.001-seed0"),
        (["--K", "0", "--seed", "3"], "cifar10-resnet18_cifar-ce-symmetric0.4-K0-seed3"),
        (["--noise", "none"], "cifar10-resnet18_cifar-ce-none-K1-seed0"),
        (["--noise", "human:worse_label"], "cifar10-resnet18_cifar-ce-human-worse_label-K1-seed0"),
        (
            ["--dataset", "digits", "--teacher", "random", "--noise-rate", "0.25"],
            "digits-resnet18_cifar-ce-symmetric0.25-K1-random-teacher-seed0",
        ),
    ],
)
def test_default_names_tell_runs_apart(words, name):
    assert default_name(parse(DistillConfig, words)) == name


def test_the_folder_is_root_stage_name(tmp_path):
    assert default_name(parse(PretrainConfig, ["--seed", "2"])) == "cifar10-resnet18_cifar-seed2"
    other = parse(PretrainConfig, ["--objective", "simclr"])
    assert default_name(other) == "cifar10-resnet18_cifar-simclr-seed0"
    config = parse(PretrainConfig, ["--runs", str(tmp_path), "--name", "mine"])
    assert RunFolder(config).path == tmp_path / "pretrain" / "mine"
    assert distill(tmp_path).path == tmp_path / "distill" / "a"


def test_the_manifest_keeps_what_was_told_and_the_yaml_starts_the_same_run(tmp_path):
    path = begun(tmp_path, "--loss", "gce")
    folder = distill(tmp_path, "--loss", "gce")
    folder.update(results={"last": 1})
    manifest = read_manifest(path)
    assert (manifest["status"], manifest["step"], manifest["results"]) == ("finished", 7, {"last": 1})
    assert (manifest["stage"], manifest["dataset"], manifest["model"]) == (
        "distill",
        "cifar10",
        "resnet18_cifar",
    )
    assert manifest["config"]["loss"] == "gce" and "torch" in manifest["versions"]
    assert parse(DistillConfig, ["--config", str(path / "config.yaml")]) == folder.config


def test_another_configuration_is_refused_with_all_differences(tmp_path):
    path = begun(tmp_path)
    before = (path / "manifest.json").read_text()
    words = ["--lr", "0.5", "--loss", "gce", "--loss_options.q", "0.5", "--noise-seed", "4"]
    with pytest.raises(ConfigError) as caught:
        distill(tmp_path, *words).open()
    message = str(caught.value)
    for part in ("optim.lr: 0.001 -> 0.5", "loss: ce -> gce", "loss_options.q: None -> 0.5"):
        assert part in message
    assert "noise.seed: 0 -> 4" in message and "--name" in message and "\n" not in message
    assert (path / "manifest.json").read_text() == before


def test_where_and_how_often_may_change(tmp_path):
    begun(tmp_path)
    free = (
        "--data.root elsewhere --source x --loader memory --workers 3 --test_samples 9 --max-steps 5 "
        "--cpu true --log-every 3 --eval.every_epochs 4 --checkpoint.keep 9 --checkpoint.every_steps 2 "
        "--compile true"
    )
    folder = distill(tmp_path, *free.split())
    folder.open()
    folder.update(status="running")
    del folder
    gc.collect()
    distill(tmp_path).open()


def test_never_refuses_an_existing_run(tmp_path):
    distill(tmp_path, "--resume", "never").open()
    gc.collect()
    begun(tmp_path)
    with pytest.raises(ConfigError, match="resume = never"):
        distill(tmp_path, "--resume", "never").open()


HOLD = """
import sys, time
from tests.runs.test_folder import distill
from pathlib import Path
folder = distill(Path(sys.argv[1]))
folder.open()
print("open", flush=True)
time.sleep(60)
"""


def test_a_second_job_on_the_same_folder_is_refused_until_the_first_has_gone(tmp_path):
    root = Path(__file__).parents[2]
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        late = distill(tmp_path)
        with pytest.raises(ConfigError, match="in use by another job"):
            late.open()
        late.discard_if_empty()
        assert (late.path / ".lock").exists()
        distill(tmp_path, "--name", "b").open()
    finally:
        first.kill()  # no chance to tidy up: the lock must go with the process
        first.communicate()
    distill(tmp_path).open()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_manifest_is_told_and_left(text, tmp_path):
    path = begun(tmp_path) / "manifest.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged") as caught:
        distill(tmp_path).open()
    assert "\n" not in str(caught.value) and path.read_text() == text


def test_a_root_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match=r"cannot write to .*--runs"):
        distill(tmp_path / "runs").open()


def pretrained(root: Path, name: str, day: int, **changes: object) -> Path:
    folder = root / "pretrain" / name
    folder.mkdir(parents=True)
    manifest = {"status": "finished", "dataset": "digits", "model": "m", "complete": True}
    times = {"finished": f"2024-05-{day:02d}T01:02", "updated": f"2024-06-{30 - day:02d}T01:02"}
    write_json(folder / "manifest.json", manifest | times | changes)
    return folder


def test_the_newest_finished_pretraining_that_fits_is_found(tmp_path):
    """Newest by its end, not by when it was last opened; cut-short ones only without a whole one."""
    assert newest_finished(tmp_path, "digits", "m") is None
    pretrained(tmp_path, "unfinished", 9, status="running")
    pretrained(tmp_path, "other-data", 9, dataset="cifar10")
    pretrained(tmp_path, "other-model", 9, model="m2")
    (tmp_path / "pretrain" / "empty").mkdir()
    student = tmp_path / "distill" / "student"
    student.mkdir(parents=True)
    write_json(student / "manifest.json", {"status": "finished", "dataset": "digits", "model": "m"})
    assert newest_finished(tmp_path, "digits", "m") is None
    short = pretrained(tmp_path, "cut-short", 8, complete=False)
    assert newest_finished(tmp_path, "digits", "m") == short
    newest = None
    for name, day in (("z", 2), ("b", 3), ("y", 4), ("c", 1)):
        folder = pretrained(tmp_path, name, day)
        newest = folder if day > 1 else newest
        assert newest_finished(tmp_path, "digits", "m") == newest


def test_the_newest_is_newest_wherever_clocks_are_set(tmp_path):
    """Instants, not texts: 10:30 in New York is after 15:00 in Berlin, and after 16:00 of the older form."""
    pretrained(tmp_path, "berlin", 1, finished="2026-03-29T15:00:00.000+02:00")
    pretrained(tmp_path, "older-form", 1, finished="2026-03-29T16:00:00+0200")
    newest = pretrained(tmp_path, "new-york", 1, finished="2026-03-29T10:30:00.000-04:00")
    pretrained(tmp_path, "no-time", 1, finished="yesterday")
    assert newest_finished(tmp_path, "digits", "m") == newest


def taught(root: Path, teacher: Path, content: str = "weights") -> RunFolder:
    """A run that has begun with a teacher."""
    teacher.parent.mkdir(parents=True, exist_ok=True)
    teacher.write_text(content)
    folder = distill(root)
    folder.open()
    folder.begin(0, teacher=str(teacher), teacher_sha256=sha256(teacher))
    folder.close()
    return folder


def test_a_teacher_is_found_where_it_has_moved_along(tmp_path):
    """In the same runs/ or beside them; by its content where another file lies in its old place."""
    for number, place in enumerate(("runs/pretrain/p", "encoders")):
        before, after = tmp_path / f"before{number}", tmp_path / f"after{number}"
        taught(before / "runs", before / place / "model.safetensors")
        before.rename(after)
        assert distill(after / "runs").teacher() == after / place / "model.safetensors"
        (before / place).mkdir(parents=True)
        (before / place / "model.safetensors").write_text("another's")
        assert distill(after / "runs").teacher() == after / place / "model.safetensors"


def test_a_teacher_of_a_run_that_recorded_only_its_path_is_found(tmp_path):
    folder = taught(tmp_path / "a", tmp_path / "a" / "pretrain" / "p" / "model.safetensors")
    manifest = read_manifest(folder.path)
    del manifest["teacher_from_run"]
    write_json(folder.path / "manifest.json", manifest)
    (tmp_path / "a").rename(tmp_path / "b")
    assert distill(tmp_path / "b").teacher() == tmp_path / "b" / "pretrain" / "p" / "model.safetensors"


def test_a_teacher_that_has_gone_is_asked_for_and_taken_by_its_content(tmp_path):
    teacher = tmp_path / "elsewhere" / "model.safetensors"
    taught(tmp_path / "runs", teacher)
    moved = teacher.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ConfigError, match=r"is not there; give --teacher PATH .*SHA-256"):
        distill(tmp_path / "runs").teacher()
    folder = distill(tmp_path / "runs", "--teacher", str(moved))
    folder.open()
    folder.refuse_other(teacher_sha256=sha256(moved))
    with pytest.raises(ConfigError, match="teacher_sha256"):
        folder.refuse_other(teacher_sha256="another's")
    folder.close()
    with pytest.raises(ConfigError, match="teacher: None -> random"):
        distill(tmp_path / "runs", "--teacher", "random").open()


def test_a_damaged_run_is_named_and_does_not_hide_the_others(tmp_path, capsys):
    expected = pretrained(tmp_path, "good", 1)
    (pretrained(tmp_path, "spoilt", 2) / "manifest.json").write_text("{")
    assert newest_finished(tmp_path, "digits", "m") == expected
    assert "spoilt" in capsys.readouterr().out


def test_what_a_run_began_with_is_part_of_it(tmp_path):
    folder = distill(tmp_path)
    folder.open()
    folder.refuse_other(labels_sha256="a")  # nothing is recorded yet
    folder.update(labels_sha256="a", precision="no")
    folder.refuse_other(labels_sha256="a", precision="no", teacher_sha256="unheard of")
    with pytest.raises(ConfigError, match=r"precision: no -> bf16.*--name.*--resume-allow precision"):
        folder.refuse_other(labels_sha256="a", precision="bf16")
    assert not folder.finished
    folder.finish(results={})
    assert folder.finished and read_manifest(folder.path)["labels_sha256"] == "a"


def test_a_folder_is_discarded_only_where_nothing_began(tmp_path):
    folder = distill(tmp_path)
    folder.open()
    folder.discard_if_empty()
    assert not folder.path.exists()
    begun(tmp_path)
    folder.discard_if_empty()
    assert read_manifest(folder.path)["status"] == "finished"


def test_a_refusal_lists_all_and_what_the_user_insists_on_is_kept_on_record(tmp_path):
    begun(tmp_path)
    changed = ["--lr", "0.5", "--momentum", "0.5", "--K", "2"]
    with pytest.raises(ConfigError, match=r"--resume-allow K,optim\.lr,optim\.momentum$"):
        distill(tmp_path, *changed).open()
    with pytest.raises(ConfigError, match=r"\(K: 1\.0 -> 2\.0\); .*--resume-allow K$"):
        distill(tmp_path, *changed, "--resume-allow", "optim").open()
    for given in (
        ["--resume-allow", "K", "--resume-allow", "optim.lr,optim.momentum"],
        ["--resume-allow=K,optim"],
    ):
        folder = distill(tmp_path, *changed, *given)
        folder.open()
        folder.close()
    folder.open()
    folder.refuse_other(precision="no")
    folder.begin(7, precision="no")
    folder.close()
    (record,) = read_manifest(folder.path)["allowed"]
    assert record["step"] == 7
    assert set(record["changes"]) == {"K: 1.0 -> 2.0", "optim.lr: 0.001 -> 0.5", "optim.momentum: 0.9 -> 0.5"}
    # From here on these are the run's own values: no need to insist again, and another record comes after.
    folder = distill(tmp_path, *changed, "--resume-allow", "precision")
    folder.open()
    folder.refuse_other(precision="bf16")
    folder.begin(9)
    assert [r["changes"] for r in read_manifest(folder.path)["allowed"]][1:] == [["precision: no -> bf16"]]


def test_a_job_that_was_aborted_leaves_failed_at_the_next_start(tmp_path, capsys):
    """Neither NCCL's watchdog nor a SIGKILL lets Python say a word: the manifest still has it running."""
    first = distill(tmp_path)
    first.open()
    first.begin(0)
    first.close()  # as the kernel does with a process that is gone
    second = distill(tmp_path)
    second.open()
    assert "the job before this one ended without a word: killed" in capsys.readouterr().out
    manifest = read_manifest(second.path)
    assert manifest["status"] == "failed" and "NCCL's watchdog" in manifest["why"]
    second.begin(7)
    manifest = read_manifest(second.path)
    assert (manifest["status"], manifest["why"]) == ("running", None)
    (failure,) = manifest["failures"]
    assert failure["continued_at"] == 7 and failure["why"].startswith("ended without a word")
    second.update(status="stopped")
    second.close()
    third = distill(tmp_path)
    third.open()
    third.begin(9)
    assert len(read_manifest(third.path)["failures"]) == 1  # a stop is none


def test_insisting_on_what_does_not_exist_is_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(ConfigError, match=r"resume_allow names lr; allowed: .*optim\.lr.*precision"):
        distill(tmp_path, "--resume-allow", "lr,optim").open()


def test_debris_of_killed_writers_goes_when_the_folder_is_opened(tmp_path):
    folder = distill(tmp_path)
    folder.checkpoints.mkdir(parents=True)
    for debris in (folder.path / ".manifest.json.7.tmp", folder.checkpoints / ".step-000000004.json.7.tmp"):
        debris.write_text("half of i")
    folder.open()
    assert not list(folder.path.rglob("*.tmp"))


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_told(code, tmp_path, monkeypatch):
    import errno
    import fcntl
    import os

    def refuse(*_: object) -> None:
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot lock .*--runs"):
        distill(tmp_path).open()


def test_a_figure_that_was_nan_is_nan_again(tmp_path):
    """JSON has null for it."""
    results = {"last": {"tag": "eval/knn_accuracy", "value": None}}
    assert math.isnan(results_of(tmp_path, {"results": results})["last"].value)
