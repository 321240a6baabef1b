"""Seeded augmentation: views to pretrain on, random crop and flip, or a plain copy.

Parameters come from `rng` by (seed, epoch, sample, view), pixels from `pixels`. A batch is rendered by
one kernel straight from the bytes of the images, wherever these lie (a mapped beton, an array), in
slices on a few threads; who renders which slice cannot be seen in the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.jit import kernel
from rmd_dist.data.render.pixels import (
    Bytes,
    Floats,
    Scratch,
    U,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    make_scratch,
    resized_crop,
    round_planes,
    shifted_crop,
    to_grayscale,
)
from rmd_dist.data.render.rng import draw_below, draw_uniform, stream
from rmd_dist.errors import ConfigError

Ints = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
AugmentConfig = ViewConfig | CropFlipConfig | None

# What decides one view to pretrain on; kernels read and write its fields by name.
VIEW_PARAMETERS = np.dtype(
    [(name, np.int64) for name in ("top", "left", "height", "width", "flip", "jitter", "order", "gray")]
    + [(name, np.float64) for name in ("brightness", "contrast", "saturation", "hue")]
    + [("blur", np.int64), ("sigma", np.float64)]
)
_VIEW_SETTINGS = np.dtype(
    [(name, np.float64) for name in ("scale_low", "scale_high", "brightness", "contrast", "saturation")]
    + [(name, np.float64) for name in ("hue", "jitter_p", "grayscale_p", "flip_p")]
    + [(name, np.float64) for name in ("blur_p", "sigma_low", "sigma_high")]
)
_CROP_SETTINGS = np.dtype([("padding", np.int64), ("flip_p", np.float64)])
CROP_PARAMETERS = np.dtype([(name, np.int64) for name in ("top", "left", "flip")])

_TRIES = 10  # of RandomResizedCrop, four draws each
_LEAST_RATIO = 3.0 / 4.0  # aspect ratios 3/4 to 4/3, uniform in the logarithm
_LOG_RATIO = float(np.log(4.0 / 3.0))
ORDERS = np.array(list(itertools.permutations(range(4))))
"""(24, 4): orders of ColorJitter's operations, which are brightness, contrast, saturation, hue."""
# Draw numbers of a view. They are part of the meaning of a seed: add at the end, never renumber.
_FLIP, _JITTER, _ORDER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _GRAY = range(4 * _TRIES, 4 * _TRIES + 8)
_BLUR, _SIGMA = range(4 * _TRIES + 8, 4 * _TRIES + 10)


@kernel
def draw_view(
    seed: int, epoch: int, sample: int, number: int, height: int, width: int, settings: Any, view: Any
) -> None:
    """Draw view `number` of a sample of H x W pixels, by torchvision's distributions, into `view`."""
    word = stream(seed, epoch, sample, number)
    _draw_crop_box(word, height, width, settings, view)
    view.flip = draw_uniform(word, _FLIP) < settings.flip_p
    view.jitter = draw_uniform(word, _JITTER) < settings.jitter_p
    view.order = draw_below(word, _ORDER, 24)
    view.brightness = _draw_factor(word, _BRIGHTNESS, settings.brightness)
    view.contrast = _draw_factor(word, _CONTRAST, settings.contrast)
    view.saturation = _draw_factor(word, _SATURATION, settings.saturation)
    view.hue = settings.hue * (2.0 * draw_uniform(word, _HUE) - 1.0)
    view.gray = draw_uniform(word, _GRAY) < settings.grayscale_p
    view.blur = draw_uniform(word, _BLUR) < settings.blur_p
    view.sigma = settings.sigma_low + (settings.sigma_high - settings.sigma_low) * draw_uniform(word, _SIGMA)


@kernel
def _draw_crop_box(word: np.uint64, height: int, width: int, settings: Any, view: Any) -> None:
    """RandomResizedCrop: top, left, height and width of the part of an H x W image that is shown."""
    for attempt in range(_TRIES):
        first = 4 * attempt
        share = settings.scale_low + (settings.scale_high - settings.scale_low) * draw_uniform(word, first)
        ratio = np.exp(_LOG_RATIO * (2.0 * draw_uniform(word, first + 1) - 1.0))
        view.width = int(np.rint(np.sqrt(height * width * share * ratio)))
        view.height = int(np.rint(np.sqrt(height * width * share / ratio)))
        if 0 < view.width <= width and 0 < view.height <= height:
            view.top = draw_below(word, first + 2, height - view.height + 1)
            view.left = draw_below(word, first + 3, width - view.width + 1)
            return
    # The largest central part whose aspect ratio is allowed.
    view.height, view.width = height, width
    if width < height * _LEAST_RATIO:
        view.height = int(np.rint(width / _LEAST_RATIO))
    elif height < width * _LEAST_RATIO:
        view.width = int(np.rint(height / _LEAST_RATIO))
    view.top, view.left = (height - view.height) // 2, (width - view.width) // 2


@kernel
def _draw_factor(word: np.uint64, draw: int, strength: float) -> float:
    """Uniform in [max(0, 1 - strength), 1 + strength]."""
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * draw_uniform(word, draw)


@kernel
def render_view(image: Bytes, view: Any, scratch: Scratch, out: Bytes) -> None:
    """`image` (S, S, 3) as the view with these parameters, into `out` (S, S, 3)."""
    planes = scratch[0]
    resized_crop(image, view.top, view.left, view.height, view.width, view.flip != 0, scratch)
    adjust_colours(planes, view)
    round_planes(planes, out)


@kernel
def adjust_colours(planes: Floats, view: Any) -> None:
    """ColorJitter and grayscale of a view, on `planes` in place."""
    if view.jitter:
        for step in range(4):
            operation = ORDERS[view.order, step]
            if operation == 0:
                adjust_brightness(planes, view.brightness)
            elif operation == 1:
                adjust_contrast(planes, view.contrast)
            elif operation == 2:
                adjust_saturation(planes, view.saturation)
            else:
                adjust_hue(planes, view.hue)
    if view.gray:
        to_grayscale(planes)


@kernel
def draw_crop(seed: int, epoch: int, sample: int, number: int, settings: Any) -> tuple[int, int, bool]:
    """(top, left, flip) of crop `number` from the padded image; top and left in [0, 2 * padding]."""
    word = stream(seed, epoch, sample, number)
    top = draw_below(word, 0, 2 * settings.padding + 1)
    left = draw_below(word, 1, 2 * settings.padding + 1)
    return top, left, draw_uniform(word, 2) < settings.flip_p


# The three kernels of a batch share one signature: rows first .. last - 1 of it, the image of row k being
# the S * S * 3 bytes of `data` from pointers[k] on, that of data set index samples[k]; `out` is
# (views, rows, S, S, 3). Nothing is checked here: callers hand in pointers that lie inside.


@kernel
def _views(
    data: Bytes, pointers: Ints, samples: Ints, first: int, last: int, seed: int, epoch: int,
    settings: Records, out: Bytes,
) -> None:  # fmt: skip
    size = out.shape[2]
    scratch = make_scratch(size)
    parameters = np.empty(1, VIEW_PARAMETERS)
    for k in range(first, last):
        view = parameters[0]  # here, since numba frees an array after its last use, a record of it or not
        image = data[pointers[k] : pointers[k] + 3 * size * size].reshape((size, size, 3))
        for v in range(out.shape[0]):
            draw_view(seed, epoch, samples[k], v, size, size, settings[0], view)
            render_view(image, view, scratch, out[v, k])


@kernel
def _crop_and_flip(
    data: Bytes, pointers: Ints, samples: Ints, first: int, last: int, seed: int, epoch: int,
    settings: Records, out: Bytes,
) -> None:  # fmt: skip
    size = out.shape[2]
    for k in range(first, last):
        image = data[pointers[k] : pointers[k] + 3 * size * size].reshape((size, size, 3))
        for v in range(out.shape[0]):
            top, left, flip = draw_crop(seed, epoch, samples[k], v, settings[0])
            shifted_crop(image, top, left, settings[0].padding, flip, out[v, k])


@kernel
def _plain_copy(
    data: Bytes, pointers: Ints, _samples: Ints, first: int, last: int, _seed: int, _epoch: int,
    _settings: Records, out: Bytes,
) -> None:  # fmt: skip
    count = out[0, 0].size
    for k in range(first, last):
        start, image = U(pointers[k]), out[0, k].reshape(count)
        for i in range(U(count)):
            image[i] = data[start + i]


def view_settings(config: ViewConfig, *, blur_p: float = 0.0) -> Records:
    """The settings `draw_view` reads, as one record (1,). Raises ConfigError for those out of range."""
    for name in ("brightness", "contrast", "saturation"):
        _check(name, getattr(config, name), float("inf"))
    _check("hue", config.hue, 0.5)
    for name in ("jitter_p", "grayscale_p", "flip_p"):
        _check(name, getattr(config, name), 1.0)
    _check("blur_p", blur_p, 1.0)
    if not 0.0 < config.blur_sigma[0] <= config.blur_sigma[1]:
        raise ConfigError(f"blur_sigma is {config.blur_sigma}; allowed are two numbers with 0 < low <= high")
    row = (*_scale(config), config.brightness, config.contrast, config.saturation, config.hue)
    chances = (config.jitter_p, config.grayscale_p, config.flip_p, blur_p)
    return np.array([(*row, *chances, *config.blur_sigma)], _VIEW_SETTINGS)


def crop_view_settings(config: CropFlipConfig) -> Records:
    """As `view_settings`, of views that are cropped, resized and flipped, and no more."""
    _check("flip_p", config.flip_p, 1.0)
    settings = np.zeros(1, _VIEW_SETTINGS)
    settings["scale_low"], settings["scale_high"] = _scale(config)
    settings["flip_p"] = config.flip_p
    return settings


def _scale(config: ViewConfig | CropFlipConfig) -> tuple[float, float]:
    low, high = config.crop_scale
    if not 0.0 < low <= high <= 1.0:
        raise ConfigError(f"crop_scale is {(low, high)}; allowed are two shares with 0 < low <= high <= 1")
    return low, high


def crop_settings(config: CropFlipConfig, size: int) -> Records:
    """The settings `draw_crop` reads, as one record (1,). Raises ConfigError for those out of range."""
    _check("flip_p", config.flip_p, 1.0)
    _check("padding", config.padding, size)
    return np.array([(config.padding, config.flip_p)], _CROP_SETTINGS)


def _check(name: str, value: float, top: float) -> None:
    if not 0.0 <= value <= top:
        allowed = "at least 0" if top == float("inf") else f"from 0 to {top:g}"
        raise ConfigError(f"{name} is {value}; allowed is a number {allowed}")


# What decides the views of samples (b,) of H x W images, without rendering them: `drawn` is (V, b), of the
# parameters.


@kernel
def draw_views(
    settings: Records, seed: int, epoch: int, samples: Ints, height: int, width: int, drawn: Any
) -> None:
    """Into `drawn`, of VIEW_PARAMETERS."""
    for v in range(drawn.shape[0]):
        for k in range(drawn.shape[1]):
            draw_view(seed, epoch, samples[k], v, height, width, settings[0], drawn[v, k])


@kernel
def draw_crops(
    settings: Records, seed: int, epoch: int, samples: Ints, _height: int, _width: int, drawn: Any
) -> None:
    """Into `drawn`, of CROP_PARAMETERS."""
    for v in range(drawn.shape[0]):
        for k in range(drawn.shape[1]):
            crop = drawn[v, k]
            crop.top, crop.left, crop.flip = draw_crop(seed, epoch, samples[k], v, settings[0])


def sample_views(
    settings: Records, height: int, width: int, *, seed: int, epoch: int, samples: Ints, view: int
) -> Records:
    """The parameters of one view of each of `samples` (n,) of H x W, as records (n,) of VIEW_PARAMETERS."""
    drawn: Records = np.zeros((view + 1, len(samples)), VIEW_PARAMETERS)
    draw_views(settings, seed, epoch, samples, height, width, drawn)
    found: Records = drawn[view]
    return found


def check_fixed_size(config: ViewConfig) -> None:
    """Raises ConfigError for what images of one size do not get."""
    if config.blur_p:
        raise ConfigError(
            f"views.blur_p = {config.blur_p}: images of one size are not blurred; unset it or give 0"
        )


def views_of(config: AugmentConfig) -> int:
    """How many views of an image there are."""
    return 1 if config is None or config.count is None else config.count


class Augmenter:
    """Renders batches of S x S images on `workers` threads, the calling one included.

    `config` decides what a sample becomes: ViewConfig and CropFlipConfig their count of views, None itself.
    `pinned`: into page-locked memory, from which copies to a GPU do not wait.
    Raises ConfigError for settings out of range. Any number of threads may call `render` at once.
    """

    def __init__(
        self, config: AugmentConfig, *, size: int, seed: int, workers: int = 1, pinned: bool = False
    ) -> None:
        self.views = views_of(config)
        self.size = size
        self._seed = seed
        self._kernel: Callable[..., None]
        if isinstance(config, ViewConfig):
            check_fixed_size(config)
            self._kernel, self._settings = _views, view_settings(config)
        elif isinstance(config, CropFlipConfig):
            self._kernel, self._settings = _crop_and_flip, crop_settings(config, size)
        else:
            self._kernel, self._settings = _plain_copy, np.zeros(1, _CROP_SETTINGS)
        self._workers = workers
        # Images that are worth handing to another thread.
        self._least = 16 if isinstance(config, ViewConfig) else 256
        self._pool = ThreadPoolExecutor(workers - 1, "rmd-augment") if workers > 1 else None
        self._pinned = pinned

    def render(self, data: Bytes, pointers: Ints, samples: Ints, epoch: int) -> Tensor:
        """Views of the images that lie at `pointers` in `data`, uint8 (views, b, S, S, 3), the caller's own.

        data: read-only bytes (n,); image k are the S * S * 3 of them from pointers[k] on, which must lie
        inside. pointers and samples (data set indices): int64 (b,).
        """
        rows = len(samples)
        shape = (self.views, rows, self.size, self.size, 3)
        out = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned)
        slices = max(1, min(self._workers, rows // self._least))
        cuts = [rows * i // slices for i in range(slices + 1)]
        tail = (self._seed, epoch, self._settings, out.numpy())
        waiting = [
            self._pool.submit(self._kernel, data, pointers, samples, first, last, *tail)
            for first, last in itertools.pairwise(cuts[1:])
            if self._pool is not None
        ]
        self._kernel(data, pointers, samples, 0, cuts[1], *tail)
        for slice_done in waiting:
            slice_done.result()
        return out

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
