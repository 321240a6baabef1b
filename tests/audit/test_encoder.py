"""Which encoder an audit takes: never one that saw the labels, never a random one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from rmd_dist.audit.encoder import open_encoder
from rmd_dist.config import AuditConfig
from rmd_dist.config.cli import parse
from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.preprocess import Preprocess
from rmd_dist.errors import ConfigError
from rmd_dist.files import sha256
from rmd_dist.models.export import WEIGHTS, create, export
from rmd_dist.models.weights import save_tensors
from rmd_dist.tasks.teacher import FrozenEncoder

INFO = dataset_info("digits")
SMALL = "resnet18_cifar_w16_s2"


def opened(tmp_path: Path, *words: str) -> FrozenEncoder:
    fixed = ["--dataset", "digits", "--runs", str(tmp_path / "runs")]
    return open_encoder(parse(AuditConfig, [*fixed, *words]), INFO)


def finished(
    folder: Path, name: str = SMALL, dataset: str = "digits", stage: str = "pretrain", day: int = 1
) -> Path:
    """A run folder as a finished run leaves it."""
    folder.mkdir(parents=True)
    model = create(name, 0, Preprocess.for_dataset(INFO).to_cfg())
    about = {"dataset": dataset, "stage": stage, "input": Preprocess.of(model).to_cfg()}
    export(folder, model, name, 0, about)
    manifest = {
        "status": "finished",
        "complete": True,
        "model": name,
        "finished": f"2030-01-{day:02d}T00:00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | about))
    return folder


def weights(tmp_path: Path, name: str = "mobilenetv3_small_050") -> Path:
    torch.manual_seed(1)
    file = tmp_path / f"{name}.safetensors"
    save_tensors(file, timm.create_model(name, num_classes=7).state_dict())
    return file


def test_the_newest_pretraining_of_the_data_set_whatever_its_model(tmp_path):
    runs = tmp_path / "runs" / "pretrain"
    finished(runs / "old", day=1)
    newest = finished(runs / "new", "resnet18_cifar_w16", day=2)
    finished(runs / "other", dataset="cifar10", day=3)
    found = opened(tmp_path)
    assert found.name == str(newest / WEIGHTS) and found.sha256 == sha256(newest / WEIGHTS)
    assert not found.module.training and not any(p.requires_grad for p in found.module.parameters())
    assert Preprocess.of(found.module) == Preprocess.for_dataset(INFO)
    assert found.module(torch.zeros(2, 3, 32, 32)).shape == (2, found.module.width)


def test_without_one_the_two_ways_are_named(tmp_path):
    finished(tmp_path / "runs" / "pretrain" / "other", dataset="cifar10")
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path)
    said = str(caught.value)
    assert "no encoder was found for digits" in said
    assert "rmd pretrain --dataset digits" in said and "--model NAME --weights FILE" in said
    with pytest.raises(ConfigError, match="teacher = random: features of an untrained encoder"):
        opened(tmp_path, "--teacher", "random")


def test_a_file_or_folder_that_is_named(tmp_path):
    folder = finished(tmp_path / "mine")
    for place in (folder, folder / WEIGHTS):
        assert opened(tmp_path, "--teacher", str(place)).sha256 == sha256(folder / WEIGHTS)
    for name, more, told in (
        ("student", {"stage": "distill"}, "is a student, trained on labels; give a pretraining run"),
        ("other", {"dataset": "cifar10"}, "was trained on cifar10, this run uses digits"),
    ):
        with pytest.raises(ConfigError, match=told):
            opened(tmp_path, "--teacher", str(finished(tmp_path / name, **more)))
    with pytest.raises(ConfigError, match="nowhere does not exist; give a run folder"):
        opened(tmp_path, "--teacher", str(tmp_path / "nowhere"))


def test_weights_alone_are_taken_for_those_of_the_usual_model(tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_tensors(file, create("resnet18_cifar", 0).state_dict())
    found = opened(tmp_path, "--teacher", str(file))
    assert Preprocess.of(found.module) == Preprocess.for_dataset(INFO)
    with pytest.raises(ConfigError, match="holds another model"):
        opened(tmp_path, "--teacher", str(weights(tmp_path)))


def test_a_timm_model_with_weights_at_any_size(tmp_path):
    file = weights(tmp_path)
    by_model = opened(tmp_path, "--model", "mobilenetv3_small_050", "--weights", str(file))
    assert (by_model.name, by_model.sha256) == ("timm:mobilenetv3_small_050", sha256(file))
    assert Preprocess.of(by_model.module).size == (224, 224)
    teacher = ("--teacher", "timm:mobilenetv3_small_050", "--weights", str(file))
    smaller = opened(tmp_path, *teacher, "--image_size", "64")
    assert Preprocess.of(smaller.module).size == (64, 64)
    assert Preprocess.of(smaller.module).mean == Preprocess.of(by_model.module).mean
    assert smaller.module(torch.zeros(2, 3, 64, 64)).shape == (2, 1024)
    file.write_bytes(file.read_bytes()[:-9])
    for told in ("is not an intact safetensors file", "does not exist"):
        with pytest.raises(ConfigError, match=told):
            opened(tmp_path, *teacher)
        file.unlink(missing_ok=True)


def test_a_model_that_is_built_for_one_size_has_no_other(tmp_path):
    name = "vit_tiny_patch16_224"
    words = ("--model", name, "--weights", str(weights(tmp_path, name)))
    with pytest.raises(
        ConfigError,
        match=r"timm:vit_.* is built for images of 224 x 224 .* not of 128; leave the size out",
    ):
        opened(tmp_path, *words, "--image_size", "128")
    assert Preprocess.of(opened(tmp_path, *words, "--image_size", "224").module).size == (224, 224)


def test_names_that_timm_does_not_know_have_a_remedy(tmp_path):
    """As the EfficientNets of another well-known package have."""
    file = tmp_path / "x.pth"
    torch.save(
        {"_conv_stem.weight": torch.ones(32, 3, 3, 3), "_blocks.0._expand_conv.weight": torch.ones(4)}, file
    )
    with pytest.raises(
        ConfigError, match=r"unknown \(such as _blocks.*other names than timm's, save them by"
    ):
        opened(tmp_path, "--model", "tf_efficientnet_lite0", "--weights", str(file))
