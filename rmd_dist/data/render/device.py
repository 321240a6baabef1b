"""Views rendered where the images lie, such as on a GPU: drawn as in `augment`, to the bytes of its kernels.

A thread of the host draws what decides a view; the device cuts, resizes and colours all views of a batch at
once, in tensor operations that wait for nothing, so that a CUDA graph can hold them. Every operation is a
kernel of `pixels` with the same roundings, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.augment import (
    CROP_PARAMETERS,
    ORDERS,
    VIEW_PARAMETERS,
    Ints,
    check_fixed_size,
    crop_settings,
    draw_crops,
    draw_views,
    view_settings,
    views_of,
)
from rmd_dist.data.render.pixels import BLUE, GREEN, RED

Drawn = dict[str, Tensor]
"""Parameters of n views by their names, each (n,) int64 or float64."""

_LUMA = tuple(map(float, (RED, GREEN, BLUE)))


class DeviceAugmenter:
    """Draws views on the host and renders them on the device of `images`.

    images: uint8 (N, S, S, 3), all of the data set's. config: what a sample becomes, and its count of views.
    Raises ConfigError for settings out of range.
    """

    def __init__(
        self, images: Tensor, config: ViewConfig | CropFlipConfig, *, seed: int, pinned: bool = False
    ) -> None:
        self.views, self.size = views_of(config), images.shape[1]
        self._images, self._seed, self._pinned = images, seed, pinned
        self._rows = torch.arange(self.size, device=images.device)
        self._render: Callable[[Tensor, Drawn], Tensor]
        self._draw: Callable[..., None]
        if isinstance(config, ViewConfig):
            check_fixed_size(config)
            self._draw, self._render, self._kind = draw_views, self._resized, VIEW_PARAMETERS
            self._settings = view_settings(config)
            self._orders = torch.from_numpy(ORDERS).to(images.device)
        else:
            self._draw, self._render, self._kind = draw_crops, self._shifted, CROP_PARAMETERS
            self._settings, self._padding = crop_settings(config, self.size), config.padding

    def draw(self, samples: Ints, epoch: int) -> Tensor:
        """What decides the views of `samples` (b,), data set indices: int64 (V, b, F), on the host.

        F fields of 64 bits each, some of them the bits of a float64.
        """
        shape = (self.views, len(samples), len(self._kind.names or ()))
        drawn = torch.empty(shape, dtype=torch.int64, pin_memory=self._pinned)
        records = drawn.numpy().view(self._kind)[..., 0]
        self._draw(self._settings, self._seed, epoch, samples, self.size, self.size, records)
        return drawn

    def render(self, index: Tensor, drawn: Tensor) -> tuple[Tensor, ...]:
        """The views of samples `index` (b,) as they were drawn (V, b, F), both on the device.

        V views, uint8 (b, S, S, 3) each.
        """
        integers = drawn.flatten(0, 1)
        floats = integers.view(torch.float64)
        parameters = {
            name: (floats if self._kind[name].kind == "f" else integers)[:, column]
            for column, name in enumerate(self._kind.names or ())
        }
        with torch.no_grad(), torch.autocast(drawn.device.type, enabled=False):
            return self._render(index.repeat(self.views), parameters).chunk(self.views)

    def close(self) -> None:
        """Nothing is open."""

    def _shifted(self, index: Tensor, crop: Drawn) -> Tensor:
        """`pixels.shifted_crop` of images `index` (n,): uint8 (n, S, S, 3)."""
        rows, columns = crop["top"][:, None] + self._rows, crop["left"][:, None] + self._columns(crop["flip"])
        padded = F.pad(self._images[index], (0, 0, *[self._padding] * 4))
        at = torch.arange(len(index), device=index.device)[:, None, None]
        return padded[at, rows[:, :, None], columns[:, None]]

    def _resized(self, index: Tensor, view: Drawn) -> Tensor:
        """`augment.render_view` of images `index` (n,): uint8 (n, S, S, 3)."""
        planes = self._resized_crop(index, view)
        planes = torch.where(_each(view["jitter"]) > 0, self._jittered(planes, view), planes)
        planes = torch.where(_each(view["gray"]) > 0, _grey(planes), planes)
        pixels = (planes + 0.5).to(torch.uint8, memory_format=torch.channels_last)
        return pixels.permute(0, 2, 3, 1)

    def _resized_crop(self, index: Tensor, view: Drawn) -> Tensor:
        """`pixels.resized_crop`: fp32 (n, 3, S, S) in [0, 255]."""
        low, high, weight = self._taps(view["height"])
        top, weight = view["top"][:, None], weight[:, :, None, None]
        above, below = (self._images[index[:, None], top + taps].float() for taps in (low, high))
        rows = (above + weight * (below - above)).transpose(1, 2)  # (n, columns, S, 3)
        low, high, weight = self._taps(view["width"])
        order = self._columns(view["flip"])
        low, high, weight = (taps.gather(1, order) for taps in (low, high, weight))
        left, at = view["left"][:, None], torch.arange(len(index), device=index.device)[:, None]
        before, after = rows[at, left + low], rows[at, left + high]
        planes = before + weight[:, :, None, None] * (after - before)
        return planes.permute(0, 3, 2, 1).contiguous()

    def _columns(self, flip: Tensor) -> Tensor:
        """Which column comes out at each place, (n, S): mirrored those from the last on, by `flip` (n,)."""
        return torch.where(flip[:, None] > 0, self._rows.flip(0), self._rows)

    def _taps(self, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what `length` (n,) pixels are stretched to S: (low, high, weight of high), each (n, S)."""
        length = length[:, None]
        centre = ((self._rows.double() + 0.5) * length / self.size - 0.5).clamp_min(0.0)
        low = centre.long()
        return low, torch.minimum(low + 1, length - 1), (centre - low).float()

    def _jittered(self, planes: Tensor, view: Drawn) -> Tensor:
        """ColorJitter: the four operations in each view's own order."""
        operations = (_brightness, _contrast, _saturation, _hue)
        order = self._orders[view["order"]]
        for step in range(4):
            turn, before = _each(order[:, step]), planes
            for number, operation in enumerate(operations):
                planes = torch.where(turn == number, operation(before, view), planes)
        return planes


def _each(values: Tensor) -> Tensor:
    """One value a view, (n,), beside planes (n, 3, S, S)."""
    return values[:, None, None, None]


def _grey(planes: Tensor) -> Tensor:
    """Luma (n, 1, S, S)."""
    red, green, blue = planes.chunk(3, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _brightness(planes: Tensor, view: Drawn) -> Tensor:
    return (planes * _each(view["brightness"].float())).clamp(0.0, 255.0)


def _contrast(planes: Tensor, view: Drawn) -> Tensor:
    factor = _each(view["contrast"])
    total = (
        _grey(planes).double().sum((2, 3), keepdim=True)
    )  # in fp64: in any order, far below fp32's rounding
    grey = (total / planes[0, 0].numel() * (1.0 - factor)).float()
    return (planes * factor.float() + grey).clamp(0.0, 255.0)


def _saturation(planes: Tensor, view: Drawn) -> Tensor:
    factor = _each(view["saturation"].float())
    return (planes * factor + _grey(planes) * (1.0 - factor)).clamp(0.0, 255.0)


def _hue(planes: Tensor, view: Drawn) -> Tensor:
    turn = _each((6.0 * (view["hue"] - view["hue"].floor())).float())
    red, green, blue = planes.chunk(3, dim=1)
    value = planes.amax(1, keepdim=True)
    chroma = value - planes.amin(1, keepdim=True)
    scale = 1.0 / torch.where(chroma > 0, chroma, 1.0)
    of_others = torch.where(value == green, 2.0 + (blue - red) * scale, 4.0 + (red - green) * scale)
    hue = torch.where(value == red, (green - blue) * scale, of_others) + turn
    hue = torch.where(hue < 0, hue + 6.0, hue)
    hue = torch.where(hue >= 6, hue - 6.0, hue)
    sector = torch.cat([hue + 5.0, hue + 3.0, hue + 1.0], dim=1)
    sector = torch.where(sector >= 6, sector - 6.0, sector)
    return value - chroma * torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0)
