"""The state of a run: whatever optimizer and average it has, a run in two parts is the run in one."""

from __future__ import annotations

import json

import pytest
import torch

from rmd_dist.errors import ConfigError
from rmd_dist.models.export import load
from tests.tiny import final_tensors, tensors_at, train_tiny, words

SHORT = ("--checkpoint.every_steps", "3", "--model", "resnet18_cifar_w16_s2")


def in_two_parts(tmp_path, *more: str) -> tuple[dict, dict]:
    """(tensors after 6 steps at once, after 3 + 3 steps)."""
    found = []
    for name, parts in (("whole", ("6",)), ("parts", ("3", "6"))):
        for steps in parts:
            train_tiny("distill", words("distill", tmp_path / name, *SHORT, *more, "--max-steps", steps))
        found.append(final_tensors("distill", tmp_path / name))
    return found[0], found[1]


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "nadamw", "adafactor"])
def test_any_optimizer_continues_exactly(name, tmp_path):
    whole, parts = in_two_parts(tmp_path, "--optim.name", name, "--lr", "0.001", "--optim.ema_decay", "0.9")
    assert whole.keys() == parts.keys() and any(key.startswith("ema/") for key in whole)
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


def test_the_average_is_what_is_measured_and_exported(tmp_path):
    """By hand: a = d a + (1 - d) w after every step, from the first step's weights on."""
    words_of = words("distill", tmp_path, *SHORT, "--checkpoint.every_steps", "1", "--keep", "9")
    train_tiny("distill", [*words_of, "--optim.ema_decay", "0.3", "--max-steps", "4"])
    average = None
    for step in range(1, 5):
        tensors = tensors_at("distill", tmp_path, step)
        weight = tensors["model/model.conv1.weight"]
        decay = min(0.3, 1 - step ** (-2 / 3)) if step > 1 else 0.0  # timm's warm-up
        average = weight if average is None else decay * average + (1 - decay) * weight
        torch.testing.assert_close(tensors["ema/model.conv1.weight"], average)
    folder = tmp_path / "distill" / "tiny"
    exported = load(folder, "").module.state_dict()
    newest = sorted((folder / "checkpoints").glob("*.safetensors"))[-1]
    for loaded in (exported, load(newest, "").module.state_dict()):
        torch.testing.assert_close(loaded["conv1.weight"], average)
        assert not torch.allclose(loaded["conv1.weight"], weight, atol=1e-6)


def test_a_checkpoint_that_does_not_name_its_network_is_read_as_before(tmp_path):
    train_tiny("distill", words("distill", tmp_path, *SHORT, "--max-steps", "3"))
    checkpoint = tmp_path / "distill/tiny/checkpoints/step-000000003.safetensors"
    named = load(checkpoint, "").module.state_dict()
    about = json.loads(checkpoint.with_suffix(".json").read_text())
    assert about["scalars"].pop("network") == "model/model."
    checkpoint.with_suffix(".json").write_text(json.dumps(about))
    unnamed = load(checkpoint, "").module.state_dict()
    assert all(torch.equal(unnamed[name], value) for name, value in named.items())


def test_an_optimizer_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.name = 'sdg' is not known; use sgd or one of .*adamw"):
        train_tiny("distill", words("distill", tmp_path, "--optim.name", "sdg"))
    assert not list(tmp_path.glob("*/*"))


def test_a_task_may_own_tensors(tmp_path, monkeypatch):
    """What a task changes beside its model is saved, and back after a restart."""
    from rmd_dist.tasks import DistillTask

    step = DistillTask.step

    def tensors(self):
        if not hasattr(self, "seen"):
            self.seen = torch.zeros(1797)
        return {"seen": self.seen}

    def counting(self, module, batch, *, logging):
        self.seen[batch.index] += 1
        return step(self, module, batch, logging=logging)

    monkeypatch.setattr(DistillTask, "tensors", tensors)
    monkeypatch.setattr(DistillTask, "step", counting)
    whole, parts = in_two_parts(tmp_path)
    assert whole["task/seen"].sum() == 6 * 48 and torch.equal(whole["task/seen"], parts["task/seen"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_is_left_out_by_any_optimizer(name, tmp_path, monkeypatch):
    from rmd_dist.tasks import DistillTask, StepOutput

    step, calls = DistillTask.step, []

    def spoilt(self, module, batch, *, logging):
        output = step(self, module, batch, logging=logging)
        calls.append(1)
        return StepOutput(output.loss * torch.nan, output.values) if len(calls) == 2 else output

    monkeypatch.setattr(DistillTask, "step", spoilt)
    words_of = words("distill", tmp_path, "--checkpoint.every_steps", "1", "--on-nonfinite", "skip")
    train_tiny("distill", [*words_of, "--optim.name", name, "--max-steps", "3"])
    one, two, three = (tensors_at("distill", tmp_path, step) for step in (1, 2, 3))
    model = [key for key in one if key.startswith("model/")]
    assert all(torch.equal(one[key], two[key]) for key in model)
    assert not all(torch.equal(two[key], three[key]) for key in model)
