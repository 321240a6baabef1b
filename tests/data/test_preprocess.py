"""From pixels to what a model wants."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F

from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.preprocess import Preprocess, _affine
from rmd_dist.models.export import create


def test_images_are_normalised() -> None:
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = ((images / 255.0 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    for channels_last in (True, False):
        ours = Preprocess((16, 16), mean, std)(images, channels_last)
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=layout)


def test_it_may_first_be_called_in_inference_mode() -> None:
    images, mean, std = torch.ones(1, 4, 4, 3, dtype=torch.uint8), (0.11, 0.12, 0.13), (0.2, 0.2, 0.2)
    preprocess = Preprocess((4, 4), mean, std)
    with torch.inference_mode():
        preprocess(images)
    weight = torch.ones(1, requires_grad=True)
    (preprocess(images) * weight).sum().backward()
    assert not any(constant.is_inference() for constant in _affine(mean, std, images.device))


def test_a_model_says_what_it_wants() -> None:
    wanted = Preprocess.for_dataset(dataset_info("digits"))
    assert (
        wanted.size == (16, 16) and Preprocess.of(create("resnet18_cifar_w16", 0, wanted.to_cfg())) == wanted
    )
    cfg = timm.get_pretrained_cfg("resnet18")
    assert Preprocess.of(create("resnet18", 0)) == Preprocess((224, 224), cfg.mean, cfg.std, cfg.crop_pct)


def test_images_of_another_size_are_resized() -> None:
    """Antialiased: shrinking a fine chessboard gives grey, not a coarse chessboard."""
    board = (torch.arange(32)[:, None] + torch.arange(32)[None]) % 2 * 255
    images = board.to(torch.uint8).expand(2, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
    small = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)(images)
    assert small.shape == (2, 3, 8, 8) and small.abs().max() < 0.1
    smooth = F.interpolate(torch.rand(2, 3, 4, 4), (32, 32), mode="bilinear").mul(255).round()
    pixels = smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    large = Preprocess((64, 64), (0.0,) * 3, (1.0,) * 3)(pixels)
    expected = F.interpolate(smooth, (64, 64), mode="bilinear", antialias=True) / 255
    torch.testing.assert_close(large, expected, atol=1e-5, rtol=0)
