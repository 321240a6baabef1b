"""Small archives in the official layout, and ways to spoil them."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rmd_dist.data.sources.cifar_classes import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_COARSE

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


class ByteKeys(pickle._Pickler):
    """Protocol 2 with Python 2's string opcode, as the official archives have it."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str(self, value: bytes) -> None:
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_str


def dumps(value: Any) -> bytes:
    out = io.BytesIO()
    ByteKeys(out, protocol=2).dump(value)
    return out.getvalue()


def batch(count: int, classes: int, seed: int) -> dict[bytes, Any]:
    random = np.random.default_rng(seed)
    labels = [int(v) for v in random.integers(classes, size=count)]
    key = b"labels" if classes == 10 else b"fine_labels"
    content = {key: labels, b"data": random.integers(256, size=(count, 3072), dtype=np.uint8)}
    if classes == 100:
        content[b"coarse_labels"] = [CIFAR100_COARSE[label] for label in labels]
    return content


def cifar10(train: int = 50, test: int = 20, seed: int = 0) -> dict[str, bytes]:
    """Members of a CIFAR-10 archive by name, `train` a multiple of 5."""
    members = {f"data_batch_{i}": dumps(batch(train // 5, 10, seed + i)) for i in range(1, 6)}
    members["test_batch"] = dumps(batch(test, 10, seed + 6))
    members["batches.meta"] = dumps({b"label_names": [name.encode() for name in CIFAR10_CLASSES]})
    return {f"cifar-10-batches-py/{name}": content for name, content in members.items()}


def cifar100(train: int = 50, test: int = 20, seed: int = 0) -> dict[str, bytes]:
    """Members of a CIFAR-100 archive by name."""
    members = {"train": dumps(batch(train, 100, seed)), "test": dumps(batch(test, 100, seed + 1))}
    members["meta"] = dumps({b"fine_label_names": [name.encode() for name in CIFAR100_CLASSES]})
    return {f"cifar-100-python/{name}": content for name, content in members.items()}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_folder(root: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
