"""Views of images of any height and width, at one or more sizes: what `augment` is to images of one size.

A view is drawn once for a sample and rendered at each size from that draw: a teacher that wants 196
pixels sees the crop, flip, colours and blur that the student sees at 224.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.augment import (
    VIEW_PARAMETERS,
    AugmentConfig,
    Ints,
    Records,
    adjust_colours,
    crop_view_settings,
    draw_view,
    view_settings,
    views_of,
)
from rmd_dist.data.render.jit import kernel
from rmd_dist.data.render.pixels import Bytes, Floats, gaussian_blur, round_planes
from rmd_dist.data.render.resample import resample_box
from rmd_dist.errors import ConfigError

Load = Callable[[int], npt.NDArray[np.uint8]]

_CENTRAL_SETTINGS = np.dtype([("shorter", np.int64)])
_BLUR_FROM = 64  # pixels: at this size and below there is no blur unless it is asked for
_SIGMA_AT = 224.0  # pixels of the image that sigma is told for


# The two kernels share one signature: one image (H, W, 3) into row k of `out` (views, rows, S, S, 3).
# `scratch` is (4, S * S): the planes, and room for one.


@kernel
def _views(
    image: Bytes, seed: int, epoch: int, sample: int, k: int, settings: Records, scratch: Floats, out: Bytes
) -> None:
    size, planes = out.shape[2], scratch[:3]
    parameters = np.empty(1, VIEW_PARAMETERS)
    for v in range(out.shape[0]):
        view = parameters[0]  # here, since numba frees an array after its last use, a record of it or not
        draw_view(seed, epoch, sample, v, image.shape[0], image.shape[1], settings[0], view)
        top, left, height, width = float(view.top), float(view.left), float(view.height), float(view.width)
        resample_box(image, top, left, height, width, True, view.flip != 0, size, planes)
        adjust_colours(planes, view)
        if view.blur:
            gaussian_blur(planes, size, view.sigma * size / _SIGMA_AT, scratch[3])
        round_planes(planes, out[v, k])


@kernel
def _central(
    image: Bytes, _seed: int, _epoch: int, _: int, k: int, settings: Records, scratch: Floats, out: Bytes
) -> None:
    """Shorter side resized to `shorter`, then the central S x S, with torchvision's roundings."""
    size, shorter, planes = out.shape[2], settings[0].shorter, scratch[:3]
    rows, columns = image.shape[0], image.shape[1]
    least = min(rows, columns)
    height, width = int(shorter * rows / least), int(shorter * columns / least)
    y, x = rows / height, columns / width  # pixels of the image in one of the resized image
    top, left = np.rint((height - size) / 2.0) * y, np.rint((width - size) / 2.0) * x
    resample_box(image, top, left, size * y, size * x, False, False, size, planes)
    round_planes(planes, out[0, k])


class VariedAugmenter:
    """Renders batches of images of any size on `workers` threads, the calling one included.

    `config` decides what a sample becomes: ViewConfig its count of views; CropFlipConfig its count,
    RandomResizedCrop and flip; None the central square for evaluation, as torchvision's
    Resize(floor(S / crop_pct)) and CenterCrop(S), where images that are too small are enlarged.
    `pinned`: into page-locked memory, from which copies to a GPU do not wait.
    Raises ConfigError for settings out of range. Any number of threads may call `render` at once.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        sizes: tuple[int, ...],
        seed: int,
        workers: int = 1,
        pinned: bool = False,
        crop_pct: float = 0.875,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"sizes is {sizes}; allowed are one or more sizes in pixels, at least 1")
        if not 0.0 < crop_pct <= 1.0:
            raise ConfigError(f"crop_pct is {crop_pct}; allowed is a share above 0, at most 1")
        self.views = views_of(config)
        self.sizes = sizes
        self._seed = seed
        self._kernel: Callable[..., None] = _views
        if isinstance(config, ViewConfig):
            usual = 0.5 if sizes[0] > _BLUR_FROM else 0.0
            blur_p = usual if config.blur_p is None else config.blur_p
            self._settings = [view_settings(config, blur_p=blur_p)] * len(sizes)
        elif isinstance(config, CropFlipConfig):
            self._settings = [crop_view_settings(config)] * len(sizes)
        else:
            self._kernel = _central
            shorter = [math.floor(size / crop_pct) for size in sizes]
            self._settings = [np.array([(s,)], _CENTRAL_SETTINGS) for s in shorter]
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers - 1, "rmd-varied") if workers > 1 else None
        self._pinned = pinned
        self._local = threading.local()

    def render(self, load: Load, samples: Ints, epoch: int) -> tuple[Tensor, ...]:
        """Views of `samples` (b,), data set indices: for each size its views, uint8 (b, S, S, 3) each.

        `load` gives the image of a sample, (H, W, 3) uint8 in C order with at least one pixel; the threads
        call it. What it raises is raised here.
        """
        outputs = [
            torch.empty((self.views, len(samples), size, size, 3), dtype=torch.uint8, pin_memory=self._pinned)
            for size in self.sizes
        ]
        arrays = [out.numpy() for out in outputs]
        turns = iter(range(len(samples)))  # images differ in cost, so a thread takes the next when it is free

        def work() -> None:
            self._work(turns, load, samples, epoch, arrays)

        helpers = min(self._workers, len(samples)) - 1
        waiting = [self._pool.submit(work) for _ in range(helpers) if self._pool is not None]
        try:
            work()
        finally:
            for _ in turns:  # after an error the threads find nothing more to do
                pass
            for helper in waiting:
                helper.result()
        return tuple(view for out in outputs for view in out)

    def _work(
        self, turns: Iterator[int], load: Load, samples: Ints, epoch: int, outputs: list[npt.NDArray[Any]]
    ) -> None:
        scratches = self._scratches()
        for k in turns:
            sample = int(samples[k])
            image = load(sample).view()
            image.flags.writeable = False  # one kind of argument, so that the kernel is compiled once
            for settings, scratch, out in zip(self._settings, scratches, outputs, strict=True):
                self._kernel(image, self._seed, epoch, sample, k, settings, scratch, out)

    def _scratches(self) -> list[Floats]:
        """This thread's own, for each size."""
        if not hasattr(self._local, "scratches"):
            self._local.scratches = [np.empty((4, size * size), np.float32) for size in self.sizes]
        scratches: list[Floats] = self._local.scratches
        return scratches

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
