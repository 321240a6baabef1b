"""Features of all images: those of `predict`, none encoded twice, whatever happened to the pass before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rmd_dist.data.dataset import Dataset, dataset_info
from rmd_dist.data.images.source import ImageFiles
from rmd_dist.data.images.work import StoreOptions
from rmd_dist.data.prepare import open_dataset
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError, Fault
from rmd_dist.evaluation import features as module
from rmd_dist.evaluation.features import cached_features
from rmd_dist.evaluation.onnx_runtime import OnnxEncoder, quick_encoder
from rmd_dist.evaluation.predict import predict
from rmd_dist.models.export import create
from rmd_dist.models.student import Encoder
from rmd_dist.models.weights import read_tensors, save_tensors
from rmd_dist.parallel.compute import Compute
from tests.data.images.folders import write, write_classes

INFO = replace(dataset_info("digits"), image_size=4)


class Means(nn.Module):
    """Features (B, 3): the mean of each colour in [0, 1], times a factor; counts the images that it gets."""

    pretrained_cfg: ClassVar = Preprocess((4, 4), (0.0,) * 3, (1.0,) * 3).to_cfg()
    num_features = 3

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.seen = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.mean((2, 3)) * self.factor


def pixels(count: int = 40, split: str = "train", seed: int = 0) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Dataset(INFO, split, np.zeros(count, np.int64), images=images, sha256=f"{seed}{split}")


def encoded(model: nn.Module, root: Path, *datasets: Dataset, sha256: str = "w", **more: Any) -> Tensor:
    return cached_features(model, sha256, datasets, root, Compute(), batch_size=8, **more)


def parts(root: Path) -> list[Path]:
    return sorted(root.glob("features/*/part-*.safetensors"))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "quick_encoder", lambda model, _: model)
    yield


def test_they_are_what_the_model_gives_in_half_precision(tmp_path, small_chunks):
    train, test = pixels(40), pixels(7, "test")
    told: list[tuple[str, int, int]] = []
    model = Means()
    found = encoded(model, tmp_path, train, test, progress=lambda *what: told.append(what))
    expected = torch.cat([predict(Means(), data) for data in (train, test)])
    assert torch.equal(found, expected.half()) and found.dtype == torch.float16
    assert told == [("encoding images", done, 47) for done in (8, 16, 24, 32, 40, 47)]
    assert len(parts(tmp_path)) == 4 and model.seen == 47
    assert torch.equal(encoded(model, tmp_path, test, train), torch.cat([found[40:], found[:40]]))
    assert model.seen == 47, "the second call encodes nothing"


def test_a_timm_model_and_its_encoder_have_the_same(tmp_path):
    model = create("resnet18_cifar_w16_s2", 0, Preprocess((4, 4), (0.5,) * 3, (1.0,) * 3).to_cfg())
    found = encoded(model, tmp_path / "1", pixels())
    assert torch.equal(found, encoded(Encoder(model), tmp_path / "2", pixels())) and found.shape == (40, 128)
    assert torch.equal(found, predict(model, pixels(), batch_size=8).half())


def prepared(place: Path, root: Path) -> list[Dataset]:
    ImageFiles.at(place).prepare(root, StoreOptions(store_size=8), update=True, processes=1)
    return [open_dataset(str(place), split, root=root, loader="memory") for split in ("train", "test")]


def test_of_a_folder_that_has_grown_the_new_images_alone_are_encoded(tmp_path):
    place = write_classes(tmp_path / "photos", {"a": 12, "b": 12})
    (place / "b" / "again.png").write_bytes((place / "a" / "003.png").read_bytes())
    model = Means()
    before = prepared(place, tmp_path / "data")
    found = encoded(model, tmp_path, *before)
    assert len(found) == 25 and model.seen == 24, "equal files are encoded once"
    paths = [path for data in before for path in data.files.paths()]
    same = [paths.index(name) for name in (b"a/003.png", b"b/again.png")]
    assert torch.equal(found[same[0]], found[same[1]])
    assert torch.equal(found, torch.cat([predict(Means(), data) for data in before]).half())
    write(place / "a" / "new.png", 100)
    after = prepared(place, tmp_path / "data")
    grown = encoded(model, tmp_path, *after)
    assert len(grown) == 26 and model.seen == 25
    now = [path for data in after for path in data.files.paths()]
    assert torch.equal(grown[[now.index(path) for path in paths]], found)


class Interrupted(Means):
    """Ctrl-C comes with the third batch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.seen >= 16:
            raise KeyboardInterrupt
        return super().forward(x)


def test_an_interrupted_pass_goes_on_behind_the_last_chunk(tmp_path, small_chunks):
    with pytest.raises(KeyboardInterrupt):
        encoded(Interrupted(), tmp_path, pixels())
    assert len(parts(tmp_path)) == 1
    model = Means()
    found = encoded(model, tmp_path, pixels())
    assert model.seen == 24 and torch.equal(found, predict(Means(), pixels()).half())


def test_two_passes_at_once_leave_one_another_alone(tmp_path, small_chunks):
    expected = predict(Means(), pixels()).half()

    def meanwhile(_: str, done: int, __: int) -> None:
        if done == 24:
            assert torch.equal(encoded(Means(), tmp_path, pixels()), expected)

    assert torch.equal(encoded(Means(), tmp_path, pixels(), progress=meanwhile), expected)
    model = Means()
    assert torch.equal(encoded(model, tmp_path, pixels()), expected) and model.seen == 0


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-1])


def another_width(part: Path) -> None:
    tensors = read_tensors(part)
    save_tensors(part, tensors | {"features": tensors["features"][:, :2]})


def nameless(part: Path) -> None:
    save_tensors(part, {"features": read_tensors(part)["features"]})


@pytest.mark.parametrize("damage", [cut, another_width, nameless])
def test_a_damaged_part_is_encoded_anew(damage, tmp_path, small_chunks, capsys):
    found = encoded(Means(), tmp_path, pixels())
    part = parts(tmp_path)[0]
    lost = len(read_tensors(part)["ids"])
    damage(part)
    model = Means()
    assert torch.equal(encoded(model, tmp_path, pixels()), found) and model.seen == lost
    assert f"warning: {part} is passed over, delete it" in capsys.readouterr().out
    assert torch.equal(encoded(model, tmp_path, pixels()), found) and model.seen == lost


def test_other_weights_preprocessing_or_precision_have_a_cache_of_their_own(tmp_path):
    data, model = pixels(), Means()

    class Larger(Means):
        pretrained_cfg: ClassVar = Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3).to_cfg()

    encoded(model, tmp_path, data)
    encoded(model, tmp_path, data, sha256="v")
    encoded(Larger(), tmp_path, data)
    cached_features(model, "w", [data], tmp_path, Compute(autocast=torch.bfloat16))
    assert model.seen == 3 * 40 and len(parts(tmp_path)) == 4
    assert len({part.parent.name for part in parts(tmp_path)}) == 4


def test_other_data_of_the_same_name_is_not_mistaken(tmp_path):
    assert not torch.equal(encoded(Means(), tmp_path, pixels()), encoded(Means(), tmp_path, pixels(seed=1)))
    with pytest.raises(ValueError, match="have no SHA-256"):
        encoded(Means(), tmp_path, replace(pixels(), sha256=""))


def test_what_is_beyond_half_precision_is_kept_in_single(tmp_path, small_chunks):
    data = pixels()
    data.images[20] = 255
    model = Means(70_000)
    expected = predict(Means(70_000), data)
    beyond = ~expected.half().isfinite().all(1)
    assert 1 <= beyond.sum() < 20
    for _ in range(2):
        found = encoded(model, tmp_path, data)
        assert found.dtype == torch.float32 and torch.equal(found[beyond], expected[beyond])
        assert torch.equal(found[~beyond], expected[~beyond].half().float())
    assert model.seen == 40


class Broken(Means):
    """Not finite for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (x.amax((1, 2, 3), keepdim=True) < 0.999).flatten(1)


def test_features_that_are_not_finite_are_told(tmp_path):
    data = pixels()
    data.images[:] //= 2
    data.images[[11, 30]] = 255
    with pytest.raises(
        ConfigError, match=r"2 of 40 images .* not finite, the first is number 11 of digits train"
    ):
        encoded(Broken(), tmp_path, data)
    place = write_classes(tmp_path / "photos", {"a": 12})
    Image.new("RGB", (12, 12), "white").save(place / "a" / "white.png")
    with pytest.raises(ConfigError, match=r"1 of \d+ images .* the first is a/white.png;"):
        encoded(Broken(), tmp_path, *prepared(place, tmp_path / "data"))


def _features(root: Path, world: int) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:  # the process serves other tests, too
        patch.setattr(module, "CHUNK", 16)
        patch.setattr(module, "quick_encoder", lambda model, _: model)
        model = Means(7e4)
        found, again = (encoded(model, root / str(world), pixels(41), pixels(1, "test")) for _ in range(2))
    assert torch.equal(found, again)
    return [found.tolist(), model.seen]


def test_any_number_of_ranks_shares_the_work(ranks, tmp_path):
    (alone,) = ranks(1).run(_features, tmp_path, 1)
    first, second = ranks(2).run(_features, tmp_path, 2)
    assert first[0] == second[0] == alone[0]
    assert first[1] + second[1] == alone[1] == 42
    assert len(parts(tmp_path / "2")) == len(parts(tmp_path / "1")) == 4


class Small(nn.Sequential):
    """Features (B, 5) of a convolution."""

    pretrained_cfg: ClassVar = Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3).to_cfg()

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_features(capsys):
    compute = Compute()
    model = compute.placed(Small())
    quick = quick_encoder(model, compute)
    assert isinstance(quick, OnnxEncoder)
    with torch.inference_mode():
        for count in (4, 7):
            images = torch.rand(count, 3, 8, 8).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(quick(images), model(images), rtol=1e-4, atol=1e-5)
        model[0].bias.fill_(1)  # what ONNX Runtime has is a copy
        assert not torch.allclose(quick(images), model(images), atol=1e-2)
        quick._trusted = None
        for _ in range(2):
            assert torch.equal(quick(images), model(images))
    assert "from PyTorch; PyTorch encodes instead" in capsys.readouterr().out
    assert quick_encoder(model, Compute(autocast=torch.bfloat16)) is model


def test_what_onnx_cannot_have_pytorch_encodes(monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise Fault("the encoder cannot be written as ONNX: its loop has no end")

    monkeypatch.setattr("rmd_dist.evaluation.onnx_runtime.exported", refuse)
    model = Small()
    assert quick_encoder(model, Compute()) is model
    assert "note: the encoder cannot be written as ONNX: its loop" in capsys.readouterr().out
