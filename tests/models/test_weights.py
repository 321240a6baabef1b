"""Tensors on disk: whatever their memory, byte for byte safetensors, and damage told in one line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from rmd_dist.errors import ConfigError
from rmd_dist.models.weights import load_weights, read_tensors, save_tensors


def test_tensors_come_back_whatever_their_memory(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    tensors = {
        "plain": base,
        "channels last": base.to(memory_format=torch.channels_last),
        "a view of it": base[:, 1:],
        "tied": base,
        "parameter": nn.Parameter(base * 2),
        "count": torch.tensor(7),
        "half": base.bfloat16(),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in tensors.items())


DAMAGED = {
    "empty": lambda good: good[:0],
    "cut short": lambda good: good[:-1],
    "cut in its header": lambda good: good[:20],
    "a broken header": lambda good: good[:8] + b"\xff" + good[9:],
    "a pickle": lambda good: b"\x80\x02}q\x00." + good,
    "a text": lambda good: b"no tensors, but words\n" * len(good),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_safetensors_are_told_in_one_line(damage, tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"x": torch.ones(5)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match="not an intact safetensors file") as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_or_not_a_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_tensors(tmp_path / "nowhere.safetensors")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"weight": torch.zeros(2, 3)}, "1 missing (such as bias)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, "1 unknown (such as x)"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "1 of another shape (such as weight)"),
        ({}, "2 missing (such as bias)"),
    ],
)
def test_weights_of_another_model_are_refused_and_none_is_loaded(tensors, named, tmp_path):
    module = nn.Linear(3, 2)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(ConfigError) as caught:
        load_weights(module, tensors, Path("some/file"))
    assert named in str(caught.value) and "some/file" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_the_bytes_are_those_of_safetensors_and_so_are_size_and_sum(tmp_path):
    """Its own `save` is the reference (several metadata it writes in any order); all kinds of tensors."""
    torch.manual_seed(0)
    shared = torch.randn(4, 3, 5, 5)
    tensors = {
        "z": shared.to(memory_format=torch.channels_last),
        "half": torch.randn(7).to(torch.bfloat16),
        "a": shared,
        "again": shared,
        "count": torch.tensor(3),
        "none": torch.zeros(0, 2),
        "flags": torch.tensor([True, False, True]),
        "double": torch.randn(2, dtype=torch.float64),
    }
    found = save_tensors(tmp_path / "x.safetensors", tensors)
    plain = {name: t.contiguous().clone() for name, t in tensors.items()}
    expected = save(plain, metadata={"format": "pt"})
    content = (tmp_path / "x.safetensors").read_bytes()
    assert found == (len(content), hashlib.sha256(content).hexdigest())
    assert content == expected
