"""Relation targets: the formula, what a run makes of them over stops and ranks, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rmd_dist.config import TargetsConfig
from rmd_dist.data.labels import Labels
from rmd_dist.data.splits import subset
from rmd_dist.engine.trainer import Trainer
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.predict import predict
from rmd_dist.models.export import load
from rmd_dist.tasks import DistillTask
from rmd_dist.tasks.targets import RelationTargets, Search
from tests.tasks.test_tasks import batches, built, encoder_in
from tests.tiny import (
    final_tensors,
    greatest_difference,
    on_ranks,
    train_tiny,
    trainer_of,
    update_difference,
    words,
)

NAME = "resnet18_cifar_w16_s2"
RECIPE = (
    "--K 0 --targets relations --ema-decay 0.9 --student-init teacher --head-init relations --lr 0.005"
).split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A pretrained encoder of digits: with features of an untrained one there is little to relate."""
    runs = tmp_path_factory.mktemp("teacher")
    plain = "--views.jitter_p 0 --views.grayscale_p 0 --views.crop_scale [0.8,1.0]".split()
    train_tiny("pretrain", words("pretrain", runs, "--epochs", "8", *plain))
    return runs / "pretrain/tiny"


def robust(runs: Path, teacher: Path, *more: str) -> list[str]:
    """Command line of a tiny run with relation targets; features are cached below `runs`."""
    data = ("--data-root", str(runs / "data"))
    return words("distill", runs, *RECIPE, "--teacher", str(teacher), *data, *more)


@contextlib.contextmanager
def begun(runs: Path, teacher: Path, *more: str) -> Iterator[Trainer]:
    """A run whose relations have been found."""
    with trainer_of("distill", robust(runs, teacher, *more)) as trainer:
        trainer.begin()
        yield trainer


def task_of(trainer: Trainer) -> tuple[DistillTask, RelationTargets]:
    task = trainer.task
    assert isinstance(task, DistillTask) and task.targets is not None
    return task, task.targets


def made(given: list[int], clean: Tensor, T: Tensor, **config: float) -> RelationTargets:
    """Targets whose relations are these."""
    settings = TargetsConfig(kind="relations", **config)  # type: ignore[arg-type]
    targets = RelationTargets(Labels(np.array(given), None, {}), len(T), settings, torch.device("cpu"))
    targets.take(clean, T)
    return targets


def test_targets_are_those_of_a_slow_loop():
    random = torch.Generator().manual_seed(0)
    clean, p = (torch.rand(6, 3, generator=random).softmax(1) for _ in range(2))
    T = torch.rand(3, 3, generator=random).softmax(1)
    given = [2, 0, 1, -1, 0, 2]  # the fourth image has no label
    targets = made(given, clean, T, average=0.8, ramp=0.5)
    index = torch.tensor([3, 5, 0, 1])
    for progress, a in ((0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (0.9, 0.8)):
        targets.begin_step(progress)
        found = targets(index, torch.tensor(given)[index], p[index])
        for row, i in zip(found, index.tolist(), strict=True):
            joint = [
                ((1 - a) * float(clean[i, c]) + a * float(p[i, c]))
                * (float(T[c, given[i]]) if given[i] >= 0 else 1)
                for c in range(3)
            ]
            assert row.tolist() == pytest.approx([v / sum(joint) for v in joint], rel=1e-5)
    np.testing.assert_array_equal(targets.noise_matrix, T.numpy())


def test_figures_count_what_was_changed_and_how_rightly():
    clean = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5]])
    targets = made([0, 1, 1, 0, -1], clean, torch.tensor([[0.6, 0.4], [0.4, 0.6]]))
    assert targets.figures(np.arange(5)) == {"relations/judged_wrong": 0.5}
    targets.labels = Labels(targets.labels.given, np.array([0, 0, 1, 0, 0]), {})
    assert targets.figures(np.arange(5)) == {
        "relations/judged_wrong": 0.5, "relations/right": 0.75, "relations/given_right": 0.75,
        "relations/judged_rightly": 0.5,
    }  # fmt: skip
    pictures = targets.matrices(np.arange(5))
    expected = targets.posterior(np.array([1, 2])).mean(0)
    np.testing.assert_allclose(pictures["relations/posterior"][1], expected, rtol=1e-6)


def test_the_student_starts_as_the_regression(tmp_path, encoder):
    """Its logits on plain images are the relations' own; the average starts so, too."""
    with begun(tmp_path, encoder) as trainer:
        task, targets = task_of(trainer)
        rows = task.splits.train[:64]
        logits = predict(trainer.state.evaluated, task.train, rows).float()
        clean = targets.clean[torch.from_numpy(rows)]
        # The head is the mean of five regressions, of which q0 is by that which has not seen the image.
        assert (logits.argmax(1) == clean.argmax(1)).double().mean() > 0.8
        posterior = targets.posterior(task.splits.train)
        right = (posterior.argmax(1) == task.labels.clean[task.splits.train]).mean()
        assert right > (task.labels.given == task.labels.clean).mean() + 0.05


def test_a_step_is_towards_the_targets_of_another_crop(tmp_path, encoder):
    with begun(tmp_path, encoder) as trainer:
        task, targets = task_of(trainer)
        trainer.task.begin_step(0.5)
        (batch,) = batches(trainer.parts, 1)
        first, second = batch.views
        assert not torch.equal(first, second)
        y = torch.from_numpy(task.labels.given)[batch.index]
        with torch.no_grad():
            p = trainer.state.evaluated(task.preprocess(second)).softmax(1)
            t = targets(batch.index, y, p)
            log_p = task.module(task.preprocess(first))[0].log_softmax(1)
        found = task.step(task.module, batch, logging=False).loss.detach()
        assert float(found) == pytest.approx(float(-(t * log_p).sum(1).mean()), rel=1e-4)


def test_the_first_crop_is_that_of_a_run_with_one(tmp_path, encoder):
    alone = built("distill", tmp_path, teacher=None)
    with begun(tmp_path, encoder) as trainer:
        for one, two in zip(batches(alone, 2), batches(trainer.parts, 2), strict=True):
            assert torch.equal(one.views[0], two.views[0]) and len(two.views) == 2


def test_given_targets_are_the_default_to_the_bit(tmp_path):
    """A run with `--targets given` and one that says nothing of them are the same run."""
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "3"))
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "4", "--targets", "given"))


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "--K 0.2", "--average 0.9 --ramp 0.5 --loss gce", "--average 0"])
def test_a_stopped_run_has_the_bits_of_a_whole_one(more, tmp_path, encoder):
    few = ("--data.train_samples", "240", *more.split(), "--max-steps")
    for name, parts in (("whole", ("6",)), ("parts", ("2", "6"))):
        for steps in parts:
            train_tiny("distill", robust(tmp_path / name, encoder, *few, steps))
    whole, parts = (final_tensors("distill", tmp_path / name) for name in ("whole", "parts"))
    assert {"task/targets/clean", "task/targets/likelihood"} <= whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_relations_are_not_sought_again_when_a_run_continues(tmp_path, encoder, capsys, monkeypatch):
    train_tiny("distill", robust(tmp_path, encoder, "--max-steps", "2"))
    assert "relations: by features of" in capsys.readouterr().out
    monkeypatch.setattr(Search, "__call__", lambda *_: pytest.fail("sought again"))
    train_tiny("distill", robust(tmp_path, encoder, "--max-steps", "3"))
    assert "relations: by features of" not in capsys.readouterr().out


def _trained(runs: Path, teacher: Path) -> dict[str, Tensor]:
    more = "--precision fp64 --batch-size 26 --data.train_samples 480 --max-steps 6".split()
    train_tiny("distill", robust(runs, teacher, *more))
    return final_tensors("distill", runs)


@pytest.mark.slow
def test_any_number_of_ranks_has_the_same(ranks, tmp_path, encoder):
    for first, alone in on_ranks(ranks, _trained, tmp_path, encoder):
        assert torch.equal(first["task/targets/clean"], alone["task/targets/clean"])
        assert greatest_difference(first, alone) < 1e-10
        assert update_difference(first, alone) < 1e-10


@pytest.mark.slow
def test_images_without_a_label_join(tmp_path, encoder, capsys):
    file = tmp_path / "labels.npy"
    with begun(tmp_path, encoder) as trainer:
        given = trainer.task.labels.given.copy()  # type: ignore[attr-defined]
    given[::2] = -1
    np.save(file, given)
    few = ("--labels", str(file), "--max-steps", "12")
    train_tiny("distill", robust(tmp_path / "out", encoder, *few))
    joined = ("--unlabelled", "--name", "joined")
    train_tiny("distill", robust(tmp_path / "out", encoder, *few, *joined))
    said = " ".join(capsys.readouterr().out.split())
    assert "have none: left out" in said and "have none: trained on without one" in said
    manifests = [
        json.loads((tmp_path / f"out/distill/{name}/manifest.json").read_text())
        for name in ("tiny", "joined")
    ]
    without, with_all = (manifest["train_samples"] for manifest in manifests)
    assert (without, with_all) == (int((given[_subset(given)] >= 0).sum()), 480)
    margins = np.load(tmp_path / "out/distill/joined/margins.npy")
    assert np.isnan(margins[::2]).all() and np.isfinite(margins[1::2]).any()


def _subset(given: np.ndarray, size: int = 480) -> np.ndarray:
    return subset(len(given), size)


@pytest.mark.slow
def test_a_student_may_start_as_another_encoder_than_its_teacher(tmp_path, encoder):
    torch.manual_seed(7)
    wide = encoder_in(tmp_path / "wide", "resnet18_cifar_w32_s2")
    more = ("--student-init", str(encoder), "--max-steps", "1", "--lr", "1e-9", "--ema-decay", "0.1")
    train_tiny("distill", robust(tmp_path / "out", wide, *more))
    finished = load(tmp_path / "out/distill/tiny", NAME)
    began, ended = load(encoder, NAME).module.state_dict(), finished.module.state_dict()
    torch.testing.assert_close(began["conv1.weight"], ended["conv1.weight"], atol=1e-6, rtol=0)
    assert ended["fc.weight"].abs().max() > 0.1  # of the regression on the student's own features


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--teacher", "random"], "features of an untrained encoder.*targets = relations"),
        (["--teacher", "random", "--targets", "given"], "features of an untrained encoder.*head_init = rel"),
        (["--student-init", "./nowhere"], "student_init = ./nowhere does not exist"),
        (["--noise", "file", "--labels", "ONE"], "all labels are of one class"),
        (["--data.train_samples", "48", "--labels", "FEW"], "needs at least 10 labelled images"),
    ],
)
def test_what_cannot_be_related_is_one_line(more, named, tmp_path, encoder):
    count = 1437
    np.save(tmp_path / "one.npy", np.zeros(count, np.int64))
    few = np.full(count, -1)
    few[_subset(few, 48)[:2]] = [0, 1]
    np.save(tmp_path / "few.npy", few)
    files = {"ONE": str(tmp_path / "one.npy"), "FEW": str(tmp_path / "few.npy")}
    with pytest.raises(ConfigError, match=named) as caught:
        train_tiny("distill", robust(tmp_path, encoder, *[files.get(word, word) for word in more]))
    assert "\n" not in str(caught.value)


def test_without_a_pretraining_the_remedy_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"targets = relations needs a teacher.*rmd pretrain.*--targets given"
    ):
        train_tiny("distill", [*words("distill", tmp_path, *RECIPE)[:-1], "0.005", "--teacher", "null"])


def test_features_that_say_nothing_are_warned_of(tmp_path, encoder, capsys):
    """Labels that have nothing to do with the images."""
    file = tmp_path / "labels.npy"
    np.save(file, np.random.default_rng(0).integers(0, 10, 1437))
    train_tiny("distill", robust(tmp_path, encoder, "--labels", str(file), "--max-steps", "1"))
    assert "say next to nothing of these labels" in " ".join(capsys.readouterr().out.split())
