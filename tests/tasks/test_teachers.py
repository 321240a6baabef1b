"""timm models as teachers: what manifests say, resuming, the projector between unlike widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from rmd_dist.config import DistillConfig
from rmd_dist.config.cli import parse
from rmd_dist.data.loader import Batch
from rmd_dist.errors import ConfigError
from rmd_dist.files import sha256
from rmd_dist.losses import RelationLoss
from rmd_dist.models.export import create
from rmd_dist.models.pretrained import TimmEncoder
from rmd_dist.models.weights import read_tensors, save_tensors
from rmd_dist.tasks import DistillTask
from tests.losses.naive_graph import naive_terms
from tests.tasks.test_tasks import batches, differing, distillation
from tests.tiny import final_tensors, greatest_difference, train_tiny, update_difference, words

TEACHER = "resnet18_cifar_w32_s2"  # 256 features, the student 128
LINEAR = ("--graph.projector", "linear")


def weights(folder: Path, name: str = TEACHER, prefix: str = "", seed: int = 3) -> Path:
    torch.manual_seed(seed)
    state = timm.create_model(name, num_classes=5).state_dict()
    file = folder / f"{name}{seed}.safetensors"
    save_tensors(file, {prefix + key: value for key, value in state.items()})
    return file


def taught(tmp_path: Path, *more: str, name: str = TEACHER) -> DistillTask:
    source = TimmEncoder(name, weights(tmp_path, name))
    task = distillation(tmp_path, *more, teacher=source).task
    assert isinstance(task, DistillTask)
    return task


def run(folder: Path, file: Path, *more: str, name: str = TEACHER) -> dict[str, object]:
    """Train, and read the manifest."""
    teacher = ("--teacher", f"timm:{name}", "--weights", str(file))
    train_tiny("distill", words("distill", folder, *teacher, *LINEAR, *more))
    manifest: dict[str, object] = json.loads((folder / "distill/tiny/manifest.json").read_text())
    return manifest


def test_a_run_records_its_teacher_and_continues_with_it_alone(tmp_path, capsys):
    file = weights(tmp_path, prefix="module.")
    manifest = run(tmp_path, file, "--max-steps", "2")
    assert f"teacher timm:{TEACHER}: 'module.' was taken off the names" in capsys.readouterr().out
    assert (manifest["teacher"], manifest["teacher_sha256"]) == (f"timm:{TEACHER}", sha256(file))
    assert "teacher_from_run" not in manifest
    wanted = manifest["teacher_input"]
    cfg = timm.get_pretrained_cfg(TEACHER)
    assert (wanted["input_size"], wanted["mean"]) == (list(cfg.input_size), list(cfg.mean))
    assert (wanted["interpolation"], wanted["crop_pct"]) == (cfg.interpolation, cfg.crop_pct)
    moved = file.rename(tmp_path / "moved.safetensors")
    assert run(tmp_path, moved, "--max-steps", "3")["step"] == 3
    with pytest.raises(ConfigError, match=r"began with other values \(teacher_sha256: "):
        run(tmp_path, weights(tmp_path, seed=4), "--max-steps", "4")
    with pytest.raises(ConfigError, match=f"teacher: timm:{TEACHER} -> timm:resnet18_cifar"):
        run(tmp_path, moved, "--max-steps", "4", name="resnet18_cifar")
    folder = tmp_path / "distill" / "tiny"
    exported = read_tensors(folder / "model.safetensors")
    assert exported.keys() == create("resnet18_cifar_w16_s2", 10).state_dict().keys()
    assert final_tensors("distill", tmp_path)["model/projector.weight"].shape == (256, 128)


def test_a_teacher_gets_images_of_the_size_that_was_asked_for(tmp_path):
    small = taught(tmp_path, "--teacher_image_size", "64", *LINEAR)
    assert small.teacher is not None and small.teacher_preprocess.size == (64, 64)
    assert small.preprocess.size == (16, 16)
    small.try_out(16)
    with pytest.raises(
        ConfigError, match=r"timm:vit_.* is built for images of 224 x 224 pixels alone, not of 64"
    ):
        taught(tmp_path, "--teacher_image_size", "64", *LINEAR, name="vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--teacher", "timm:resnet18", "--weights", "nowhere"), "nowhere does not exist"),
        (("--weights", "nowhere"), "teacher_weights = nowhere needs --teacher timm:NAME"),
        (("--teacher", "random", "--teacher_image_size", "64"), "is of a teacher that others have trained"),
        (("--teacher", "timm:a/b"), "after timm: comes timm's name of a model"),
        (("--teacher", "timm:resnet81"), "is not a timm model"),
    ],
)
def test_a_teacher_that_is_not_there_leaves_no_run_folder(more, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        train_tiny("distill", words("distill", tmp_path / "runs", *more))
    assert not list(tmp_path.glob("runs/*/*"))


def test_unlike_widths_need_a_projector_or_edges_alone(tmp_path):
    with pytest.raises(
        ConfigError, match=r"256 features, the student 128: .*projector linear .*node_weight 0"
    ):
        taught(tmp_path)
    assert taught(tmp_path, "--graph.node_weight", "0", *LINEAR).module.projector is None
    assert taught(tmp_path, "--K", "0", *LINEAR).module.projector is None
    assert taught(tmp_path, *LINEAR).module.projector.weight.shape == (256, 128)


def test_nodes_match_projected_features_and_edges_the_students_own(tmp_path):
    task = taught(tmp_path, *LINEAR)
    (batch,) = batches(distillation(tmp_path), 1)
    found = task.step(task.module, batch, logging=True)
    _, features, projected = task.module(task.preprocess(batch.views[0]))
    assert torch.equal(projected, features @ task.module.projector.weight.T)
    teacher = task.teacher(task.teacher_preprocess(batch.views[0]))
    _, node, _ = naive_terms(projected.double(), teacher.double(), reference_batch=64)
    own, own_teacher = (f.double() for f in (features, teacher))
    edges = RelationLoss(0.0, 1.0)(own, own_teacher)
    graph = 0.8 * node + 0.35 * edges.edge
    values = {name: float(value) for name, value in found.values.items()}
    assert values["loss_node"] == pytest.approx(node.item(), rel=1e-4)
    assert values["loss_edge"] == pytest.approx(edges.edge.item(), rel=1e-4)
    assert values["loss_graph"] == pytest.approx(graph.item(), rel=1e-4)
    # The ratio's gradient is the whole graph's at the features, through the projector.
    total = 0.8 * node + 0.35 * RelationLoss(0.0, 1.0)(features, teacher).loss
    by_graph = torch.autograd.grad(total, features)[0].norm()
    logits = task.module.model.fc(features.detach().requires_grad_())
    given = torch.from_numpy(task.labels.given)[batch.index]
    by_logits = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, given), logits)[0]
    by_task = (by_logits @ task.module.model.fc.weight).norm()
    assert values["gradient_ratio"] == pytest.approx((task.K * by_graph / by_task).item(), rel=1e-3)
    found.loss.backward()
    assert task.module.projector.weight.grad.abs().sum() > 0


def test_a_second_view_is_the_teachers(tmp_path):
    task = taught(tmp_path, *LINEAR)
    (batch,) = batches(distillation(tmp_path), 1)
    large = torch.randint(0, 256, (48, 32, 32, 3), dtype=torch.uint8)
    seen = []
    task.teacher.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    task.step(task.module, Batch((batch.views[0], large), batch.index), logging=False)
    assert torch.equal(seen[0], task.teacher_preprocess(large))


def test_a_student_that_starts_as_a_timm_teacher_gets_images_as_its_weights_expect(tmp_path):
    name = "resnet18_cifar_w16_s2"
    task = taught(tmp_path, "--student-init", "teacher", name=name)
    student = task.module.model.state_dict()
    body = {key: student[key] for key in task.teacher.model.state_dict()}
    assert differing(body, task.teacher.model.state_dict()) == []
    cfg = timm.get_pretrained_cfg(name)
    assert (task.preprocess.size, task.preprocess.mean, task.preprocess.std) == ((16, 16), cfg.mean, cfg.std)
    assert taught(tmp_path, name=name).preprocess.mean != cfg.mean


def test_names_of_runs_tell_teachers_apart():
    from rmd_dist.runs.folder import default_name

    named = {
        default_name(parse(DistillConfig, ["--teacher", f"timm:{n}"])) for n in ("resnet18", "resnet34.a1")
    }
    assert len(named) == 2 and not any({"/", ":"} & set(name) for name in named)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_the_projector_on_any_number_of_ranks(world, tmp_path, ranks):
    """Contract 1, as in tests/engine/test_trainer.py; of four steps: an untrained teacher's graph
    multiplies rounding.
    """
    more = "--precision fp64 --batch-size 26 --data.train_samples 208 --max-steps 4".split()
    more += ["--teacher", f"timm:{TEACHER}", "--weights", str(weights(tmp_path)), *LINEAR]
    found = []
    for count in (1, world):
        runs = tmp_path / str(count)
        ranks(count).run(train_tiny, "distill", words("distill", runs, *more))
        found.append(final_tensors("distill", runs))
    assert found[0]["model/projector.weight"].dtype == torch.float64
    assert greatest_difference(found[1], found[0]) < 1e-11
    assert update_difference(found[1], found[0]) < 1e-11
