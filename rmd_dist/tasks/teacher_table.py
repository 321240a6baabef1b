"""A frozen teacher's features of every crop that training can draw, computed once and mapped from disk.

ROOT/teacher_tables/ has an NPY of (n, V, D) for each choice of what decides the features: weights, images,
crops, size and normalisation, precision. Every rank and every worker of a study maps the same pages.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist.config import CropFlipConfig
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.images.store import Watch
from rmd_dist.data.loader import build_loader
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.render.augment import Ints
from rmd_dist.data.render.crops import Crops
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.features import identity
from rmd_dist.evaluation.predict import evaluating
from rmd_dist.files import atomic_path, check_output_folder, exclusive, remove_debris, to_json
from rmd_dist.parallel.compute import Compute
from rmd_dist.tasks.base import Tell
from rmd_dist.tasks.teacher import FrozenEncoder

FORMAT = 1
"""Of tables, and of how crops are numbered."""

IMAGES = 512
"""Of a forward pass: whatever the number of crops, so that a table built anew has the same bits."""

BITS_OF_BF16 = torch.int16
"""What NPY, which does not know bf16, has for it: its bits. No features are integers."""


class TeacherTable:
    """Features of the crops that samples get in a run of `seed`; made by `open_table`."""

    def __init__(self, path: Path, samples: Ints, crops: Crops, seed: int) -> None:
        self._watch = Watch([path])
        self._table = np.load(path, mmap_mode="r", allow_pickle=False)
        self._crops, self._seed = crops, seed
        if self._table.shape[:2] != (len(samples), len(crops)):
            raise ConfigError(f"{path} has the shape {self._table.shape}: delete it, it is built anew")
        self._row = np.full(int(samples.max()) + 1, -1)
        self._row[samples] = np.arange(len(samples))

    def rows(self, samples: Ints, epoch: int) -> Tensor:
        """Features (b, D) of the crops that `samples` (b,) get as the first view of `epoch`."""
        self._watch.check()
        drawn = self._crops.drawn(self._seed, epoch, samples)
        found = torch.from_numpy(self._table[self._row[samples], drawn])
        return found.view(torch.bfloat16) if found.dtype == BITS_OF_BF16 else found

    def close(self) -> None:
        """Let go of the file."""
        self._watch.close()


def open_table(
    teacher: FrozenEncoder,
    train: Dataset,
    samples: Ints,
    augment: CropFlipConfig,
    seed: int,
    root: Path,
    compute: Compute,
    tell: Tell,
) -> TeacherTable:
    """The table of `samples` (n,), sorted, of a data set of one size of images; built where it is missing.

    Any number of processes may call this at once: one builds, the others wait. `teacher` is on the device
    and computes as in a training step. On disk n V D numbers of its precision; in memory IMAGES V D of them.

    Raises ConfigError if the table cannot be written.
    """
    crops = Crops(augment, train.info.image_size)
    folder = root / "teacher_tables"
    path = folder / f"{_key(teacher, train, samples, crops, compute)}.npy"
    if not path.exists():
        check_output_folder(folder)
        with exclusive(folder / f".{path.name}.lock", lambda: tell(f"waiting for who builds {path}")):
            if not path.exists():
                remove_debris(folder, path.name)
                one = next(_blocks(teacher, train, samples[:1], crops, compute))
                shape = (len(samples), *one.shape[1:])
                tell(
                    f"teacher table: features of {shape[0]} images x {shape[1]} crops by {teacher.name}, "
                    f"{one.nbytes * len(samples) / 1e6:.0f} MB, kept as {path}"
                )
                began = time.perf_counter()
                _write(path, shape, one, _blocks(teacher, train, samples, crops, compute))
                tell(f"teacher table: built in {time.perf_counter() - began:.0f} s")
    return TeacherTable(path, samples, crops, seed)


def _key(teacher: FrozenEncoder, train: Dataset, samples: Ints, crops: Crops, compute: Compute) -> str:
    """16 hex digits of what decides a table."""
    decisive = {
        "format": FORMAT,
        **identity(teacher.module, teacher.sha256),
        "precision": [str(compute.dtype), str(compute.autocast), torch.backends.cudnn.allow_tf32],
        "data": f"{train.sha256} {train.split}",
        "samples": hashlib.sha256(samples.tobytes()).hexdigest(),
        "crops": [crops.size, crops.config.padding, *crops.flips],
    }
    return hashlib.sha256(to_json(decisive).encode()).hexdigest()[:16]


def _write(path: Path, shape: tuple[int, ...], one: Tensor, blocks: Iterator[Tensor]) -> None:
    """Write the table, whole or not at all; `one` is its first image's (1, V, D)."""
    size = one.nbytes * shape[0]
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # rather now than in the middle
            header = {"descr": _bits(one).dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for features in blocks:
                file.write(_bits(features).data)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): it takes {size / 1e6:.0f} MB; make room, give "
            "another --data-root, or leave graph.teacher_table out"
        ) from error


def _blocks(
    teacher: FrozenEncoder, train: Dataset, samples: Ints, crops: Crops, compute: Compute
) -> Iterator[Tensor]:
    """Features (b, V, D) of all samples in order, on the CPU."""
    module = teacher.module
    preprocess = Preprocess.of(module)
    loader = build_loader(
        train, augment=None, batch_size=IMAGES, indices=samples, shuffle=False, rank=0, world_size=1,
        workers=compute.workers, pinned=compute.device.type == "cuda",
    )  # fmt: skip
    with closing(loader), evaluating(module), torch.inference_mode(), compute.autocasting():
        for batch in loader.epoch(0):
            pixels = batch.to(compute.device).views[0]
            of_crops = []
            for number in range(len(crops)):
                x = preprocess(crops.render(pixels, number), compute.channels_last, compute.dtype)
                of_crops.append(module(x))
            yield torch.stack(of_crops, 1).cpu()


def _bits(features: Tensor) -> npt.NDArray[np.generic]:
    """What is written of features on the CPU."""
    bf16 = features.dtype == torch.bfloat16
    bits: npt.NDArray[np.generic] = (features.view(BITS_OF_BF16) if bf16 else features).numpy()
    return bits
