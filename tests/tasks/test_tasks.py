"""What a batch means: which labels are read, what the teacher is, and the values that are logged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmd_dist.config import DistillConfig, PretrainConfig
from rmd_dist.config.cli import parse
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.loader import Batch
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.losses import nt_xent, simsiam_loss
from rmd_dist.models.export import create, export, load
from rmd_dist.models.student import Encoder
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks import DistillTask, Parts, build_parts, parts
from tests.losses.naive_graph import naive_terms
from tests.tiny import final_tensors, train_tiny, words

NAME = "resnet18_cifar_w16_s2"


def built(stage: str, tmp_path: Path, *more: str, **options: Any) -> Parts:
    torch.manual_seed(0)
    config = parse(
        {"pretrain": PretrainConfig, "distill": DistillConfig}[stage], words(stage, tmp_path, *more)
    )
    return build_parts(config, options.pop("compute", Compute()), **options)


def distillation(tmp_path: Path, *more: str, teacher: Path | str | None = "random") -> Parts:
    return built("distill", tmp_path, *more, teacher=teacher)


def batches(parts: Parts, count: int, epoch: int = 0) -> Iterator[Batch]:
    """The first `count` training batches."""
    with contextlib.closing(parts.loader.epoch(epoch)) as epoch_of_batches:
        for _ in range(count):
            yield next(epoch_of_batches)


def train(parts: Parts, steps: int) -> None:
    task = parts.task
    optimizer = torch.optim.SGD(task.module.parameters(), lr=0.05, momentum=0.9)
    for batch in batches(parts, steps):
        task.step(task.module, batch, logging=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def copied(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def encoder_in(folder: Path, name: str = NAME, dataset: str = "digits", stage: str = "pretrain") -> Path:
    """A folder as a finished pretraining (or another stage) leaves it."""
    folder.mkdir()
    export(folder, create(name, 0), name, 0, {"dataset": dataset, "stage": stage})
    return folder


@pytest.mark.parametrize("more", [[], ["--loss", "gce", "--graph.reference_batch", "null", "--K", "3"]])
def test_the_loss_and_the_ratio_of_its_gradients_by_plain_autograd(more, tmp_path):
    """L = L_task + K L_graph; ratio = ||K dL_graph/df|| / ||dL_task/df||, all from the formulas."""
    parts = distillation(tmp_path, *more)
    task = parts.task
    (batch,) = batches(parts, 1)
    found = task.step(task.module, batch, logging=True)
    x = task.preprocess(batch.views[0])
    logits, features = task.module(x)  # batch norm in training mode: the same values again
    given = torch.from_numpy(task.labels.given)[batch.index]
    p_y = logits.softmax(1)[torch.arange(len(given)), given]
    q = 0.7  # gce's default
    task_loss = (-p_y.log() if task.loss.name == "ce" else (1 - p_y**q) / q).mean()
    reference = task.relation.reference_batch
    graph, node, edge = naive_terms(features.double(), task.teacher(x).double(), reference_batch=reference)
    expected = {"loss_task": task_loss, "loss_graph": graph, "loss_node": node, "loss_edge": edge}
    expected["loss"] = task_loss + task.K * graph
    by_graph, by_task = (
        torch.autograd.grad(term, features, retain_graph=True)[0].norm() for term in (graph, task_loss)
    )
    expected["gradient_ratio"] = task.K * by_graph / by_task
    directions = features / features.norm(dim=1, keepdim=True)
    expected["feature_spread"] = directions.std(dim=0).mean() * features.shape[1] ** 0.5
    assert {k: float(v) for k, v in found.values.items()} == {
        k: pytest.approx(v.item(), rel=1e-4) for k, v in expected.items()
    }
    assert found.loss.item() == found.values["loss"].item()
    assert not any(value.requires_grad for value in found.values.values())
    assert "gradient_ratio" not in task.step(task.module, batch, logging=False).values


def test_the_ratio_leaves_the_gradients_alone(tmp_path):
    parts = distillation(tmp_path)
    task = parts.task
    (batch,) = batches(parts, 1)
    gradients = []
    for logging in (False, True):
        task.module.zero_grad()
        task.step(task.module, batch, logging=logging).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in task.module.named_parameters()})
    assert differing(*gradients) == []


def test_without_K_there_is_no_teacher(tmp_path):
    argv = [w for w in words("distill", tmp_path, "--max-steps", "1") if w not in ("--teacher", "random")]
    train_tiny("distill", [*argv, "--K", "0"])
    folder = tmp_path / "distill" / "tiny"
    assert "teacher" not in json.loads((folder / "manifest.json").read_text())
    tags = {tag for line in (folder / "metrics.jsonl").read_text().splitlines() for tag in json.loads(line)}
    assert "train/loss" in tags and not {t for t in tags if "graph" in t or "node" in t or "ratio" in t}


def test_the_teacher_stays_what_it_is(tmp_path):
    parts = distillation(tmp_path, "--K", "5")
    task = parts.task
    assert task.teacher is not None
    before, student = copied(task.teacher), copied(task.module)
    train(parts, 3)
    task.evaluate(task.module.get_submodule(task.network))
    assert differing(task.teacher.state_dict(), before) == []
    changed = differing(task.module.state_dict(), student)
    assert len(changed) == len(student), "the student did not move"
    assert not any(module.training for module in task.teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.parameters())
    own = {id(p) for p in task.module.parameters()}
    assert not own & {id(p) for p in task.teacher.parameters()}, "the optimizer would train the teacher"


def test_the_student_may_start_as_the_teacher(tmp_path):
    folder = encoder_in(tmp_path / "encoder")
    parts = distillation(tmp_path, "--student-init", "teacher", teacher=folder)
    task = parts.task
    assert task.teacher is not None
    student = task.module.model.state_dict()
    fresh = {name: student.pop(name) for name in ("fc.weight", "fc.bias")}
    assert differing(student, task.teacher.model.state_dict()) == [] and fresh["fc.weight"].std() > 0
    train(parts, 1)
    assert differing(student, task.teacher.model.state_dict()) != []
    apart = distillation(tmp_path, teacher=folder).task
    assert (
        differing({k: apart.module.model.state_dict()[k] for k in student}, apart.teacher.model.state_dict())
        != []
    )


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    wide = encoder_in(tmp_path / "wide", "resnet18_cifar")
    with pytest.raises(ConfigError, match=r"has 512 features, the student 128: .*--graph\.node_weight 0"):
        distillation(tmp_path, teacher=wide)
    other = encoder_in(tmp_path / "other", dataset="cifar10")
    with pytest.raises(ConfigError, match="was trained on cifar10, this run uses digits"):
        distillation(tmp_path, teacher=other)
    with pytest.raises(ConfigError, match="nowhere"):
        distillation(tmp_path, teacher=tmp_path / "nowhere")
    student = encoder_in(tmp_path / "student", stage="distill")
    with pytest.raises(ConfigError, match="is a student, trained on labels"):
        distillation(tmp_path, teacher=student)
    # Edges alone do not need equal widths.
    parts = distillation(tmp_path, "--graph.node_weight", "0", teacher=wide)
    task = parts.task
    train(parts, 1)
    assert task.matrices(task.module.get_submodule(task.network)) == {}


def test_a_student_cannot_start_as_a_teacher_of_another_width(tmp_path):
    wide = encoder_in(tmp_path / "wide", "resnet18_cifar")
    with pytest.raises(ConfigError, match="student_init needs a student of the --model"):
        distillation(tmp_path, "--graph.node_weight", "0", "--student-init", "teacher", teacher=wide)


def test_held_out_samples_are_never_trained_on(tmp_path):
    parts = distillation(tmp_path, "--validation", "0.25")
    task = parts.task
    assert (len(task.splits.train), len(task.splits.validation)) == (360, 120)
    for epoch in (0, 1):
        seen = torch.cat([batch.index for batch in batches(parts, 7, epoch)]).tolist()
        assert len(set(seen)) == 7 * 48
        assert set(seen) <= set(task.splits.train.tolist()) and not set(seen) & set(task.splits.validation)
    assert not set(task.splits.probe) & set(task.splits.validation)


def fit_to_clean_labels(task: DistillTask) -> None:
    """A classifier on the untrained encoder's features that knows clean labels better than noisy ones."""
    used = np.sort(np.concatenate([task.splits.train, task.splits.validation]))
    x = task.preprocess(torch.from_numpy(task.train.images[used]))
    with torch.no_grad():
        features = Encoder(task.module.model.eval())(x)
        targets = torch.eye(10)[torch.from_numpy(task.train.labels[used])]
        task.module.model.fc.bias.zero_()
        task.module.model.fc.weight.copy_(torch.linalg.lstsq(features, targets, driver="gelsd").solution.T)
    task.module.model.train()


def test_the_measures_are_of_the_samples_and_labels_they_name(tmp_path):
    parts = distillation(tmp_path, "--model", "resnet18_cifar_w16", "--validation", "0.25", teacher=None)
    task = parts.task
    fit_to_clean_labels(task)
    evaluation = task.evaluate(task.module.get_submodule(task.network))

    def predictions(data: Dataset, indices: np.ndarray) -> np.ndarray:
        x = task.preprocess(torch.from_numpy(data.images[indices]))
        with torch.no_grad():
            return task.module.model.eval()(x).argmax(1).numpy()

    test = predictions(task.test, np.arange(96)) == task.test.labels[:96]
    assert evaluation.scalars["test/accuracy"] == pytest.approx(test.mean())
    held = task.splits.validation
    predicted = predictions(task.train, held)
    noisy, clean = task.labels.given[held], task.train.labels[held]
    assert evaluation.scalars["validation/accuracy_noisy"] == pytest.approx((predicted == noisy).mean())
    assert (predicted == noisy).mean() + 0.05 < (predicted == clean).mean(), "the case proves nothing"
    probed = task.splits.probe
    predicted, wrong = predictions(task.train, probed), task.labels.flipped[probed]
    memorised = (predicted == task.labels.given[probed])[wrong].mean()
    assert evaluation.scalars["memorisation/wrong_memorised"] == pytest.approx(memorised)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_models_are_measured_in_the_precision_they_train_in(dtype, tmp_path):
    """Also the teacher, whose weights are cast once; kNN itself stays in fp32."""
    compute = Compute(autocast=dtype)
    task = built("distill", tmp_path, teacher=encoder_in(tmp_path / "encoder"), compute=compute).task
    assert task.teacher is not None and task.teacher.model.conv1.weight.dtype == (dtype or torch.float32)
    seen = set()
    for encoder in (task.module.model, task.teacher.model):
        encoder.layer1.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    task.evaluate(task.module.get_submodule(task.network))
    assert set(task.matrices(task.module.get_submodule(task.network))) == {
        "graph/teacher",
        "graph/student",
        "graph/node",
    }
    assert seen == {dtype or torch.float32}
    pretraining = built("pretrain", tmp_path, compute=compute).task
    encoder = pretraining.module.encoder
    encoder.layer1.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    with monkeypatched_knn() as banks:
        pretraining.evaluate(encoder)
    assert seen == {dtype or torch.float32} and [bank.dtype for bank in banks] == [torch.float32]


@contextlib.contextmanager
def monkeypatched_knn() -> Iterator[list[Tensor]]:
    """The banks of features that kNN is called with."""
    from rmd_dist.tasks import pretrain

    banks, knn = [], pretrain.knn_accuracy

    def spy(bank: Tensor, *args: object) -> float:
        assert not torch.is_autocast_enabled("cpu")
        banks.append(bank)
        return knn(bank, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "knn_accuracy", spy)
        yield banks


def test_a_collapse_is_warned_of(tmp_path):
    parts = built("pretrain", tmp_path)
    task = parts.task
    warning = task.warning({"train/feature_spread": 0.003})
    assert warning is not None and "collapse" in warning and "0.003" in warning and "--lr" in warning
    for spread in (0.5, 1.0):
        assert task.warning({"train/feature_spread": spread}) is None
    assert task.warning({"train/loss": 0.0}) is None, "steps that are not logged have no spread"
    (batch,) = batches(parts, 1)
    healthy = task.step(task.module, batch, logging=True).values["feature_spread"]
    one = Batch(tuple(view[:1].expand_as(view) for view in batch.views), batch.index)
    collapsed = task.step(task.module.eval(), one, logging=True).values["feature_spread"]
    assert task.warning({"train/feature_spread": float(healthy)}) is None
    assert task.warning({"train/feature_spread": float(collapsed)}) is not None


def other_labels(labels: np.ndarray) -> np.ndarray:
    """Every label another one, and not by a constant shift."""
    return (labels + 1 + np.arange(len(labels)) % 9) % 10


def with_labels(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Make the data set's own labels `change(labels)`, in training and test split alike."""
    honest = parts.open_dataset

    def opened(*args: object, **options: object) -> Dataset:
        data = honest(*args, **options)
        return replace(data, labels=change(data.labels))

    monkeypatch.setattr(parts, "open_dataset", opened)


def test_each_objective_trains_what_it_says(tmp_path):
    """Of three views: a step's loss is that of what the model gives, which is as wide as it was told."""
    for objective, own, loss in (
        ("simsiam", "", lambda output: simsiam_loss(output.p, output.z).mean()),
        ("simclr", "--simclr.temperature 0.5 --simclr.dim 12", lambda output: nt_xent(output.z, 0.5)),
    ):
        more = ["--objective", objective, "--views.count", "3", *own.split()]
        task = (parts := built("pretrain", tmp_path, *more)).task
        (batch,) = batches(parts, 1)
        kept = copied(task.module)
        found = task.step(task.module, batch, logging=True)
        task.module.load_state_dict(kept)
        output = task.module(*(task.preprocess(view) for view in batch.views))
        assert [len(output.z), output.z[0].shape[1]] == [3, {"simsiam": 64, "simclr": 12}[objective]]
        torch.testing.assert_close(found.loss, loss(output))
        assert found.values["feature_spread"] > 0.5


@pytest.mark.parametrize("objective", ["simsiam", "simclr"])
def test_no_label_reaches_pretraining(objective, tmp_path, monkeypatch):
    argv = ("--max-steps", "4", "--objective", objective)
    train_tiny("pretrain", words("pretrain", tmp_path / "honest", *argv))
    with_labels(monkeypatch, other_labels)
    train_tiny("pretrain", words("pretrain", tmp_path / "garbage", *argv))
    tensors = [final_tensors("pretrain", tmp_path / name) for name in ("honest", "garbage")]
    assert differing(*tensors) == []
    results = [
        json.loads((tmp_path / n / "pretrain/tiny/manifest.json").read_text()) for n in ("honest", "garbage")
    ]
    assert results[0]["results"] != results[1]["results"], "the labels were not replaced"


def test_clean_labels_are_for_reporting_only(tmp_path, monkeypatch):
    """Other clean labels under the same noisy ones: the same weights, last and selected."""
    argv = ("--max-steps", "12", "--validation", "0.4", "--eval.every_epochs", "1")
    train_tiny("distill", words("distill", tmp_path / "honest", *argv))
    labels = distillation(tmp_path).task.labels
    with_labels(monkeypatch, other_labels)
    monkeypatch.setattr(parts, "make_labels", lambda train, *_, **__: replace(labels, clean=train.labels))
    train_tiny("distill", words("distill", tmp_path / "garbage", *argv))
    tensors = [final_tensors("distill", tmp_path / name) for name in ("honest", "garbage")]
    assert differing(*tensors) == []
    folders = [tmp_path / name / "distill" / "tiny" for name in ("honest", "garbage")]
    selected = [(folder / "selected.safetensors").read_bytes() for folder in folders]
    assert selected[0] == selected[1]
    loaded = load(folders[0] / "selected.safetensors", "resnet18_cifar")
    assert (loaded.architecture, loaded.num_classes, loaded.dataset) == (NAME, 10, "digits")
    results = [json.loads((folder / "manifest.json").read_text())["results"] for folder in folders]
    assert results[0]["selected"]["step"] == results[1]["selected"]["step"]
    assert results[0]["last"]["value"] != results[1]["last"]["value"], "the labels were not replaced"


def test_teacher_and_student_each_get_the_images_they_want(tmp_path):
    """A teacher of another size and other statistics: its features are those of its own input."""
    folder, other = tmp_path / "encoder", Preprocess((32, 32), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    folder.mkdir()
    wanted = json.loads(json.dumps(other.to_cfg()))
    about = {"dataset": "digits", "stage": "pretrain", "input": wanted}
    export(folder, create(NAME, 0, other.to_cfg()), NAME, 0, about)
    parts = distillation(tmp_path, teacher=folder)
    task = parts.task
    assert task.preprocess.size == (16, 16) and task.teacher_preprocess == other
    (batch,) = batches(parts, 1)
    with torch.no_grad():
        _, features = task.module(task.preprocess(batch.views[0]))
        taught = task.teacher(other(batch.views[0]))
    graph = task.step(task.module, batch, logging=False).values["loss_graph"]
    assert float(graph) == pytest.approx(float(task.relation(features, taught).loss), rel=1e-5)
    same = task.teacher(task.preprocess(batch.views[0]))
    assert float(graph) != pytest.approx(float(task.relation(features, same).loss), rel=1e-3)
    assert set(task.matrices(task.module.model)) == {"graph/teacher", "graph/student", "graph/node"}


def test_what_was_exported_before_models_said_their_input_gets_the_data_sets(tmp_path):
    task = distillation(tmp_path, teacher=encoder_in(tmp_path / "encoder")).task
    assert task.teacher_preprocess == Preprocess.for_dataset(task.train.info) == task.preprocess


@pytest.mark.parametrize("name", ["resnetv2_50", "deit_tiny_distilled_patch16_224"])
def test_a_classifier_that_is_not_one_linear_layer_is_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"model.name = '{name}': its classifier is a .*, not one Linear"):
        distillation(tmp_path, "--model", name)


def test_a_model_built_for_one_size_is_built_for_the_data_sets(tmp_path):
    parts = distillation(
        tmp_path, "--model", "vit_tiny_patch16_224", "--graph.node_weight", "0", teacher=None
    )
    (batch,) = batches(parts, 1)
    assert parts.task.step(parts.task.module, batch, logging=True).loss.isfinite()


def with_given(tmp_path: Path, given: np.ndarray, *more: str) -> Parts:
    """Parts of a run on labels of a file."""
    np.save(tmp_path / "labels.npy", given)
    return distillation(tmp_path, "--labels", str(tmp_path / "labels.npy"), *more, teacher=None)


def test_images_that_the_labels_leave_out_are_no_part_of_a_run(tmp_path, capsys):
    """Neither trained on, nor held out, nor probed; of the others the order is one over the same samples."""
    more = ("--validation", "0.25", "--data.train_samples", "480")
    whole = distillation(tmp_path, *more).task.labels.given.copy()
    before = with_given(tmp_path, whole, *more)
    assert "left out" not in capsys.readouterr().out
    out = np.concatenate([before.task.splits.train[::5], before.task.splits.validation[::4]])
    given = whole.copy()
    given[out] = -1
    parts = with_given(tmp_path, given, *more)
    assert f"labels: {len(out)} of 1437 training images have none: left out" in capsys.readouterr().out
    splits, left_out = parts.task.splits, set(out.tolist())
    for name in ("train", "validation", "probe"):
        wanted = set(getattr(before.task.splits, name).tolist()) - left_out
        found = set(getattr(splits, name).tolist())
        assert found == wanted if name != "probe" else found <= set(splits.train.tolist())
    assert (parts.about["train_samples"], parts.about["validation_samples"]) == (288, 90)
    for epoch in (0, 1):
        seen = torch.cat([batch.index for batch in batches(parts, 6, epoch)])
        assert len(set(seen.tolist())) == 288 and not set(seen.tolist()) & left_out
    train(parts, 1)
    measured = parts.task.evaluate(parts.task.module.get_submodule(parts.task.network)).scalars
    assert {"validation/accuracy_noisy", "memorisation/clean_fitted"} <= measured.keys()


def test_labels_that_leave_out_all_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="the labels leave out all 480 images to train on"):
        with_given(tmp_path, np.full(1437, -1))
