"""Views of images of any size: crops against torchvision's draws, evaluation against timm, purity."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from rmd_dist.config import CropFlipConfig, ViewConfig
from rmd_dist.data.render.augment import sample_views, view_settings
from rmd_dist.data.render.varied import VariedAugmenter
from rmd_dist.errors import ConfigError
from tests.data.test_augment import DRAWS, ENOUGH, same_counts, torchvision_view

SHAPES = [(60, 80), (200, 31), (1, 1), (1, 40), (97, 50), (40, 300)]


def pictures() -> list[np.ndarray]:
    """uint8 (H, W, 3) of SHAPES: random blots, neighbouring pixels alike."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(-60, 315, (len(SHAPES), 1, 3, 5, 5)))
    smooth = [
        torch.nn.functional.interpolate(c, size=shape, mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
        for c, shape in zip(coarse, SHAPES, strict=True)
    ]
    return [np.ascontiguousarray(image.numpy().astype(np.uint8)) for image in smooth]


IMAGES = pictures()


def image_of(sample: int) -> np.ndarray:
    return IMAGES[sample % len(IMAGES)]


def render(
    config: Any, samples: Any, *, sizes: tuple[int, ...] = (32,), seed: int = 9, **options: Any
) -> Any:
    """The batch as numpy arrays (b, S, S, 3), sizes outermost."""
    epoch = options.pop("epoch", 4)
    augmenter = VariedAugmenter(config, sizes=sizes, seed=seed, **options)
    try:
        return [view.numpy() for view in augmenter.render(image_of, np.asarray(samples), epoch)]
    finally:
        augmenter.close()


@pytest.mark.parametrize(
    ("shape", "scale"), [((30, 40), (0.08, 1.0)), ((50, 20), (0.6, 1.0)), ((9, 90), (0.2, 1))]
)
def test_crops_are_distributed_like_torchvisions(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    """The narrow ones fall back to the centre, always or often."""
    settings = view_settings(ViewConfig(crop_scale=scale))
    ours = sample_views(settings, *shape, seed=1, epoch=2, samples=np.arange(DRAWS), view=0)
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(8, scale=scale), torch.zeros(3, *shape)
    theirs = [transform.make_params([image]) for _ in range(DRAWS)]
    for name in ("top", "left", "height", "width"):
        assert same_counts(ours[name], np.array([p[name] for p in theirs])) > ENOUGH, name
    joint = np.array([p["height"] * 100 + p["width"] for p in theirs])
    assert same_counts(ours["height"] * 100 + ours["width"], joint) > ENOUGH
    assert (ours["top"] + ours["height"] <= shape[0]).all() and (
        ours["left"] + ours["width"] <= shape[1]
    ).all()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (10, 100), (101, 7), (33, 33)], ids=str)
def test_the_fallback_is_torchvisions_central_crop(shape: tuple[int, int]) -> None:
    """No crop of the whole area fits these but 3/4 to 4/3 of the shorter side."""
    settings = view_settings(ViewConfig(crop_scale=(1.0, 1.0)))
    ours = sample_views(settings, *shape, seed=1, epoch=2, samples=np.arange(3), view=0)
    theirs = v2.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.zeros(3, *shape)])
    for name in ("top", "left", "height", "width"):
        assert (ours[name] == theirs[name]).all(), name


@pytest.mark.parametrize("config", [ViewConfig(blur_p=0.5), CropFlipConfig()], ids=["views", "crop"])
def test_whole_views_equal_torchvisions(config: Any) -> None:
    """All in float, blur included, with the parameters drawn."""
    samples, size = np.arange(24), 64
    ours = render(config, samples, sizes=(size,), seed=5, epoch=3)
    plain = isinstance(config, CropFlipConfig)
    settings = view_settings(
        ViewConfig((0.08, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0) if plain else config,
        blur_p=0.0 if plain else 0.5,
    )
    for number, batch in enumerate(ours):
        for sample, rendered in zip(samples, batch, strict=True):
            image = image_of(sample)
            where = {"seed": 5, "epoch": 3, "samples": samples[sample : sample + 1], "view": number}
            view = sample_views(settings, *image.shape[:2], **where)[0]
            exact = torchvision_view(torch.from_numpy(image).permute(2, 0, 1) / 255.0, view, size) * 255.0
            if view["blur"]:
                sigma = view["sigma"] * size / 224
                exact = v2.functional.gaussian_blur(exact, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma] * 2)
            assert np.abs(rendered - exact.permute(1, 2, 0).numpy()).max() < 0.52


def test_views_of_one_size_are_drawn_as_before() -> None:
    """A square image has the views that the fixed-size augmenter gives it: the same numbers of one stream."""
    from rmd_dist.data.render.augment import Augmenter

    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    data = images.reshape(-1)
    data.flags.writeable = False
    samples = np.arange(20)
    fixed = Augmenter(ViewConfig(), size=32, seed=7).render(data, samples * images[0].size, samples, 1)
    varied = VariedAugmenter(ViewConfig(), sizes=(32,), seed=7).render(lambda k: images[k], samples, 1)
    for old, new in zip(fixed, varied, strict=True):
        assert (old.int() - new.int()).abs().max() <= 1


@pytest.mark.parametrize("config", [ViewConfig(), CropFlipConfig(), None], ids=["views", "crop", "central"])
def test_a_sample_looks_the_same_in_any_company(config: Any) -> None:
    samples = np.random.default_rng(1).permutation(30)
    whole = render(config, samples, sizes=(32, 24))
    assert len(whole) == 2 * (2 if isinstance(config, ViewConfig) else 1)
    for workers in (2, 3):
        for ours, expected in zip(
            render(config, samples, sizes=(32, 24), workers=workers), whole, strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
    for k in (0, 11, 29):
        for ours, expected in zip(render(config, samples[k : k + 1], sizes=(32, 24)), whole, strict=True):
            np.testing.assert_array_equal(ours[0], expected[k])


def test_seed_epoch_sample_and_view_each_change_the_pixels() -> None:
    samples = np.arange(0, 60, len(IMAGES))  # one picture, many samples
    base = render(ViewConfig(), samples)
    others = [
        render(ViewConfig(), samples, seed=8),
        render(ViewConfig(), samples, epoch=5),
        render(ViewConfig(), samples + 6),
        base[::-1],
    ]
    for other in others:
        assert np.mean([(a != b).any(axis=(1, 2, 3)).mean() for a, b in zip(base, other, strict=True)]) > 0.9


def test_sizes_show_the_same_view() -> None:
    """The larger one, averaged over 2 x 2 pixels, is nearly the smaller one: crop, flip, colours and blur."""
    samples = np.arange(40)
    views = render(ViewConfig(blur_p=0.5), samples, sizes=(96, 48))
    assert [view.shape[1] for view in views] == [96, 96, 48, 48]
    for large, small in zip(views[:2], views[2:], strict=True):
        halved = large.reshape(40, 48, 2, 48, 2, 3).astype(float).mean(axis=(2, 4))
        assert np.abs(halved - small).mean() < 1.5
        other = np.abs(halved - np.roll(small, 6, axis=0)).mean()  # the same picture, another draw
        assert other > 10


def test_blur_is_there_above_64_pixels_alone() -> None:
    blurred, sharp = ViewConfig(blur_p=0.5), ViewConfig(blur_p=0.0)
    for size, same in ((65, blurred), (64, sharp)):
        usual = render(ViewConfig(), range(12), sizes=(size,))
        for ours, expected in zip(usual, render(same, range(12), sizes=(size,)), strict=True):
            np.testing.assert_array_equal(ours, expected)
    at_64 = [render(config, range(12), sizes=(64,))[0] for config in (blurred, sharp)]
    assert not np.array_equal(*at_64)


def test_the_bytes_of_a_batch() -> None:
    """They are what a seed means: change them only with the major version."""
    digest = hashlib.sha256()
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in SHAPES]
    for config in (ViewConfig(blur_p=0.5), CropFlipConfig(), None):
        for view in VariedAugmenter(config, sizes=(24,), seed=1).render(lambda k: images[k], np.arange(6), 2):
            digest.update(view.numpy().tobytes())
    assert digest.hexdigest()[:16] == "432566db6fbe6d50"


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_evaluation_sees_what_timm_sees(crop_pct: float) -> None:
    shapes = [(300, 400), (401, 299), (60, 60), (97, 50), (20, 31), (1, 40), (40, 300), (1, 1)]
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    for size in (56, 61):
        augmenter = VariedAugmenter(None, sizes=(size,), seed=0, crop_pct=crop_pct)
        (ours,) = augmenter.render(lambda k: noise[k], np.arange(len(noise)), 0)
        transform = create_transform(
            size, is_training=False, interpolation="bilinear", crop_pct=crop_pct, mean=(0,) * 3, std=(1,) * 3
        )
        for image, rendered in zip(noise, ours, strict=True):
            theirs = transform(Image.fromarray(image)) * 255
            assert (rendered.permute(2, 0, 1) - theirs).abs().max() < 1.01, image.shape


def test_what_load_raises_is_raised() -> None:
    def load(sample: int) -> np.ndarray:
        if sample == 3:
            raise OSError("sample 3 is gone")
        return IMAGES[0]

    augmenter = VariedAugmenter(None, sizes=(8,), seed=0, workers=2)
    with pytest.raises(OSError, match="sample 3 is gone"):
        augmenter.render(load, np.arange(40), 0)
    assert augmenter.render(load, np.arange(3), 0)[0].shape == (3, 8, 8, 3)
    augmenter.close()


@pytest.mark.parametrize(
    ("config", "options", "word"),
    [
        (ViewConfig(crop_scale=(0.0, 1.0)), {}, "crop_scale"),
        (ViewConfig(blur_p=1.5), {}, "blur_p"),
        (ViewConfig(blur_sigma=(0.0, 1.0)), {}, "blur_sigma"),
        (CropFlipConfig(crop_scale=(0.5, 0.2)), {}, "crop_scale"),
        (CropFlipConfig(flip_p=2.0), {}, "flip_p"),
        (None, {"crop_pct": 1.2}, "crop_pct"),
        (None, {"sizes": ()}, "sizes"),
    ],
)
def test_bad_settings_are_named(config: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        VariedAugmenter(config, **{"sizes": (32,), "seed": 0, **options})
