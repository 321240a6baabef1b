"""The loop: exact continuation, the same weights on any number of ranks, what a run leaves behind."""

import json
from pathlib import Path

import pytest
import torch

from rmd_dist.errors import ConfigError, Fault
from rmd_dist.runs.folder import RunFolder
from rmd_dist.runs.monitor import Monitor
from tests.tiny import (
    final_tensors,
    greatest_difference,
    tensors_at,
    train_tiny,
    update_difference,
    words,
)

pytestmark = pytest.mark.slow  # whole runs

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])
SIMCLR = "--objective simclr --simclr.hidden_dim 32 --simclr.dim 16"
KINDS = pytest.mark.parametrize(
    ("stage", "kind", "last_weight"),
    [
        ("pretrain", "", "predictor.3.weight"),
        ("pretrain", SIMCLR, "projector.3.weight"),
        ("distill", "", "model.fc.weight"),
    ],
    ids=["simsiam", "simclr", "distill"],
)


@KINDS
def test_a_stopped_run_continues_bit_for_bit(stage, kind, last_weight, tmp_path):
    """Stopped in the middle of the second epoch (10 steps each): weights and momentum agree to the bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_tiny(stage, words(stage, whole, *kind.split(), "--max-steps", "16"))
    train_tiny(stage, words(stage, parts, *kind.split(), "--max-steps", "13"))
    train_tiny(stage, words(stage, parts, *kind.split(), "--max-steps", "16"))
    expected, found = final_tensors(stage, whole), final_tensors(stage, parts)
    assert expected.keys() == found.keys() and any("momentum" in k for k in found)
    different = [k for k in expected if not torch.equal(expected[k], found[k])]
    assert different == []


@KINDS
def test_twenty_steps_on_any_number_of_ranks(stage, kind, last_weight, tmp_path, ranks):
    """Contract 1, to the last digits: in fp64 nothing but a broken contract can part 1, 2, 3 and 4 ranks.

    26 samples a step, so that shares are unequal on 3 and 4 ranks; two epochs begin in between.
    """
    more = f"--precision fp64 --batch-size 26 --data.train_samples 208 --max-steps 20 {kind}".split()
    found = {}
    for world in (1, 2, 3, 4):
        runs = tmp_path / str(world)
        ranks(world).run(train_tiny, stage, words(stage, runs, *more))
        found[world] = losses(runs / stage / "tiny"), final_tensors(stage, runs)
    expected, tensors = found.pop(1)
    assert len(expected) == 20 and tensors[f"model/{last_weight}"].dtype == torch.float64
    for world, (its_losses, its_tensors) in found.items():
        assert its_losses == pytest.approx(expected, rel=1e-10), world
        assert greatest_difference(its_tensors, tensors) < 1e-10, world
        assert update_difference(its_tensors, tensors) < 1e-10, world


def test_a_run_in_fp64_continues_in_fp64_alone(tmp_path):
    arguments = words("distill", tmp_path, "--max-steps")
    train_tiny("distill", [*arguments, "1", "--precision", "fp64"])
    train_tiny("distill", [*arguments, "2", "--precision", "fp64"])
    manifest = json.loads((tmp_path / "distill/tiny/manifest.json").read_text())
    assert (manifest["step"], manifest["precision"]) == (2, "fp64")
    with pytest.raises(ConfigError, match=r"precision: fp64 -> no"):
        train_tiny("distill", [*arguments, "3", "--precision", "no"])


def losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [r["train/loss"] for r in records if "train/loss" in r]


@BOTH
def test_fp32_on_any_number_of_ranks(stage, tmp_path, ranks):
    """The same in fp32, as far as rounding lets it be seen; 48 samples a step, and unequal shares (50 on 3).

    After the first step all weights agree to rounding. The second sees what the first made of batch norm,
    order and averaging; by then rounding may put single activations on the other side of a ReLU's kink
    (layouts alone do it on one rank), so its update is compared as a whole: what breaks the contract,
    such as batch norm left local or a gradient 1/W short, changes it by more than 10 %.
    """
    more = ["--model", "resnet18_cifar_w16", "--max-steps", "2", "--checkpoint.every_steps", "1"]
    for batch, worlds in (("48", (1, 2, 3, 4)), ("50", (1, 3))):
        found = {}
        for world in worlds:
            runs = tmp_path / f"{batch}-{world}"
            ranks(world).run(train_tiny, stage, words(stage, runs, *more, "--batch-size", batch))
            found[world] = [tensors_at(stage, runs, step) for step in (1, 2)]
        for world in worlds[1:]:
            assert greatest_difference(found[world][0], found[1][0]) < 5e-5, (batch, world)
            assert update_difference(found[world][1], found[1][1]) < 0.02, (batch, world)


def test_a_run_leaves_its_records(tmp_path):
    results = train_tiny("distill", words("distill", tmp_path, "--max-steps", "12", "--validation", "0.2"))
    folder = tmp_path / "distill" / "tiny"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"], manifest["teacher"]) == ("finished", 12, "random")
    assert manifest["noise"]["protocol"] == "symmetric" and manifest["results"] == results
    assert set(results) == {"last", "best_on_test", "selected"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in records if "train/loss" in r]
    assert steps == list(range(1, 13))
    train = next(r for r in records if "train/loss" in r)
    assert {"train/loss_task", "train/loss_node", "train/loss_edge", "train/gradient_ratio"} <= train.keys()
    k_times_graph = train["train/loss"] - train["train/loss_task"]
    assert k_times_graph == pytest.approx(0.2 * train["train/loss_graph"], rel=1e-4)
    assert train["train/lr"] == 0.02
    measured = next(r for r in records if "test/accuracy" in r)
    assert measured["memorisation/wrong_memorised"] + measured["memorisation/wrong_recovered"] <= 1
    assert (folder / "selected.safetensors").exists() and (folder / "config.yaml").exists()


@pytest.mark.parametrize(("minutes", "drawn"), [("10", [10, 40]), ("0", [10, 20, 30, 40])])
def test_pictures_are_rarer_than_evaluations(minutes, drawn, tmp_path, monkeypatch):
    """At most every so many minutes, and at the end; figures are measured at every evaluation."""
    seen: dict[str, list[int]] = {"heatmap": [], "confusion": []}
    monkeypatch.setattr(Monitor, "heatmap", lambda *args, **_: seen["heatmap"].append(args[3]))
    monkeypatch.setattr(Monitor, "confusion", lambda *args: seen["confusion"].append(args[4]))
    more = ["--eval.every_epochs", "1", "--eval.pictures_every_minutes", minutes]
    train_tiny("distill", words("distill", tmp_path, *more))
    assert seen == {"heatmap": [step for step in drawn for _ in range(3)], "confusion": drawn}
    lines = (tmp_path / "distill/tiny/metrics.jsonl").read_text().splitlines()
    assert [r["step"] for r in map(json.loads, lines) if "test/accuracy" in r] == [10, 20, 30, 40]


def test_a_finished_student_opens_with_timm(tmp_path):
    import timm

    import rmd_dist.models  # noqa: F401

    train_tiny("distill", words("distill", tmp_path, "--max-steps", "2"))
    folder = tmp_path / "distill" / "tiny"
    weights = folder / "model.safetensors"
    model = timm.create_model("resnet18_cifar_w16_s2", num_classes=10, checkpoint_path=str(weights)).eval()
    same = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 16, 16)
    trained = final_tensors("distill", tmp_path)["model/model.fc.weight"]
    assert torch.equal(model.fc.weight, trained)
    assert torch.equal(model(images), same(images))


def test_distillation_finds_the_finished_pretraining(tmp_path):
    train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "2"))
    argv = [w for w in words("distill", tmp_path, "--max-steps", "2") if w not in ("--teacher", "random")]
    train_tiny("distill", argv)
    manifest = json.loads((tmp_path / "distill" / "tiny" / "manifest.json").read_text())
    assert manifest["teacher"] == str(tmp_path / "pretrain" / "tiny" / "model.safetensors")
    # The teacher is part of the run: another one under the same path is refused.
    train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "3"))
    with pytest.raises(ConfigError, match=r"teacher_sha256.*--resume-allow teacher_sha256"):
        train_tiny("distill", [*argv, "--max-steps", "3"])


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    first = train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "2"))
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pretrain/tiny/checkpoints").iterdir()}
    assert train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "2")) == first
    assert "already finished" in capsys.readouterr().out
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pretrain/tiny/checkpoints").iterdir()}
    assert before == after


def test_a_run_that_dies_before_it_is_marked_finished_records_its_results_once(tmp_path, monkeypatch):
    argv = words("distill", tmp_path, "--max-steps", "2")

    def die(self, **values):
        raise Fault("killed here")

    with monkeypatch.context() as patch, pytest.raises(Fault, match="killed here"):
        patch.setattr(RunFolder, "finish", die)
        train_tiny("distill", argv)
    train_tiny("distill", argv)
    folder = tmp_path / "distill" / "tiny"
    assert json.loads((folder / "manifest.json").read_text())["status"] == "finished"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert ["final/last" in line for line in lines] == [False] * (len(lines) - 1) + [True]


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "2"))
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.03 -> 0\.5.*--name"):
        train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "4", "--lr", "0.5"))
    with pytest.raises(ConfigError, match="resume = never"):
        train_tiny("pretrain", words("pretrain", tmp_path, "--max-steps", "4", "--resume", "never"))


def test_without_a_teacher_the_remedies_are_named(tmp_path):
    argv = [w for w in words("distill", tmp_path) if w not in ("--teacher", "random")]
    with pytest.raises(ConfigError, match=r"--teacher PATH, --teacher timm:NAME, --teacher random or --K 0"):
        train_tiny("distill", argv)
    with pytest.raises(ConfigError, match="nowhere"):
        train_tiny("distill", [*argv, "--teacher", str(tmp_path / "nowhere")])


def test_accumulated_micro_steps_average_their_gradients(tmp_path):
    """One step of 48 in 2 micro-steps = SGD on the mean of the gradients of two batches of 24."""
    from rmd_dist.config import DistillConfig
    from rmd_dist.config.cli import parse
    from rmd_dist.parallel.batch_norm import convert_batch_norm
    from rmd_dist.parallel.compute import Compute
    from rmd_dist.tasks import build_parts

    argv = words("distill", tmp_path, "--accumulation", "2", "--max-steps", "1", "--precision", "no")
    train_tiny("distill", argv)
    found = final_tensors("distill", tmp_path)
    torch.manual_seed(0)
    config = parse(DistillConfig, argv)
    parts = build_parts(config, Compute(), "random")
    task = parts.task
    convert_batch_norm(task.module)
    task.module.to(memory_format=torch.channels_last)
    with parts.loader as loader:
        batches = loader.epoch(0)
        for _ in range(2):
            (task.step(task.module, next(batches), logging=False).loss / 2).backward()
        batches.close()
    optim = config.optim
    for name, p in task.module.named_parameters():
        expected = p.detach() - 0.02 * (p.grad + optim.weight_decay * p.detach())
        torch.testing.assert_close(found[f"model/{name}"], expected, rtol=1e-5, atol=1e-6)


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="bf16"):
        train_tiny("pretrain", words("pretrain", tmp_path, "--precision", "fp16"))


def test_bf16_trains_and_stays_close_to_fp32(tmp_path):
    for name, precision in (("full", "no"), ("half", "bf16")):
        train_tiny("distill", words("distill", tmp_path / name, "--max-steps", "3", "--precision", precision))
    full, halved = (losses(tmp_path / name / "distill" / "tiny") for name in ("full", "half"))
    assert halved == pytest.approx(full, rel=0.01) and halved != full
    half = final_tensors("distill", tmp_path / "half")
    assert all(t.dtype == torch.float32 for t in half.values() if t.is_floating_point())


def test_chance_level_twice_in_a_row_is_called_a_collapse(tmp_path, capsys):
    """A student that learns nothing: loss of equal logits, accuracy of a guess; K and lr are named."""
    argv = words("distill", tmp_path, "--lr", "0", "--eval.every_epochs", "1", "--loss", "gce")
    train_tiny("distill", [*argv, "--max-steps", "10"])
    assert "collapse" not in capsys.readouterr().out  # once may happen at the start of any training
    train_tiny("distill", [*argv, "--max-steps", "30"])
    found = " ".join(capsys.readouterr().out.split())
    assert found.count("warning: collapse: test accuracy") == 1
    assert "is at chance level" in found and "(of equal logits: 1.144)" in found  # (1 - 0.1^0.7) / 0.7
    assert "a lower --K (now 0.2) or --lr" in found and "feature spread 0." in found
