"""The registered ResNets, by timm's interface."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import rmd_dist.models  # noqa: F401 - registers them

WIDTHS = {
    "resnet18_cifar": (64, 128, 256, 512),
    "resnet18_cifar_w16": (16, 32, 64, 128),
    "resnet18_cifar_w16_s2": (16, 32, 64, 128),
    "resnet18_cifar_w32_s2": (32, 64, 128, 256),
}
NAMES = list(WIDTHS)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _model(name: str, **kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_sizes(name):
    model = _model(name)
    assert model(IMAGES).shape == (2, 10)
    assert _model(name, num_classes=7)(IMAGES).shape == (2, 7)
    assert _model(name, num_classes=0)(IMAGES).shape == (2, WIDTHS[name][-1])
    assert model.num_features == WIDTHS[name][-1]
    # He et al.'s ResNet-18 has 11,689,512 parameters; its stem of 7x7 and its head of 1000 classes differ.
    if name == "resnet18_cifar":
        expected = 11_689_512 - 64 * 3 * (49 - 9) - 513 * (1000 - 10)
        assert sum(p.numel() for p in model.parameters()) == expected


def _stride(name: str) -> int:
    return 2 if name.endswith("_s2") else 1


@pytest.mark.parametrize("name", NAMES)
def test_stem_keeps_the_resolution_or_halves_it(name):
    model, stride = _model(name), _stride(name)
    conv = model.conv1
    assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (stride, stride), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    # He initialisation by fan-out, as timm gives the other layers
    assert model.conv1.weight.std().item() == pytest.approx((2 / (9 * WIDTHS[name][0])) ** 0.5, rel=0.15)
    assert model.forward_features(IMAGES).shape == (2, WIDTHS[name][-1], 4 // stride, 4 // stride)
    assert model.default_cfg["pool_size"] == (4 // stride, 4 // stride)
    assert _model(name, in_chans=1)(IMAGES[:, :1]).shape == (2, 10)


@pytest.mark.parametrize("name", NAMES)
def test_features_head_and_classifier(name):
    model = _model(name)
    features = model.forward_features(IMAGES)
    torch.testing.assert_close(model.forward_head(features), model(IMAGES))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(3)
    assert model(IMAGES).shape == (2, 3)
    model.reset_classifier(0)
    torch.testing.assert_close(model(IMAGES), pooled)


@pytest.mark.parametrize("name", NAMES)
def test_features_only(name):
    model = _model(name, features_only=True)
    assert model.feature_info.reduction() == [_stride(name) * r for r in (1, 1, 2, 4, 8)]
    assert model.feature_info.channels() == [WIDTHS[name][0], *WIDTHS[name]]
    for feature, channels, reduction in zip(
        model(IMAGES), model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (2, channels, 32 // reduction, 32 // reduction)


def test_listed_by_timm_with_a_cifar_configuration():
    assert set(NAMES) <= set(timm.list_models("resnet18_cifar*"))
    config = timm.data.resolve_data_config(model=_model(NAMES[1]))
    assert config["input_size"] == (3, 32, 32)
    assert config["mean"] == (0.4914, 0.4822, 0.4465)
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model(NAMES[1], pretrained=True)


def test_a_safetensors_file_loads_by_checkpoint_path_and_its_backbone_by_overlay(tmp_path):
    path = str(tmp_path / "model.safetensors")
    student = _model(NAMES[1], num_classes=4)
    save_file(student.state_dict(), path)
    torch.manual_seed(1)
    loaded = timm.create_model(NAMES[1], num_classes=4, checkpoint_path=path).eval()
    assert torch.equal(loaded(IMAGES), student(IMAGES))
    overlay = {"file": path, "num_classes": 4}
    pooled = student.forward_head(student.forward_features(IMAGES), pre_logits=True)
    for kwargs in ({"num_classes": 0}, {"num_classes": 9}, {"features_only": True}):
        model = timm.create_model(NAMES[1], pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
        if "features_only" in kwargs:
            torch.testing.assert_close(model(IMAGES)[-1].mean((2, 3)), pooled)
        else:
            torch.testing.assert_close(
                model.forward_head(model.forward_features(IMAGES), pre_logits=True), pooled
            )
