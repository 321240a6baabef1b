"""Features of all images of data sets by an encoder, kept on disk: no image is encoded twice.

ROOT/features/ has a folder for each choice of what decides an image's features: weights, size and
normalisation, precision, how images were stored. In it lie parts, each whole or absent: safetensors of `ids`
(n, 16) uint8 and `features` (n, D), written after every chunk of a pass. Images are found by their ids,
whichever data set they were in, so that of a folder that has grown the new ones alone are encoded.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rmd_dist import parallel
from rmd_dist.data.dataset import Dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.sources.beton import Progress
from rmd_dist.errors import ConfigError, writing
from rmd_dist.evaluation.onnx_runtime import quick_encoder
from rmd_dist.evaluation.predict import predict
from rmd_dist.files import check_output_folder, to_json
from rmd_dist.models.simsiam import feature_width
from rmd_dist.models.student import Encoder
from rmd_dist.models.weights import read_tensors, save_tensors
from rmd_dist.parallel.compute import Compute
from rmd_dist.parallel.processes import from_main

FORMAT = 1
"""Of parts, and of how ids are made."""

CHUNK = 2048
"""Images that an interruption loses at most; of very many their 256th part, as every chunk opens a loader."""

Rows = npt.NDArray[np.int64]
Ids = npt.NDArray[np.void]
"""(n,), 16 bytes each: equal for images of equal content."""


def cached_features(
    model: nn.Module,
    weights_sha256: str,
    datasets: Sequence[Dataset],
    root: Path,
    compute: Compute,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """Features (N, D) of all images of `datasets`, one after another, on every rank's CPU. Collective.

    float16, or float32 where one is beyond its range. Files of equal content have equal features. `model`: a
    timm model without a classifier, or a `models.student.Encoder`; `weights_sha256`: of its weights. The
    cache is `root`/features, which rank 0 reads and writes. What was encoded before an interruption, but
    for CHUNK images, is not encoded again by the next call, on any number of ranks. On a CPU ONNX Runtime
    encodes many images, where it can (see `quick_encoder`). Memory: the result and one chunk.

    Raises ConfigError where features are not finite or the cache cannot be written.
    """
    compute.placed(model)
    ids = np.concatenate([image_ids(dataset) for dataset in datasets])
    # The first image of each content stands for all of them.
    contents, first, content = np.unique(ids, return_index=True, return_inverse=True)
    width = model.width if isinstance(model, Encoder) else feature_width(model)
    cache = _Cache(root / "features" / _key(model, weights_sha256, datasets, compute), width)
    features = torch.empty(len(ids), cache.width, dtype=torch.float16)
    missing = np.ones(len(contents), bool)
    for part in from_main(cache.parts):
        there, rows = from_main(partial(cache.read, part))
        at = np.searchsorted(contents, there).clip(max=len(contents) - 1)
        wanted = contents[at] == there
        features = _put(features, first[at[wanted]], rows[torch.from_numpy(wanted)])
        missing[at[wanted]] = False
    todo = np.sort(first[missing])
    if len(todo):
        from_main(partial(check_output_folder, cache.folder))
        encoder = quick_encoder(model, compute) if len(todo) > CHUNK else model
        for chunk in _chunks(todo, datasets):
            tell = _Told(progress, chunk.before, len(todo), len(chunk.rows), batch_size)
            rows = _encoded(encoder, chunk, compute, batch_size, tell)
            from_main(partial(cache.write, ids[chunk.rows], rows))
            features = _put(features, chunk.rows, rows)
    copies = np.flatnonzero(first[content] != np.arange(len(ids)))
    for some in np.array_split(copies, len(copies) // CHUNK + 1):
        features[torch.from_numpy(some)] = features[torch.from_numpy(first[content[some]])]
    return features


def image_ids(dataset: Dataset) -> Ids:
    """The ids of all images: of own ones by their files' content, of others by their place in the data."""
    if dataset.files is not None:
        digests = dataset.files.digests()
    else:
        if not dataset.sha256:
            raise ValueError(f"the samples of {dataset.info.name} {dataset.split} have no SHA-256")
        place = f"{dataset.sha256} {dataset.split}"
        digests = [hashlib.sha256(f"{place} {k}".encode()).digest() for k in range(len(dataset))]
    return np.frombuffer(b"".join(digest[:16] for digest in digests), "V16")


def identity(model: Any, weights_sha256: str) -> dict[str, Any]:
    """What an encoder makes of pixels is decided by it."""
    return {
        "weights": weights_sha256,
        "architecture": model.pretrained_cfg.get("architecture"),
        "preprocess": asdict(Preprocess.of(model)),
    }


def _key(model: nn.Module, weights_sha256: str, datasets: Sequence[Dataset], compute: Compute) -> str:
    """16 hex digits of what decides features, beside the image. Not the runtime, which the tolerance of
    `quick_encoder` keeps below half precision.
    """
    decisive = {
        "format": FORMAT,
        **identity(model, weights_sha256),
        "precision": [str(compute.dtype), str(compute.autocast)],
        "stored": sorted({to_json(dict(sorted(dataset.info.stored.items()))) for dataset in datasets}),
    }
    return hashlib.sha256(to_json(decisive).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Cache:
    """The parts in a folder, of features (n, `width`). Used on rank 0."""

    folder: Path
    width: int

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))

    def read(self, part: Path) -> tuple[Ids, Tensor]:
        """(ids (n,), features (n, D)) of a part; of one that is damaged or another's none, and a warning."""
        try:
            tensors = read_tensors(part)
            ids, features = tensors["ids"], tensors["features"]
            sound = ids.dtype == torch.uint8 and features.dtype in (torch.float16, torch.float32)
            sound = sound and ids.shape == (len(features), 16) and features.shape == (len(ids), self.width)
            if not (sound and features.isfinite().all()):
                raise ValueError("it holds something else than finite features of this encoder")
            return ids.numpy().reshape(-1).view("V16"), features
        except (ConfigError, KeyError, ValueError) as error:
            print(
                f"warning: {part} is passed over, delete it; its images are encoded anew: {error}", flush=True
            )
            return np.empty(0, "V16"), torch.empty(0, self.width, dtype=torch.float16)

    def write(self, ids: Ids, features: Tensor) -> None:
        """A new part, of a name that no other process gives. Raises Fault if it cannot be written."""
        path = self.folder / f"part-{uuid.uuid4().hex}.safetensors"
        with writing(path):
            save_tensors(
                path, {"ids": torch.from_numpy(ids.view(np.uint8).reshape(-1, 16)), "features": features}
            )


@dataclass(frozen=True)
class _Chunk:
    """Images of one data set that are encoded and kept at once."""

    dataset: Dataset
    rows: Rows
    """Of the result."""
    start: int
    """Row of the data set's first image."""
    before: int
    """Images of the chunks before."""


def _chunks(rows: Rows, datasets: Sequence[Dataset]) -> Iterator[_Chunk]:
    """The sorted `rows` (n,) in chunks."""
    size, start, before = max(CHUNK, len(rows) // 256), 0, 0
    for dataset in datasets:
        own = rows[(rows >= start) & (rows < start + len(dataset))]
        for first in range(0, len(own), size):
            yield _Chunk(dataset, own[first : first + size], start, before + first)
        start, before = start + len(dataset), before + len(own)


def _encoded(
    model: nn.Module, chunk: _Chunk, compute: Compute, batch_size: int, tell: Callable[[], None]
) -> Tensor:
    """Features (n, D) of a chunk, as they are kept. Collective. Raises ConfigError if some are not finite."""
    indices = chunk.rows - chunk.start
    found = predict(
        model, chunk.dataset, indices, compute=compute, batch_size=batch_size, between=tell
    ).float()
    broken = np.flatnonzero(~found.isfinite().all(1).numpy())
    if len(broken):
        raise ConfigError(
            f"{len(broken)} of {len(found)} images have features that are not finite, the first is "
            f"{_called(chunk.dataset, int(indices[broken[0]]))}; give another encoder, or sound weights"
        )
    half = found.half()
    beyond = ~half.isfinite().all(1, keepdim=True)
    return torch.where(beyond, found, half.float()) if beyond.any() else half


def _called(dataset: Dataset, index: int) -> str:
    if dataset.files is not None:
        return os.fsdecode(dataset.files.paths()[index])
    return f"number {index} of {dataset.info.name} {dataset.split}"


def _put(features: Tensor, at: Rows, rows: Tensor) -> Tensor:
    """`features` with `rows` (n, D) in the places `at` (n,): in their own memory, unless they must widen."""
    features = features.to(torch.promote_types(features.dtype, rows.dtype))
    features[torch.from_numpy(at)] = rows.to(features.dtype)
    return features


class _Told:
    """Called after every batch: tells how many images are done."""

    def __init__(
        self, progress: Progress | None, before: int, total: int, count: int, batch_size: int
    ) -> None:
        self._progress, self._done, self._total = progress, before, total
        self._end, self._each = before + count, batch_size * parallel.world_size()

    def __call__(self) -> None:
        self._done = min(self._done + self._each, self._end)
        if self._progress is not None:
            self._progress("encoding images", self._done, self._total)
