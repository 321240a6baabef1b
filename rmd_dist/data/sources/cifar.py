"""The official python archives of CIFAR-10 and CIFAR-100: found, downloaded, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist import files
from rmd_dist.data.sources.archive import MAX_MEMBER_BYTES, load_pickled_dict, read_members
from rmd_dist.data.sources.base import DatasetInfo, Samples, Split
from rmd_dist.data.sources.cifar_classes import (
    CIFAR10_CLASSES,
    CIFAR10_CONFUSIONS,
    CIFAR100_CLASSES,
    CIFAR100_COARSE,
    CIFAR100_CONFUSIONS,
)
from rmd_dist.errors import ConfigError

SIZE = 32
SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz", ".zip")
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets, by the names inside its archive.

    A source is the archive, packed in any usual way, its unpacked folder, or a folder that holds either; of
    a folder that holds both the archive is read, or if that is damaged the unpacked folder. It may have
    fewer images than the official one.
    """

    info: DatasetInfo
    title: str
    tar: str
    folder: str
    members: Mapping[str, tuple[str, ...]]
    """Members of each split, in the order of their images."""
    meta: str
    label_key: str
    names_key: str
    published: frozenset[str]
    """MD5 of each official member, as torchvision has them."""
    needs_files: bool = True

    def is_here(self, root: Path, source: Path | None) -> bool:
        """Whether there is an archive or folder to read: in `source`, or without one in `root`."""
        return (self._look(source) if source is not None else self._local(root)) is not None

    def load(self, split: Split, root: Path, source: Path | None) -> Samples:
        """One split in the archive's order: from `source`, else from `root`, else downloaded into `root`.

        Raises ConfigError, with the remedy, when anything about the archive is not as it should be.
        """
        archive = self._find(source) if source is not None else self._local(root) or self._download(root)
        try:
            return self._samples(split, archive)
        except ConfigError as error:
            beside = archive.parent / self.folder
            if archive != source and archive.is_file() and beside.is_dir():
                print(f"warning: reading {beside} instead: {error}", flush=True)
                return self._samples(split, beside)
            raise

    def _samples(self, split: Split, archive: Path) -> Samples:
        try:
            images, labels = self._read(split, archive)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. Get {self.tar} afresh from {HOME} and give it as --source"
            ) from error
        return Samples(images, labels, str(archive), self._sha256(archive))

    def sha256(self, source: Path) -> str:
        """SHA-256 of a tar; of the names and contents of the official files in an unpacked folder."""
        return self._sha256(self._find(source))

    def _find(self, source: Path) -> Path:
        """The tar or unpacked folder that `source` is or holds."""
        try:
            found = self._look(source)
        except OSError as error:  # a folder that may not be looked into
            raise _unreadable(source, error) from error
        if found is None:
            what = f"holds no {self.folder} and no {self.tar}" if source.exists() else "does not exist"
            if source.is_dir() and (held := sorted(path.name for path in source.iterdir())):
                what += f", but {', '.join(held[:3])}{' and so on' if held[3:] else ''}"
            raise ConfigError(
                f"source {source} {what}; give the {self.title} python archive ({self.tar}, "
                f"from {HOME}) or its unpacked folder"
            )
        return found

    def _local(self, root: Path) -> Path | None:
        return self._look(root) if root.is_dir() else None

    def _look(self, path: Path) -> Path | None:
        if path.is_file() or (path / self.members["train"][0]).is_file():
            return path
        if path.is_dir() and path.resolve().name == self.folder:
            return path
        for suffix in SUFFIXES:
            if (packed := path / self.tar.replace(".tar.gz", suffix)).is_file():
                return packed
        return path / self.folder if (path / self.folder).is_dir() else None

    def _download(self, root: Path) -> Path:
        """torchvision's download with its MD5, once for all processes; extraction is left out."""
        with files.exclusive(root / f".{self.tar}.lock"):
            found = self._local(root)
            if found is not None:  # another process was first
                return found
            files.remove_debris(root, self.tar)
            from torchvision import datasets
            from torchvision.datasets.utils import download_url

            origin = getattr(datasets, self.info.name.upper())
            try:
                with files.atomic_path(root / self.tar) as temporary:
                    download_url(origin.url, str(root), temporary.name, origin.tgz_md5)
            except (OSError, RuntimeError) as error:
                raise ConfigError(
                    f"{self.title} is not in {root} and cannot be downloaded ({error}); fetch {self.tar} "
                    f"from {HOME} and give it as --source, or use --dataset digits, which needs no files"
                ) from error
            return root / self.tar

    def _sha256(self, archive: Path) -> str:
        try:
            if archive.is_file():
                return files.sha256(archive)
            digest = hashlib.sha256()
            for member in (*self.members["train"], *self.members["test"], self.meta):
                if (archive / member).is_file():
                    digest.update(f"{member}\n".encode())
                    digest.update(files.read_bytes(archive / member, MAX_MEMBER_BYTES))
            return digest.hexdigest()
        except OSError as error:
            raise _unreadable(archive, error) from error

    def _read(self, split: Split, archive: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images (N, 32, 32, 3) and labels (N,)."""
        contents = self._contents(archive, (*self.members[split], self.meta))
        if self.meta in contents:
            self._check_names(self._unpickled(contents.pop(self.meta), f"{archive}: {self.meta}"))
        present, parts = [name for name in self.members[split] if name in contents], []
        for member in self.members[split]:
            if member not in contents:
                found = ", ".join(present) or "nothing of it"
                raise ConfigError(f"{archive} has no {member}: not {self.title}, or not all of it ({found})")
            origin = f"{archive}: {member}"
            parts.append(self._batch(self._unpickled(contents.pop(member), origin), origin))
        labels = np.concatenate([part[1] for part in parts])
        if not 0 < len(labels) <= self.info.count(split):
            count = self.info.count(split)
            raise ConfigError(f"{archive} has {len(labels)} {split} images; {self.title} has {count}")
        images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
        for colour in range(3):  # plane by plane, which is twice as fast as one transposing copy
            np.concatenate([part[0][:, colour] for part in parts], out=images[..., colour])
        return images, labels

    def _contents(self, archive: Path, names: Sequence[str]) -> dict[str, bytes]:
        try:
            if archive.is_file():
                paths = [f"{self.folder}/{name}" for name in names]
                found = read_members(archive, paths)
                return {path.rpartition("/")[2]: content for path, content in found.items()}
            present = [name for name in names if (archive / name).is_file()]
            return {name: files.read_bytes(archive / name, MAX_MEMBER_BYTES) for name in present}
        except OSError as error:
            raise _unreadable(archive, error) from error

    def _unpickled(self, content: bytes, origin: str) -> dict[str, Any]:
        return load_pickled_dict(content, origin, trusted=self.published)

    def _check_names(self, meta: dict[str, Any]) -> None:
        given = meta.get(self.names_key)
        if not isinstance(given, list) or not all(isinstance(name, str | bytes) for name in given):
            raise ConfigError(f"it has no list of class names: not {self.title}")
        names = [name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in given]
        if tuple(names) != self.info.classes:
            raise ConfigError(f"its class names are not those of {self.title}: {str(names)[:80]}")

    def _batch(
        self, batch: dict[str, Any], origin: str
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images (n, 3, 32, 32) and labels (n,) of one member."""
        if "data" not in batch or self.label_key not in batch:
            raise ConfigError(f"{origin} has no {self.label_key}: not {self.title}")
        data, labels = batch["data"], _labels(batch[self.label_key], self.info.num_classes, origin)
        pixels = 3 * SIZE**2
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), pixels):
            found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
            raise ConfigError(f"{origin} holds {found} for {len(labels)} labels; images are uint8 (n, 3072)")
        if "coarse_labels" in batch:
            coarse = _labels(batch["coarse_labels"], 20, origin)
            if not np.array_equal(coarse, np.asarray(CIFAR100_COARSE)[labels]):
                raise ConfigError(f"{origin}: fine and coarse labels do not belong together")
        return data.reshape(-1, 3, SIZE, SIZE), labels


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be read: {error}")


def _labels(given: object, num_classes: int, origin: str) -> npt.NDArray[np.int64]:
    whole = isinstance(given, list) and all(type(label) is int for label in given)
    if not whole and not (isinstance(given, np.ndarray) and given.ndim == 1):
        raise ConfigError(f"{origin}: labels are no list of integers")
    try:
        labels = np.asarray(given, dtype=np.int64)
    except OverflowError:
        labels = np.full(1, -1)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ConfigError(f"{origin}: labels outside 0 to {num_classes - 1}")
    return labels


CIFAR10 = Cifar(
    info=DatasetInfo(
        name="cifar10",
        classes=CIFAR10_CLASSES,
        image_size=SIZE,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        train_count=50_000,
        test_count=10_000,
        confusions=CIFAR10_CONFUSIONS,
    ),
    title="CIFAR-10",
    tar="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    members={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    meta="batches.meta",
    label_key="labels",
    names_key="label_names",
    published=frozenset(
        (
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
            "5ff9c542aee3614f3951f8cda6e48888",
        )
    ),
)

CIFAR100 = Cifar(
    info=DatasetInfo(
        name="cifar100",
        classes=CIFAR100_CLASSES,
        image_size=SIZE,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        train_count=50_000,
        test_count=10_000,
        confusions=CIFAR100_CONFUSIONS,
    ),
    title="CIFAR-100",
    tar="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    members={"train": ("train",), "test": ("test",)},
    meta="meta",
    label_key="fine_labels",
    names_key="fine_label_names",
    published=frozenset(
        (
            "16019d7e3df5f24257cddd939b257f8d",
            "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "7973b15100ade9c7d40fb424638fde48",
        )
    ),
)
