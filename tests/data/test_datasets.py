"""Data sets as arrays: the official archives in each form, digits, and every way a source can be wrong."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmd_dist.config.datasets import SMALL
from rmd_dist.data.dataset import Samples, dataset_info, load_samples
from rmd_dist.data.labels import make_labels
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.sources import SOURCES, archive
from rmd_dist.data.sources.cifar import CIFAR10, CIFAR100
from rmd_dist.data.sources.cifar_classes import CIFAR100_CLASSES, CIFAR100_COARSE, CIFAR100_SUPERCLASSES
from rmd_dist.errors import ConfigError

from .archives import SHARED, batch, cifar10, cifar100, dumps, write_folder, write_tar

NOWHERE = Path("nowhere")


def expected(count: int, classes: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    content = batch(count, classes, seed)
    images = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.array(content[b"labels" if classes == 10 else b"fine_labels"])


def test_cifar10_in_every_form(tmp_path: Path) -> None:
    members = cifar10()
    tar = write_tar(tmp_path / "any-name.tar.gz", members)
    plain = write_tar(tmp_path / "any-name.tar", members, "w")
    holder = write_folder(tmp_path / "holder", members)
    parts = [expected(10, 10, i) for i in range(1, 6)]
    for source in (tar, plain, holder, holder / "cifar-10-batches-py"):
        train = load_samples("cifar10", "train", NOWHERE, source)
        np.testing.assert_array_equal(train.images, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(train.labels, np.concatenate([part[1] for part in parts]))
        assert train.images.flags.c_contiguous
        assert train.labels.dtype == np.int64
        assert train.source_sha256 == CIFAR10.sha256(source)
        test = load_samples("cifar10", "test", NOWHERE, source)
        np.testing.assert_array_equal(test.images, expected(20, 10, 6)[0])


def test_cifar100(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "cifar-100-python.tar.gz", cifar100())
    train = load_samples("cifar100", "train", tmp_path)  # found in root
    np.testing.assert_array_equal(train.images, expected(50, 100, 0)[0])
    np.testing.assert_array_equal(train.labels, expected(50, 100, 0)[1])
    assert train.source == str(tar)


def test_root_is_searched_before_the_network(tmp_path: Path) -> None:
    members = cifar10()
    write_folder(tmp_path, members)
    assert load_samples("cifar10", "test", tmp_path).source == str(tmp_path / "cifar-10-batches-py")
    tar = write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    assert load_samples("cifar10", "test", tmp_path).source == str(tar)


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".tar.bz2", ".tar.xz"])
def test_other_packings_of_the_archive_are_found(tmp_path: Path, suffix: str) -> None:
    mode = {".tgz": "w:gz", ".tar": "w"}.get(suffix, f"w:{suffix[5:]}")
    flat = {name.rpartition("/")[2]: content for name, content in cifar10().items()}
    tar = write_tar(tmp_path / f"cifar-10-python{suffix}", flat, mode)
    found = load_samples("cifar10", "train", tmp_path)
    assert found.source == str(tar) and CIFAR10.is_here(tmp_path, None)
    np.testing.assert_array_equal(found.images[:10], expected(10, 10, 1)[0])


def test_an_intact_folder_is_read_beside_a_broken_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = cifar10()
    write_folder(tmp_path, members)
    folder = tmp_path / "cifar-10-batches-py"
    whole = write_tar(tmp_path / "cifar-10-python.tar.gz", members).read_bytes()
    tar = tmp_path / "cifar-10-python.tar.gz"
    assert load_samples("cifar10", "test", tmp_path).source == str(tar) and not capsys.readouterr().out
    tar.write_bytes(whole[:-100])
    for source in (None, tmp_path):
        assert load_samples("cifar10", "test", tmp_path, source).source == str(folder)
        said = capsys.readouterr().out
        assert said.startswith(f"warning: reading {folder} instead: {tar} is empty, cut short or damaged")
    with pytest.raises(ConfigError, match="cut short or damaged"):
        load_samples("cifar10", "test", tmp_path, tar)  # which was named
    (folder / "test_batch").write_bytes(b"")
    with pytest.raises(ConfigError, match="test_batch is damaged"):
        load_samples("cifar10", "test", tmp_path)


def test_samples_sha_is_of_content(tmp_path: Path) -> None:
    members = cifar10()
    tar = load_samples("cifar10", "train", NOWHERE, write_tar(tmp_path / "x.tgz", members))
    folder = load_samples("cifar10", "train", NOWHERE, write_folder(tmp_path, members))
    other = load_samples("cifar10", "train", NOWHERE, write_folder(tmp_path / "o", cifar10(seed=9)))
    assert tar.sha256() == folder.sha256() != other.sha256()
    assert tar.source_sha256 != folder.source_sha256 != other.source_sha256


def _spoil(members: dict[str, bytes], how: str) -> dict[str, bytes]:
    """Each damage to the third training batch, or to the archive as a whole."""
    name = "cifar-10-batches-py/data_batch_3"
    content = batch(10, 10, 3)
    if how == "missing":
        return {key: value for key, value in members.items() if key != name}
    if how == "foreign":
        return cifar100()
    if how == "names":
        return members | {"cifar-10-batches-py/batches.meta": dumps({b"label_names": [b"x"] * 10})}
    if how == "no images":
        return {key: dumps(batch(0, 10, 0)) if "_batch" in key else value for key, value in members.items()}
    if how == "range":
        content[b"labels"][4] = 10
    if how == "negative":
        content[b"labels"][4] = -1
    if how == "huge":
        content[b"labels"][4] = 1 << 80
    if how == "text":
        content[b"labels"][4] = b"cat"
    if how == "count":
        content[b"labels"].append(1)
    if how == "dtype":
        content[b"data"] = content[b"data"].astype(np.int64)
    if how == "shape":
        content[b"data"] = content[b"data"][:, :-1]
    if how == "key":
        del content[b"labels"]
    if how == "list":
        content[b"data"] = [1, 2]
    if how == "empty":
        return members | {name: b""}
    if how == "cut":
        return members | {name: members[name][:-100]}
    if how == "code":
        return members | {name: pickle.dumps(pytest.fail)}
    return members | {name: dumps(content)}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_checksums_are_those_of_torchvision(name: str) -> None:
    from torchvision import datasets

    theirs = getattr(datasets, name.upper())
    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    listed = [*theirs.train_list, *theirs.test_list, [theirs.meta["filename"], theirs.meta["md5"]]]
    assert source.published == {md5 for _, md5 in listed}
    assert [member for member, _ in listed] == [
        *source.members["train"], *source.members["test"], source.meta
    ]  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_published_members_are_read_by_python_itself(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same samples on both ways; members whose checksum is not known stay with the restricted reader."""
    members = cifar10()
    source = write_tar(tmp_path / "x.tgz", members) if packed else write_folder(tmp_path / "x", members)
    restricted: list[int] = []
    check = archive._check_opcodes
    monkeypatch.setattr(archive, "_check_opcodes", lambda payload: restricted.append(1) or check(payload))
    foreign = load_samples("cifar10", "train", NOWHERE, source)
    assert len(restricted) == 6  # five batches and the names
    known = {hashlib.md5(content).hexdigest() for name, content in members.items() if "batch_3" not in name}
    official = replace(CIFAR10, published=frozenset(known))
    restricted.clear()
    straight = official.load("train", NOWHERE, source)
    assert len(restricted) == 1
    assert straight.sha256() == foreign.sha256() and straight.source_sha256 == foreign.source_sha256
    assert straight.images.flags.writeable and straight.images.flags.c_contiguous


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"has no data_batch_3: not CIFAR-10, or not all of it \(data_batch_1, .*data_batch_5\)"),
        (
            "foreign",
            r"holds no cifar-10-batches-py and no .*, but cifar-100-python|intact, but holds cifar-100-p",
        ),
        ("names", "class names are not those of CIFAR-10"),
        ("no images", "has 0 train images"),
        ("range", "labels outside 0 to 9"),
        ("negative", "labels outside 0 to 9"),
        ("huge", "labels outside 0 to 9"),
        ("text", "no list of integers"),
        ("count", "for 11 labels"),
        ("dtype", r"int64 \(10, 3072\)"),
        ("shape", r"uint8 \(10, 3071\)"),
        ("key", "has no labels: not CIFAR-10"),
        ("list", "holds list for 10 labels"),
        ("empty", "data_batch_3 is damaged"),
        ("cut", "data_batch_3 is damaged"),
        ("code", "_pytest.* no numpy array needs"),
    ],
)
def test_a_bad_source_says_so(tmp_path: Path, how: str, message: str, packed: bool) -> None:
    members = _spoil(cifar10(), how)
    source = write_tar(tmp_path / "x.tgz", members) if packed else write_folder(tmp_path / "x", members)
    with pytest.raises(ConfigError, match=message) as caught:
        load_samples("cifar10", "train", NOWHERE, source)
    assert "cifar-10-python.tar.gz" in str(caught.value)  # the remedy
    assert "\n" not in str(caught.value)


def test_more_images_than_official_are_refused(tmp_path: Path) -> None:
    smaller = replace(CIFAR10, info=replace(CIFAR10.info, train_count=49))
    source = write_folder(tmp_path, cifar10())
    smaller.load("test", NOWHERE, source)
    with pytest.raises(ConfigError, match="has 50 train images; CIFAR-10 has 49"):
        smaller.load("train", NOWHERE, source)


def test_coarse_labels_must_fit(tmp_path: Path) -> None:
    content = batch(50, 100, 0)
    content[b"coarse_labels"][7] = (content[b"coarse_labels"][7] + 1) % 20
    source = write_folder(tmp_path, cifar100() | {"cifar-100-python/train": dumps(content)})
    with pytest.raises(ConfigError, match="do not belong together"):
        load_samples("cifar100", "train", NOWHERE, source)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"hello" * 1000])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"empty, cut short or damaged.*Get cifar-10-python"):
        load_samples("cifar10", "train", tmp_path)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; give the CIFAR-10 python archive"):
        load_samples("cifar10", "train", NOWHERE, tmp_path / "x")
    with pytest.raises(ConfigError, match="holds no cifar-10-batches-py and no cifar-10-python"):
        load_samples("cifar10", "train", NOWHERE, tmp_path)


def test_download_is_checked_and_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    archive = write_tar(tmp_path / "remote.tgz", cifar10())

    def download(url: str, root: str, filename: str, md5: str) -> None:
        calls.append((url, md5))
        shutil.copy(archive, Path(root) / filename)
        if len(calls) == 1:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    root = tmp_path / "data"
    with pytest.raises(ConfigError, match=r"corrupted.*give it as --source, or use --dataset digits"):
        load_samples("cifar10", "train", root)
    assert [path.suffix for path in root.iterdir()] == [".lock"]
    assert len(load_samples("cifar10", "train", root).labels) == 50
    assert calls[1] == (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
    )
    load_samples("cifar10", "test", root)
    assert len(calls) == 2


def test_digits() -> None:
    import torch
    from sklearn.datasets import load_digits

    bunch = load_digits()
    train, test = (load_samples("digits", split, NOWHERE) for split in ("train", "test"))
    info = dataset_info("digits")
    assert (len(train.labels), len(test.labels)) == (info.train_count, info.test_count) == (1437, 360)
    for c in range(10):
        assert abs((test.labels == c).sum() - 0.2 * (bunch.target == c).sum()) < 1

    # Together they are all digits, each once, and bilinear as torch has it.
    grey = torch.nn.functional.interpolate(
        torch.tensor(bunch.images)[:, None] / 16 * 255, scale_factor=2, mode="bilinear"
    )
    want = grey[:, 0].numpy()
    got = np.concatenate([train.images, test.images])
    assert (got[..., 0] == got[..., 1]).all()
    assert (got[..., 0] == got[..., 2]).all()
    held = np.zeros(1797, bool)
    held[np.argsort(bunch.target, kind="stable")[::5]] = True
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    assert np.abs(got[..., 0] - want[order]).max() <= 0.51
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), bunch.target[order])

    np.testing.assert_allclose(train.images.mean((0, 1, 2)) / 255, info.mean, atol=5e-5)
    np.testing.assert_allclose(train.images.std((0, 1, 2)) / 255, info.std, atol=5e-5)


def test_digits_take_no_source() -> None:
    with pytest.raises(ConfigError, match="take no source"):
        load_samples("digits", "train", NOWHERE, Path("x"))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="'cifar' is unknown; choose one of cifar10, cifar100, digits"):
        load_samples("cifar", "train", NOWHERE)
    with pytest.raises(ValueError, match="train or test"):
        load_samples("cifar10", "val", NOWHERE)  # type: ignore[arg-type]


def test_sources_are_listed_by_their_names() -> None:
    assert tuple(SOURCES) == SMALL == ("cifar10", "cifar100", "digits")
    assert all(source.info.name == name for name, source in SOURCES.items())
    assert [dataset_info(name).num_classes for name in SOURCES] == [10, 100, 10]


def test_what_is_here(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", cifar10())
    assert SOURCES["digits"].is_here(NOWHERE, None)
    assert CIFAR10.is_here(NOWHERE, source) and CIFAR10.is_here(source, None)
    assert not CIFAR10.is_here(NOWHERE, None) and not CIFAR10.is_here(source, NOWHERE)
    assert not CIFAR100.is_here(source, None)


class Stripes:
    """A data source of six images."""

    info = replace(dataset_info("digits"), name="stripes", classes=("thin", "wide"), image_size=8)
    needs_files = False

    def is_here(self, *_: object) -> bool:
        return True

    def load(self, *_: object) -> Samples:
        images = np.zeros((6, 8, 8, 3), np.uint8)
        images[:, ::2] = 255
        return Samples(images, np.arange(6) % 2, "stripes", self.sha256())

    def sha256(self, *_: object) -> str:
        return "0" * 64


def test_a_source_is_one_object_in_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading, betons and labels know no names of their own."""
    monkeypatch.setitem(SOURCES, "stripes", Stripes())
    mapped = open_dataset("stripes", "train", root=tmp_path, source=tmp_path)
    held = open_dataset("stripes", "train", root=tmp_path, loader="memory")
    assert mapped.info is held.info is dataset_info("stripes") is Stripes.info
    assert mapped.sha256 == held.sha256 and mapped.beton == tmp_path / "stripes_train.beton"
    np.testing.assert_array_equal(make_labels(mapped, "pairflip", 1.0, 0).given, 1 - mapped.labels)


def test_cifar100_superclasses() -> None:
    assert len(set(CIFAR100_CLASSES)) == 100
    assert [CIFAR100_COARSE.count(c) for c in range(20)] == [5] * 20
    assert len(CIFAR100_SUPERCLASSES) == 20
    # The first and last ids of the official meta file, and its first coarse labels.
    assert CIFAR100_CLASSES[:3] == ("apple", "aquarium_fish", "baby")
    assert CIFAR100_CLASSES[-1] == "worm"
    assert CIFAR100_COARSE[:10] == (4, 1, 14, 8, 0, 6, 7, 7, 18, 3)


def test_samples_are_checked() -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64)
    Samples(images, labels)
    for bad_images, bad_labels in (
        (images[:3], labels),
        (images.astype(float), labels),
        (images[..., :2], labels),
        (images.transpose(0, 2, 1, 3), labels),
        (images, labels.astype(np.int32)),
    ):
        with pytest.raises(ValueError, match="must be"):
            Samples(bad_images, bad_labels)  # type: ignore[arg-type]


def test_reading_needs_no_heavy_import(tmp_path: Path) -> None:
    source = write_folder(tmp_path, cifar10())
    code = (
        "import sys; from pathlib import Path; from rmd_dist.data.prepare import prepare, open_dataset\n"
        f"root, source = Path({str(tmp_path)!r}), Path({str(source)!r})\n"
        "open_dataset('cifar10', 'train', root=root, source=source)\n"
        "assert not {'torch', 'torchvision', 'ffcv', 'sklearn'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(not (SHARED / "make_cifar10.py").exists(), reason="no real images beside the repository")
def test_real_cifar10(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    command = [
        sys.executable,
        SHARED / "make_cifar10.py",
        tmp_path,
        "--train",
        "503",
        "--test",
        "100",
        "--tar",
    ]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    info = dataset_info("cifar10")
    train = load_samples("cifar10", "train", NOWHERE, tmp_path)
    assert train.images.shape == (503, 32, 32, 3)
    assert train.source.endswith(".tar.gz")
    np.testing.assert_allclose(train.images.mean((0, 1, 2)) / 255, info.mean, atol=0.02)
    assert train.labels[:5].tolist() == [
        6,
        9,
        9,
        4,
        1,
    ]  # the official order: frog, truck, truck, deer, automobile
    unpacked = load_samples("cifar10", "train", NOWHERE, tmp_path / "cifar-10-batches-py")
    assert unpacked.sha256() == train.sha256()
    assert len(load_samples("cifar10", "test", NOWHERE, tmp_path).labels) == 100
