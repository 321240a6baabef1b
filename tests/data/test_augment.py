"""Augmentations: parameters against torchvision's distributions, whole views against its pixels, purity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render import augment
from rmd_dist.data.render.augment import Augmenter, sample_views, view_settings
from rmd_dist.errors import ConfigError

DRAWS = 4000
ENOUGH = 1e-3  # p value below which two distributions count as different; all draws are seeded


def drawn(config: ViewConfig, size: int, n: int = DRAWS) -> np.ndarray:
    return sample_views(
        view_settings(config, blur_p=0.4), size, size, seed=1, epoch=2, samples=np.arange(n), view=0
    )


def same_counts(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p value of two samples of small integers coming from one distribution; rare values are pooled."""
    n = int(max(ours.max(), theirs.max())) + 1
    table = np.stack([np.bincount(ours, minlength=n), np.bincount(theirs, minlength=n)])
    common = table.sum(axis=0) >= 20
    rare = table[:, ~common].sum(axis=1, keepdims=True)
    table = np.concatenate([table[:, common], rare] if rare.sum() >= 20 else [table[:, common]], axis=1)
    return float(stats.chi2_contingency(table).pvalue)


@pytest.mark.parametrize(("size", "scale"), [(32, (0.2, 1.0)), (16, (0.08, 0.5)), (16, (0.9, 1.0))])
def test_crops_are_distributed_like_torchvisions(size: int, scale: tuple[float, float]) -> None:
    ours = drawn(ViewConfig(crop_scale=scale), size)
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(size, scale=scale), torch.zeros(3, size, size)
    theirs = [transform.make_params([image]) for _ in range(DRAWS)]
    for name in ("top", "left", "height", "width"):
        assert same_counts(ours[name], np.array([p[name] for p in theirs])) > ENOUGH, name
    shape = np.array([p["height"] * 64 + p["width"] for p in theirs])  # jointly: area and aspect ratio
    assert same_counts(ours["height"] * 64 + ours["width"], shape) > ENOUGH
    assert (ours["top"] + ours["height"] <= size).all() and (ours["left"] + ours["width"] <= size).all()


def test_a_crop_that_never_fits_is_the_whole_image() -> None:
    """Only ratios that round to 32 x 32 fit the whole area; most samples run out of tries."""
    ours = drawn(ViewConfig(crop_scale=(1.0, 1.0)), 32)
    for name, expected in (("top", 0), ("left", 0), ("height", 32), ("width", 32)):
        assert (ours[name] == expected).all()


def test_colour_parameters_are_distributed_like_torchvisions() -> None:
    config = ViewConfig(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    ours = drawn(config, 32)
    torch.manual_seed(0)
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    theirs = [jitter.make_params([]) for _ in range(DRAWS)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        expected = [p[f"{name}_factor"] for p in theirs]
        assert stats.ks_2samp(ours[name], expected).pvalue > ENOUGH, name
    assert stats.kstest(ours["sigma"], stats.uniform(0.1, 1.9).cdf).pvalue > ENOUGH
    first = np.array([int(p["fn_idx"][0]) * 4 + int(p["fn_idx"][1]) for p in theirs])
    orders = augment.ORDERS[ours["order"]]
    assert same_counts(orders[:, 0] * 4 + orders[:, 1], first) > ENOUGH
    assert sorted(set(ours["order"])) == list(range(24))


def test_chances_are_the_configured_ones_and_independent() -> None:
    config = ViewConfig(flip_p=0.3, jitter_p=0.7, grayscale_p=0.15)
    ours = drawn(config, 32)
    for name, p in (("flip", 0.3), ("jitter", 0.7), ("gray", 0.15), ("blur", 0.4)):
        assert stats.binomtest(int(ours[name].sum()), DRAWS, p).pvalue > ENOUGH, name
    numbers = np.stack([ours[name].astype(float) for name in augment.VIEW_PARAMETERS.names or ()])
    correlation = np.corrcoef(numbers) - np.eye(len(numbers))
    correlation[:4, :4] = 0.0  # a crop's height and width share its area, and bound its place
    assert np.abs(correlation).max() < 5.0 / DRAWS**0.5


def test_crop_offsets_and_flips_are_uniform() -> None:
    settings = augment.crop_settings(CropFlipConfig(padding=4, flip_p=0.5), 32)
    rows = np.array([augment.draw_crop(1, 2, i, 0, settings[0]) for i in range(DRAWS)])
    for column, bins in ((0, 9), (1, 9), (2, 2)):
        assert stats.chisquare(np.bincount(rows[:, column], minlength=bins)).pvalue > ENOUGH
    assert stats.chisquare(np.bincount(rows[:, 0] * 9 + rows[:, 1], minlength=81)).pvalue > ENOUGH


def torchvision_view(image: torch.Tensor, view: np.void, size: int) -> torch.Tensor:
    """One view by torchvision, in the order of its usual Compose, with our parameters."""
    box = [int(view[name]) for name in ("top", "left", "height", "width")]
    out = tv.resized_crop(image, *box, [size, size], antialias=True)
    if view["flip"]:
        out = tv.horizontal_flip(out)
    operations: list[tuple[Any, str]] = [
        (tv.adjust_brightness, "brightness"),
        (tv.adjust_contrast, "contrast"),
        (tv.adjust_saturation, "saturation"),
        (tv.adjust_hue, "hue"),
    ]
    for number in augment.ORDERS[view["order"]] if view["jitter"] else ():
        operation, name = operations[number]
        out = operation(out, float(view[name]))
    return tv.rgb_to_grayscale(out, num_output_channels=3) if view["gray"] else out


@pytest.mark.parametrize("size", [16, 32])
def test_whole_views_equal_torchvisions(size: int) -> None:
    count = 100
    images = smooth_images(count, size)
    pixels = render(Augmenter(ViewConfig(), size=size, seed=5), images, np.arange(count), epoch=3)
    steps = []
    for number in range(2):
        views = sample_views(
            view_settings(ViewConfig()), size, size, seed=5, epoch=3, samples=np.arange(count), view=number
        )
        for image, view, ours in zip(images, views, pixels[number], strict=True):
            start = torch.from_numpy(image).permute(2, 0, 1)
            exact = torchvision_view(start / 255.0, view, size) * 255.0
            assert np.abs(ours - exact.permute(1, 2, 0).numpy()).max() < 0.51
            bytewise = (
                torchvision_view(start, view, size).permute(1, 2, 0).numpy()
            )  # cut to bytes after every step
            steps.append(np.abs(ours.astype(int) - bytewise))
    assert np.mean(steps) < 1.5
    assert np.quantile(steps, 0.99) <= 4


def smooth_images(n: int, size: int) -> np.ndarray:
    """uint8 (n, size, size, 3): random blots whose neighbouring pixels are alike, as in photographs."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(-60, 315, (n, 3, 5, 5)))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255)
    return np.ascontiguousarray(fine.permute(0, 2, 3, 1).numpy().astype(np.uint8))


def render(augmenter: Augmenter, images: np.ndarray, samples: np.ndarray, epoch: int = 0) -> np.ndarray:
    """(views, b, S, S, 3) of images[samples]."""
    data = images.reshape(-1)
    data.flags.writeable = False
    pointers = samples * images[0].size
    return augmenter.render(data, pointers, samples, epoch).numpy()


@pytest.mark.parametrize("config", [ViewConfig(), CropFlipConfig(), None], ids=["views", "crop", "plain"])
def test_a_sample_looks_the_same_in_any_company(config: Any) -> None:
    images, samples = smooth_images(70, 16), np.random.default_rng(1).permutation(70)
    whole = render(Augmenter(config, size=16, seed=9), images, samples, epoch=4)
    for workers in (2, 3):
        threads = Augmenter(config, size=16, seed=9, workers=workers)
        threads._least = 8
        np.testing.assert_array_equal(render(threads, images, samples, epoch=4), whole)
        threads.close()
    alone = [
        render(Augmenter(config, size=16, seed=9), images, samples[k : k + 1], epoch=4) for k in range(70)
    ]
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), whole)


@pytest.mark.parametrize(
    "config", [ViewConfig(), CropFlipConfig(), CropFlipConfig(count=2)], ids=["views", "crop", "two crops"]
)
def test_seed_epoch_sample_and_view_each_change_the_pixels(config: Any) -> None:
    images, samples = np.repeat(smooth_images(1, 32), 80, axis=0), np.arange(64)  # one picture, many samples
    base = render(Augmenter(config, size=32, seed=9), images, samples, epoch=4)
    others = [
        render(Augmenter(config, size=32, seed=8), images, samples, epoch=4),
        render(Augmenter(config, size=32, seed=9), images, samples, epoch=5),
        render(Augmenter(config, size=32, seed=9), images, samples + 1, epoch=4),
        base[::-1],
    ]
    for other in others[: 3 + (len(base) == 2)]:
        assert (other != base).any(axis=(2, 3, 4)).mean() > 0.9


def test_the_first_of_several_crops_is_the_only_one() -> None:
    images, samples = smooth_images(20, 16), np.arange(20)
    three = render(Augmenter(CropFlipConfig(count=3), size=16, seed=1), images, samples, epoch=2)
    one = render(Augmenter(CropFlipConfig(), size=16, seed=1), images, samples, epoch=2)
    assert three.shape[0] == 3
    np.testing.assert_array_equal(three[:1], one)


def test_nothing_asked_for_is_the_image_itself() -> None:
    images, samples = smooth_images(20, 16), np.arange(20)
    still = ViewConfig((1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    for config in (still, CropFlipConfig(padding=0, flip_p=0.0), None):
        for view in render(Augmenter(config, size=16, seed=0), images, samples):
            np.testing.assert_array_equal(view, images)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_scale": (0.5, 1.2)}, "crop_scale"),
        ({"brightness": -0.1}, "brightness"),
        ({"hue": 0.6}, "hue"),
        ({"jitter_p": 1.5}, "jitter_p"),
        ({"flip_p": float("nan")}, "flip_p"),
        ({"blur_p": 0.5}, "blur_p"),
    ],
)
def test_bad_view_settings_are_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Augmenter(replace(ViewConfig(), **change), size=32, seed=0)


@pytest.mark.parametrize(
    "bad", [CropFlipConfig(padding=-1), CropFlipConfig(padding=33), CropFlipConfig(flip_p=2)]
)
def test_bad_crop_settings_are_named(bad: CropFlipConfig) -> None:
    with pytest.raises(ConfigError, match=r"padding|flip_p"):
        Augmenter(bad, size=32, seed=0)
