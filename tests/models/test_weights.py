"""Tensors on disk: whatever their memory, byte for byte safetensors, and damage told in one line."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from rmd_dist.errors import ConfigError
from rmd_dist.models.weights import is_pytorch, load_weights, read_pytorch, read_tensors, save_tensors


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


OTHERS = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "a page": (lambda path: path.write_text("<!DOCTYPE html>" * 9), "an HTML page.*download link"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer.*git lfs pull",
    ),
    "an array": (lambda path: path.write_bytes(b"\x93NUMPY\x01\0v\0{'descr'"), "a NumPy array"),
    "packed": (lambda path: path.write_bytes(gzip.compress(b"x" * 99)), "packed by gzip.*unpack it"),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"x": [1.5] * 9})),
        "a Python pickle.*torch.save",
    ),
    "old": (
        lambda path: torch.save({"x": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
        "PyTorch before 1.6.*convert it: python -c",
    ),
}


@pytest.mark.parametrize(("make", "said"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_kind_is_told_for_what_it_is(make, said, tmp_path):
    make(tmp_path / "x.pth")
    assert not is_pytorch(tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=said) as caught:
        read_tensors(tmp_path / "x.pth")
    assert "\n" not in str(caught.value) and "remove" not in str(caught.value)


def test_the_advice_on_old_files_works(tmp_path):
    torch.save({"x": torch.arange(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError) as caught:
        read_tensors(tmp_path / "old.pth")
    command = str(caught.value).partition("python -c ")[2].rpartition(", and give")[0].strip('"')
    subprocess.run([sys.executable, "-c", command], check=True, timeout=120, cwd=tmp_path)
    assert torch.equal(read_pytorch(tmp_path / "weights.pth")["x"], torch.arange(3))


def test_tensors_of_a_pytorch_file_by_their_names(tmp_path):
    base = torch.randn(4, 3, 2, 2)
    tensors = {
        "channels last": base.to(memory_format=torch.channels_last),
        "view": base[:, 1:],
        "tied": base,
        "count": torch.tensor(7),
        "half": base.bfloat16(),
    }
    around = {"epoch": 3, "names": ["a"], "state": tensors | {"parameter": nn.Parameter(base)}, 5: {6: base}}
    torch.save(around, tmp_path / "x.pth")
    assert is_pytorch(tmp_path / "x.pth")
    found = read_pytorch(tmp_path / "x.pth")
    expected = {f"state.{k}": v for k, v in tensors.items()} | {"state.parameter": base, "5.6": base}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


REFUSED = {
    "a whole model": (lambda _: nn.Linear(2, 2), "asks for torch.nn.modules.linear Linear.*state_dict"),
    "other objects": (lambda _: {"x": torch.ones(1), "args": argparse.Namespace()}, "argparse Namespace"),
    "code": (lambda folder: {"x": _Code(folder / "canary")}, "asks for .*exec"),
    "a list": (lambda _: [torch.ones(2)], "holds no tensors with names"),
    "a sparse tensor": (lambda _: {"x": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_more_than_tensors_is_refused_and_not_run(make, said, tmp_path):
    torch.save(make(tmp_path), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=said) as caught:
        read_pytorch(tmp_path / "x.pth")
    assert "save its tensors alone" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_damaged_pytorch_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.ones(500)}, path)
    whole = path.read_bytes()
    place = whole.index(b"\0\0\x80\x3f" * 100) + 40
    for content in (whole[:-1], whole[:300], whole[:place] + b"\x55" + whole[place + 1 :], whole[:4]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot be read as a PyTorch file .*get it afresh") as caught:
            read_pytorch(path)
        assert "\n" not in str(caught.value)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.ones(500)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"M\xf4\x01", b"M\xff\xff"))  # 500, in shape and storage
    with pytest.raises(ConfigError, match="cannot be read as a PyTorch file"):
        read_pytorch(path)


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
