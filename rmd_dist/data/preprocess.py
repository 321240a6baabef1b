"""From uint8 pixels to what a model wants: its size, its normalisation, as its `pretrained_cfg` says.

Every model carries its own (timm's convention), so a teacher and a student of unlike sizes and statistics
are both served from one batch of pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd_dist.data.dataset import DatasetInfo


@dataclass(frozen=True)
class Preprocess:
    """uint8 (B, H, W, 3) -> (B, 3, *size) = (images / 255 - mean) / std, on the same device."""

    size: tuple[int, int]
    """Height and width in pixels."""

    mean: tuple[float, ...]
    """Of each colour, in [0, 1]."""

    std: tuple[float, ...]

    crop_pct: float = 1.0
    """Share of the shorter side that an evaluation's central crop has, of images of varying sizes."""

    @classmethod
    def for_dataset(cls, info: DatasetInfo, size: int | None = None) -> Preprocess:
        """What suits a model that is trained on a data set from the start: its statistics, its size or S."""
        size = size or info.image_size
        return cls((size, size), info.mean, info.std, info.crop_pct)

    @classmethod
    def of(cls, model: Any) -> Preprocess:
        """What a timm model wants, by its `pretrained_cfg`."""
        cfg = model.pretrained_cfg
        size, mean, std = (tuple(cfg[key]) for key in ("input_size", "mean", "std"))
        return cls(size[1:], mean, std, cfg.get("crop_pct") or 1.0)

    def to_cfg(self) -> dict[str, Any]:
        """The same as entries of a `pretrained_cfg`, by which timm's transforms do what is done here."""
        cut = {"interpolation": "bilinear", "crop_pct": self.crop_pct, "crop_mode": "center"}
        return {"input_size": (3, *self.size), "mean": self.mean, "std": self.std} | cut

    def __call__(
        self, images: Tensor, channels_last: bool = True, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Resized (bilinear, antialiased) where the size differs, computed in fp32, then `dtype`.

        The result is channels_last in memory, as the images are, unless that is declined.
        """
        scale, shift = _affine(self.mean, self.std, images.device)
        floats = images.permute(0, 3, 1, 2).to(torch.float32)
        if floats.shape[2:] != self.size:
            floats = F.interpolate(floats, self.size, mode="bilinear", antialias=True)
        floats = floats.mul_(scale).add_(shift).to(dtype)
        return floats if channels_last else floats.contiguous()


@functools.lru_cache(maxsize=16)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (3, 1, 1); kept, because sending them anew would stall a GPU in every step."""
    with torch.inference_mode(False):  # evaluation may be the first to ask, training gets the same tensors
        scale = torch.tensor([1.0 / (255.0 * s) for s in std], dtype=torch.float32, device=device)
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        return scale.view(-1, 1, 1), torch.tensor(shift, dtype=torch.float32, device=device).view(-1, 1, 1)
