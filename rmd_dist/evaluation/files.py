"""Predictions for image files, read as a preparation reads them and cut as an evaluation cuts them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rmd_dist.data.images.read import Unreadable, read_image
from rmd_dist.data.images.work import StoreOptions
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.data.render.varied import VariedAugmenter
from rmd_dist.errors import ConfigError
from rmd_dist.evaluation.predict import evaluating
from rmd_dist.models.export import LoadedModel
from rmd_dist.parallel.compute import Compute


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image, or why there is none."""

    label: str = ""
    confidence: float = 0.0
    """Softmax of its logit, in [0, 1]."""
    reason: str = ""


def predict_files(
    model: LoadedModel, files: Sequence[Path], compute: Compute, batch_size: int = 64
) -> Iterator[tuple[Path, Prediction]]:
    """(file, prediction) of each file in order, `batch_size` at a time.

    Raises ConfigError for a model without a classifier.
    """
    if not model.num_classes:
        raise ConfigError(f"{model.path} is an encoder and knows no classes; give a student of rmd distill")
    names = model.classes or tuple(map(str, range(model.num_classes)))
    compute.placed(model.module)
    preprocess, options = Preprocess.of(model.module), StoreOptions.of(model.stored)
    augmenter = VariedAugmenter(
        None, sizes=(max(preprocess.size),), seed=0, workers=compute.workers, crop_pct=preprocess.crop_pct
    )
    with ThreadPoolExecutor(compute.workers) as readers, evaluating(model.module):
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            read = list(readers.map(partial(_read, options), batch))
            images = [image for image in read if not isinstance(image, str)]
            found: Iterator[Prediction] = iter(())
            if images:
                numbers = np.arange(len(images))
                pixels = augmenter.render(lambda k, images=images: images[k], numbers, 0)[0]  # type: ignore[misc]
                with torch.inference_mode(), compute.autocasting():
                    inputs = preprocess(pixels.to(compute.device), compute.channels_last, compute.dtype)
                    shares = model.module(inputs).float().softmax(1)
                top = shares.max(1)
                found = itertools.starmap(
                    Prediction,
                    zip([names[k] for k in top.indices.tolist()], top.values.tolist(), strict=True),
                )
            for file, image in zip(batch, read, strict=True):
                yield file, Prediction(reason=image) if isinstance(image, str) else next(found)
    augmenter.close()


def _read(options: StoreOptions, file: Path) -> npt.NDArray[np.uint8] | str:
    """The pixels of a file, as those were stored that the model was trained on, or why it has none."""
    size, longest, background = options.store_size, options.longest, options.background
    try:
        image = read_image(file.read_bytes(), shorter=size, longer=longest, background=background)
    except (OSError, Unreadable) as error:
        return str(error)
    return image.pixels
