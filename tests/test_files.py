"""Files are whole or absent, readable as the umask says, and damage is told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rmd_dist.config import ConfigError
from rmd_dist.files import atomic_path, load_weights, read_tensors, save_tensors, sha256, write_json


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_block_replaces_the_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old" and temporary.parent == tmp_path
    assert listing(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [{}, {"a": b"old"}], ids=["no file", "an old file"])
def test_an_exception_leaves_what_was_there(error, old, tmp_path):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert listing(tmp_path) == old


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_modes_follow_the_umask(umask, tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    save_tensors(tmp_path / "b.safetensors", {"x": torch.ones(2)})
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


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


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_bytes_are_those_of_safetensors_and_so_are_size_and_sum(tmp_path):
    """Its own `save` is the reference (several metadata it writes in any order); all kinds of tensors."""
    import hashlib

    import torch
    from safetensors.torch import save

    from rmd_dist.files import save_tensors

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


def test_nothing_here_can_run_code():
    """No pickle and no torch.load in the package: tensors are safetensors, the rest is JSON.

    data/archive.py is left out: CIFAR's archives are pickles, and it is what reads them without running them.
    """
    import re
    from pathlib import Path

    package = Path(__file__).parents[1] / "rmd_dist"
    pattern = r"torch\.load\((?!.*weights_only=True)|^\s*(import|from) (pickle|dill|joblib)|np\.load\("
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "archive.py"
        for line in path.read_text().splitlines()
        if re.search(pattern, line)
    ]
    assert found == []
