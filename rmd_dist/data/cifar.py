"""The official python archives of CIFAR-10 and CIFAR-100: found, downloaded, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmd_dist.config import ConfigError
from rmd_dist.data.archive import MAX_MEMBER_BYTES, load_pickled_dict, read_members
from rmd_dist.data.classes import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_COARSE
from rmd_dist.data.lock import exclusive
from rmd_dist.reading import read_bytes

SIZE = 32
COUNTS = {"train": 50_000, "test": 10_000}
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Layout:
    """Names inside one archive."""

    title: str
    tar: str
    folder: str
    members: dict[str, tuple[str, ...]]
    """Members of each split, in the order of their images."""
    meta: str
    label_key: str
    names_key: str
    classes: tuple[str, ...]


LAYOUTS = {
    "cifar10": Layout(
        title="CIFAR-10",
        tar="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        members={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
        classes=CIFAR10_CLASSES,
    ),
    "cifar100": Layout(
        title="CIFAR-100",
        tar="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        members={"train": ("train",), "test": ("test",)},
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
        classes=CIFAR100_CLASSES,
    ),
}


def find(name: str, root: Path, source: Path | None) -> Path:
    """The tar or unpacked folder to read: in `source`, else in `root`, else downloaded into `root`."""
    layout = LAYOUTS[name]
    if source is not None:
        try:
            found = _look(layout, source)
        except OSError as error:  # a folder that may not be looked into
            raise _unreadable(source, error) from error
        if found is None:
            what = (
                "does not exist" if not source.exists() else f"holds no {layout.folder} and no {layout.tar}"
            )
            raise ConfigError(
                f"source {source} {what}; give the {layout.title} python archive ({layout.tar}, "
                f"from {HOME}) or its unpacked folder"
            )
        return found
    return find_local(name, root) or _download(name, root)


def find_local(name: str, root: Path) -> Path | None:
    """The tar or unpacked folder in `root`, if there is one."""
    return _look(LAYOUTS[name], root) if root.is_dir() else None


def _look(layout: Layout, place: Path) -> Path | None:
    if place.is_file() or (place / layout.members["train"][0]).is_file():
        return place
    if place.is_dir() and place.resolve().name == layout.folder:
        return place
    if (place / layout.tar).is_file():
        return place / layout.tar
    return place / layout.folder if (place / layout.folder).is_dir() else None


def _download(name: str, root: Path) -> Path:
    """torchvision's download with its MD5, once for all processes; extraction is left out."""
    layout = LAYOUTS[name]
    with exclusive(root / f".{layout.tar}.lock"):
        found = find_local(name, root)
        if found is not None:  # another process was first
            return found
        from torchvision.datasets import CIFAR10, CIFAR100
        from torchvision.datasets.utils import download_url

        origin = CIFAR10 if name == "cifar10" else CIFAR100
        temporary = root / f".{layout.tar}.tmp"
        try:
            download_url(origin.url, str(root), temporary.name, origin.tgz_md5)
            return temporary.replace(root / layout.tar)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{layout.title} is not in {root} and cannot be downloaded ({error}); fetch {layout.tar} "
                f"from {HOME} and give it as --source, or use --dataset digits, which needs no files"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)


def sha256(name: str, place: Path) -> str:
    """SHA-256 of a tar; of the names and contents of the official files in an unpacked folder."""
    layout = LAYOUTS[name]
    try:
        if place.is_file():
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        for member in (*layout.members["train"], *layout.members["test"], layout.meta):
            if (place / member).is_file():
                digest.update(f"{member}\n".encode())
                digest.update(read_bytes(place / member, MAX_MEMBER_BYTES))
        return digest.hexdigest()
    except OSError as error:
        raise _unreadable(place, error) from error


def load(name: str, split: str, place: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of one split, in the archive's order.

    N may be smaller than the official count. Raises ConfigError, with the remedy, when anything about
    the archive is not as it should be.
    """
    layout = LAYOUTS[name]
    try:
        contents = _read(layout, place, (*layout.members[split], layout.meta))
        if layout.meta in contents:
            _check_names(layout, load_pickled_dict(contents[layout.meta], f"{place}: {layout.meta}"))
        parts = []
        for member in layout.members[split]:
            if member not in contents:
                raise ConfigError(f"{place} has no {member}: cut short, or not {layout.title}")
            origin = f"{place}: {member}"
            parts.append(_batch(layout, load_pickled_dict(contents.pop(member), origin), origin))
        images = np.concatenate([part[0] for part in parts])
        labels = np.concatenate([part[1] for part in parts])
        if not 0 < len(labels) <= COUNTS[split]:
            raise ConfigError(f"{place} has {len(labels)} {split} images; {layout.title} has {COUNTS[split]}")
    except ConfigError as error:
        raise ConfigError(f"{error}. Get {layout.tar} afresh from {HOME} and give it as --source") from error
    return images, labels


def _read(layout: Layout, place: Path, names: Sequence[str]) -> dict[str, bytes]:
    try:
        if place.is_file():
            paths = [f"{layout.folder}/{name}" for name in names]
            return {path.rpartition("/")[2]: data for path, data in read_members(place, paths).items()}
        present = [name for name in names if (place / name).is_file()]
        return {name: read_bytes(place / name, MAX_MEMBER_BYTES) for name in present}
    except OSError as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{place} cannot be read: {error}")


def _check_names(layout: Layout, meta: dict[str, Any]) -> None:
    given = meta.get(layout.names_key)
    if not isinstance(given, list) or not all(isinstance(name, str | bytes) for name in given):
        raise ConfigError(f"it has no list of class names: not {layout.title}")
    names = [name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in given]
    if tuple(names) != layout.classes:
        raise ConfigError(f"its class names are not those of {layout.title}: {str(names)[:80]}")


def _batch(
    layout: Layout, batch: dict[str, Any], origin: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and labels (n,) of one member."""
    if "data" not in batch or layout.label_key not in batch:
        raise ConfigError(f"{origin} has no {layout.label_key}: not {layout.title}")
    data, labels = batch["data"], _labels(batch[layout.label_key], len(layout.classes), origin)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIZE**2):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ConfigError(f"{origin} holds {found} for {len(labels)} labels; images are uint8 (n, 3072)")
    if "coarse_labels" in batch:
        coarse = _labels(batch["coarse_labels"], 20, origin)
        if not np.array_equal(coarse, np.asarray(CIFAR100_COARSE)[labels]):
            raise ConfigError(f"{origin}: fine and coarse labels do not belong together")
    images = data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


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
