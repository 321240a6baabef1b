"""Checkpoints: exact to the bit and the stride, verified before they are used, never half there."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rmd_dist.engine import checkpoint
from rmd_dist.engine.checkpoint import newest, open_checkpoint, write_checkpoint
from rmd_dist.engine.state import State
from rmd_dist.errors import ConfigError
from tests.tiny import train_tiny, words

SCALER = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 3}


def network(classes: int = 5, seed: int = 0) -> tuple[nn.Module, torch.optim.SGD]:
    """A small channels-last network and its optimizer."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ).to(memory_format=torch.channels_last)
    return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(module: nn.Module, optimizer: torch.optim.SGD, steps: range) -> None:
    for step in steps:
        x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        module(x.to(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def state(module: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Weights, buffers and momentum by name."""
    momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in module.named_parameters()}
    return module.state_dict() | {f"{name} momentum": value for name, value in momentum.items()}


def save(
    folder: Path, step: int, module: nn.Module, optimizer: torch.optim.SGD, keep: int = 9, follows: int = 0
) -> Path:
    snapshot = State(module, optimizer, step=step).snapshot({"scaler": SCALER})
    return write_checkpoint(folder, snapshot, keep=keep, follows=follows)


def saved(folder: Path, *steps: int, keep: int = 9, follows: int = 0) -> Path:
    """Checkpoints of a network in training at `steps`, the first after `follows`; returns the last."""
    module, optimizer = network()
    path, at = folder, follows
    for step in steps:
        train(module, optimizer, range(at, step))
        path, at = save(folder, step, module, optimizer, keep, follows=at), step
    return path


def test_a_restored_state_is_the_saved_one_and_goes_on_the_same(tmp_path):
    module, optimizer = network()
    train(module, optimizer, range(3))
    save(tmp_path, 3, module, optimizer)
    other, its_optimizer = network(seed=1)
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 3
    State(other, its_optimizer).restore(found)
    assert found.scalars["scaler"] == SCALER
    for _ in range(2):
        expected, restored = state(module, optimizer), state(other, its_optimizer)
        assert expected.keys() == restored.keys() and len(expected) > 10
        for name, value in expected.items():
            assert torch.equal(restored[name], value), name
            assert restored[name].stride() == value.stride() and restored[name].dtype == value.dtype, name
        assert restored["0.weight momentum"].is_contiguous(memory_format=torch.channels_last)
        train(module, optimizer, range(3, 6))
        train(other, its_optimizer, range(3, 6))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def another_format(path: Path) -> None:
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"format": 999}))


def json_of(text: str):
    return lambda path: path.with_suffix(".json").write_text(text)


DAMAGES = {
    "a flipped byte": flip_a_byte,
    "cut short": cut_short,
    "tensors gone": Path.unlink,
    "foreign json": json_of('{"hello": 1}'),
    "a list": json_of("[]"),
    "torn json": json_of('{"format": 1, "step"'),
    "binary": lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\x00"),
    "another format": another_format,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_is_named_and_passed_over(damage, tmp_path):
    path = saved(tmp_path, 2, 4)
    damage(path)
    with pytest.raises(ConfigError, match=path.name) as caught:
        open_checkpoint(path)
    warnings: list[str] = []
    found = newest(tmp_path, warn=warnings.append)
    assert found is not None and found.step == 2
    assert len(warnings) == 1 and str(caught.value) in warnings[0] and "\n" not in warnings[0]
    State(*network(seed=1)).restore(found)


def test_without_its_json_a_checkpoint_does_not_exist(tmp_path):
    """The JSON comes last: tensors alone are what a killed save left."""
    path = saved(tmp_path, 2, 4)
    path.with_suffix(".json").unlink()
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 2
    with pytest.raises(ConfigError, match=r"not an intact checkpoint.*\.json"):
        open_checkpoint(path)


def test_nothing_intact_is_nothing(tmp_path):
    assert newest(tmp_path / "nowhere", warn=pytest.fail) is None
    flip_a_byte(saved(tmp_path, 1))
    assert newest(tmp_path, warn=lambda _: None) is None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pair(*steps: int) -> list[str]:
    return sorted(f"step-{step:09d}.{end}" for step in steps for end in ("json", "safetensors"))


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 9, 10, 100, keep=2)
    assert names(tmp_path) == pair(10, 100)


def test_a_run_continued_from_an_earlier_step_drops_the_abandoned_future(tmp_path):
    """`--resume .../step-000000004.safetensors` where later ones exist; one of those may be damaged."""
    flip_a_byte(saved(tmp_path, 4, 6, 8))
    saved(tmp_path, 5, keep=3, follows=4)
    assert names(tmp_path) == pair(4, 5)
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 5


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing past `size` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("step", [2, 4], ids=["over an old one", "a new one"])
def test_a_failing_write_leaves_the_previous_and_no_debris(step, tmp_path):
    saved(tmp_path, 1, 2, keep=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    module, optimizer = network()
    train(module, optimizer, range(step))
    with files_up_to(2000), pytest.raises(OSError, match="too large"):
        save(tmp_path, step, module, optimizer, keep=1, follows=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_save_that_fails_between_its_files_is_not_there(tmp_path, monkeypatch):
    saved(tmp_path, 2)

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 4, keep=1, follows=2)
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 2
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    path = saved(tmp_path, 2)
    for other, optimizer in (network(classes=7), _deeper()):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ConfigError, match="another model") as caught:
            State(other, optimizer).restore(open_checkpoint(path))
        assert "\n" not in str(caught.value) and path.name in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
        assert not optimizer.state


def _deeper() -> tuple[nn.Module, torch.optim.SGD]:
    module = nn.Sequential(*network()[0], nn.ReLU(), nn.Linear(5, 5))
    return module, torch.optim.SGD(module.parameters(), lr=0.1)


def test_a_run_killed_in_its_first_save_starts_anew(tmp_path):
    """Tensors without their JSON were never a checkpoint: there is nothing to restore."""
    folder = tmp_path / "distill" / "tiny" / "checkpoints"
    folder.mkdir(parents=True)
    saved(folder, 2).with_suffix(".json").unlink()
    train_tiny("distill", words("distill", tmp_path, "--max-steps", "1"))
    assert newest(folder, warn=pytest.fail).step == 1
