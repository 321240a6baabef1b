"""All crops that random crop and flip can draw of images of one size, by number."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from rmd_dist.config import CropFlipConfig
from rmd_dist.data.render.augment import Ints, crop_settings, draw_crop
from rmd_dist.data.render.jit import kernel


@dataclass(frozen=True)
class Crops:
    """The (2 padding + 1)^2 windows on a padded image, each mirrored or not, or both where both are drawn."""

    config: CropFlipConfig
    size: int
    """S of the images."""

    @property
    def flips(self) -> tuple[bool, ...]:
        """Whether windows are mirrored: never, always, or either."""
        chance = self.config.flip_p
        return (chance == 1,) if chance in (0, 1) else (False, True)

    def __len__(self) -> int:
        return (2 * self.config.padding + 1) ** 2 * len(self.flips)

    @functools.cached_property
    def _settings(self) -> Any:
        return crop_settings(self.config, self.size)

    def drawn(self, seed: int, epoch: int, samples: Ints) -> Ints:
        """Number of the crop that each of `samples` (b,) gets as the first view of `epoch`, (b,)."""
        numbers = np.empty_like(samples)
        _number(samples, seed, epoch, self._settings, len(self.flips), numbers)
        return numbers

    def render(self, images: Tensor, number: int) -> Tensor:
        """Crop `number` of each of `images` (b, S, S, 3) uint8, of the same shape, on their device."""
        window, flip = divmod(number, len(self.flips))
        top, left = divmod(window, 2 * self.config.padding + 1)
        padded = F.pad(images, (0, 0, *[self.config.padding] * 4))
        crop = padded[:, top : top + self.size, left : left + self.size]
        return crop.flip(2) if self.flips[flip] else crop


@kernel
def _number(samples: Ints, seed: int, epoch: int, settings: Any, flips: int, numbers: Ints) -> None:
    across = 2 * settings[0].padding + 1
    for k in range(len(samples)):
        top, left, flip = draw_crop(seed, epoch, samples[k], 0, settings[0])
        numbers[k] = (top * across + left) * flips + (flips - 1) * flip
