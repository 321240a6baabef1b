"""Finished models on disk: what is written, what timm makes of it, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from rmd_dist.errors import ConfigError
from rmd_dist.files import write_json
from rmd_dist.models import SimSiam
from rmd_dist.models.export import create, export, load
from rmd_dist.models.student import Student
from rmd_dist.models.weights import save_tensors

NAME = "resnet18_cifar_w16"
ABOUT = {"dataset": "digits", "stage": "distill", "classes": ["a", "b"]}


def model(num_classes: int = 10, seed: int = 0) -> nn.Module:
    """Random weights, and batch-norm statistics that are not the initial ones."""
    torch.manual_seed(seed)
    made = create(NAME, num_classes).to(memory_format=torch.channels_last)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return made.eval()


def exported(folder: Path, num_classes: int = 10) -> nn.Module:
    folder.mkdir(parents=True, exist_ok=True)
    made = model(num_classes)
    export(folder, made, NAME, num_classes, ABOUT)
    return made


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("num_classes", [10, 7, 0])
def test_an_exported_model_is_what_timm_opens(num_classes, tmp_path):
    made = exported(tmp_path, num_classes)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (NAME, num_classes, 128)
    assert config["pretrained_cfg"]["num_classes"] == num_classes and config["rmd_dist"] == ABOUT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same(opened.state_dict(), made.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(opened(images), made(images))


@pytest.mark.parametrize("num_classes", [10, 0])
@pytest.mark.parametrize("part", ["", "model.safetensors"], ids=["folder", "file"])
def test_a_run_folder_or_its_file_is_read_with_what_is_known_of_it(part, num_classes, tmp_path):
    made = exported(tmp_path, num_classes)
    loaded = load(tmp_path / part, "resnet18_cifar")  # the file knows better than the default
    assert (loaded.architecture, loaded.num_classes, loaded.dataset) == (NAME, num_classes, "digits")
    assert loaded.path == tmp_path / "model.safetensors"
    assert_same(loaded.module.state_dict(), made.state_dict())


def test_the_fingerprint_is_of_the_weights(tmp_path):
    exported(tmp_path / "a")
    exported(tmp_path / "b")
    first = load(tmp_path / "a", NAME).sha256
    assert load(tmp_path / "b", NAME).sha256 == first
    export(tmp_path / "b", model(seed=1), NAME, 10, ABOUT)
    assert load(tmp_path / "b", NAME).sha256 != first


def wrapped(stage: str) -> tuple[nn.Module, nn.Module]:
    """(what a stage trains, what of it is wanted)."""
    inner = model(0 if stage == "pretrain" else 10)
    return (SimSiam(inner, 32, 8) if stage == "pretrain" else Student(inner)), inner


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_training_checkpoint_gives_the_encoder_or_the_student(stage, finished, tmp_path):
    module, inner = wrapped(stage)
    if finished:
        exported(tmp_path)  # its config.json names model and data set
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-000000003.safetensors"
    tensors = {f"model/{name}": value for name, value in module.state_dict().items()}
    save_tensors(path, tensors | {"optimizer/0/momentum_buffer": torch.ones(3)})
    loaded = load(path, "resnet18_cifar" if finished else NAME)
    assert loaded.num_classes == (0 if stage == "pretrain" else 10)
    assert loaded.dataset == ("digits" if finished else None)
    assert_same(loaded.module.state_dict(), inner.state_dict())


def test_other_weights_beside_an_exported_model_are_of_its_kind(tmp_path):
    """As the trainer leaves the selected weights in the run folder."""
    exported(tmp_path)
    other = model(seed=1)
    save_tensors(tmp_path / "selected.safetensors", other.state_dict())
    loaded = load(tmp_path / "selected.safetensors", "resnet18_cifar")
    assert (loaded.architecture, loaded.dataset, loaded.stage) == (NAME, "digits", "distill")
    assert_same(loaded.module.state_dict(), other.state_dict())


def test_an_unfinished_runs_manifest_tells_what_its_checkpoints_hold(tmp_path):
    module, inner = wrapped("distill")
    write_json(tmp_path / "manifest.json", {"model": NAME, "dataset": "digits", "stage": "distill"})
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step-000000003.safetensors"
    save_tensors(path, {f"model/{name}": value for name, value in module.state_dict().items()})
    loaded = load(path, "resnet18_cifar")
    assert (loaded.architecture, loaded.dataset, loaded.stage) == (NAME, "digits", "distill")
    assert_same(loaded.module.state_dict(), inner.state_dict())


PREFIXES = ("", "module.", "backbone.", "_orig_mod.", "encoder.", "model.", "module.encoder_q.")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "teacher"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_model_from_elsewhere_is_taken_out_of_what_is_around_it(prefix, wrapper, tmp_path):
    made = model().state_dict()
    state = {prefix + name: value for name, value in made.items()}
    if prefix:
        state["predictor.0.weight"] = torch.ones(3, 3)
    rest = {"epoch": 7, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{}]}}
    torch.save(state if wrapper is None else {wrapper: state} | rest, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth", NAME)
    assert (loaded.num_classes, loaded.dataset, loaded.path) == (10, None, tmp_path / "x.pth")
    assert_same(loaded.module.state_dict(), made)


@pytest.mark.parametrize("prefix", PREFIXES[1:])
def test_so_is_one_in_safetensors(prefix, tmp_path):
    made = model(0).state_dict()
    save_tensors(tmp_path / "x.safetensors", {prefix + name: value for name, value in made.items()})
    assert_same(load(tmp_path / "x.safetensors", NAME).module.state_dict(), made)


def test_a_projection_head_in_the_classifiers_place_is_left_out(tmp_path):
    made = model(0).state_dict()
    heads = {"fc.0.weight": torch.ones(4, 128), "fc.0.bias": torch.ones(4), "fc.2.weight": torch.ones(4, 4)}
    state = {f"module.encoder.{name}": value for name, value in (made | heads).items()}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    loaded = load(tmp_path / "x.pth", NAME)
    assert loaded.num_classes == 0
    assert_same(loaded.module.state_dict(), made)


def test_old_weights_have_no_count_of_batches(tmp_path):
    made = model().state_dict()
    torch.save({k: v for k, v in made.items() if "num_batches" not in k}, tmp_path / "x.pth")
    assert_same(load(tmp_path / "x.pth", NAME).module.state_dict(), made)


def test_no_prefix_is_taken_off_if_that_gives_no_model(tmp_path):
    """And none is guessed where there are two."""
    made = model().state_dict()
    lacking = {f"module.{k}": v for k, v in made.items() if k != "layer3.0.conv1.weight"}
    torch.save(lacking, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"holds another model: tensors .*\(such as bn1.bias\)"):
        load(tmp_path / "x.pth", NAME)
    torch.save({"teacher": made, "student": made}, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"several models \(student\., teacher\.\); save that of the one"):
        load(tmp_path / "x.pth", NAME)


def test_no_advice_is_against_files_that_are_not_ours(tmp_path):
    """Nor is a JSON file in the folder above one of weights any of our business."""
    torch.save(model().state_dict(), tmp_path / "x.pth")
    (tmp_path / "x.json").write_text("[]")
    assert load(tmp_path / "x.pth", NAME).num_classes == 10
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="copy the weights alone to a folder of their own") as caught:
        load(tmp_path / "x.pth", NAME)
    assert "remove" not in str(caught.value)
    (tmp_path / "sub").mkdir()
    (tmp_path / "x.pth").rename(tmp_path / "sub" / "x.pth")
    assert load(tmp_path / "sub" / "x.pth", NAME).num_classes == 10


def test_an_unknown_model_is_told_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"'resnet18_cifr' is not a timm model; try .*resnet18_cifar_w16"):
        create("resnet18_cifr", 10)


def test_what_cannot_be_read_is_told_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no model is there"):
        load(tmp_path, NAME)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="its run has not finished"):
        load(tmp_path, NAME)
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "nowhere.safetensors", NAME)
    exported(tmp_path)
    for text in ("{", "[]", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json is damaged"):
            load(tmp_path, NAME)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds another model") as caught:
        load(tmp_path, "resnet18_cifar")
    assert "\n" not in str(caught.value)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not an intact safetensors file"):
        load(tmp_path, NAME)
