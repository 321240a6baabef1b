"""ResNets for 32x32 images, registered with timm: 3x3 stem of stride 1 (in `_s2` 2), no max pooling.

All of timm's model interface works, such as `timm.create_model("resnet18_cifar", num_classes=100)`.
A finished student's `model.safetensors` loads by `checkpoint_path=`. That loads every key or none, so
where the classifier is not wanted (`num_classes=0`, `features_only=True`) name the file as pretrained
weights instead, with the number of classes it was trained for:

    timm.create_model("resnet18_cifar", pretrained=True, features_only=True,
                      pretrained_cfg_overlay={"file": "model.safetensors", "num_classes": 10})
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn


class CifarResNet(ResNet):
    """timm's ResNet with the stem that CIFAR takes (He et al. 2016, section 4.2).

    (B, in_chans, H, W) -> (B, num_classes), or pooled features (B, channels[-1]) with num_classes=0.

    Args:
        block, layers: kind of residual block, and how many in each of the four stages.
        channels: widths of the stages; the stem is as wide as the first.
        stem_stride: stride of the stem's convolution.
        others: timm's, but for those of its stem.
    """

    def __init__(
        self,
        block: Any,
        layers: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        stem_stride: int = 1,
        **kwargs: Any,
    ) -> None:
        # timm fixes a plain stem at 64 channels; a deep one is twice stem_width wide, and replaced below.
        stem: dict[str, Any] = {"stem_type": "deep", "stem_width": channels[0] // 2}
        super().__init__(block, layers, num_classes, in_chans, channels=channels, **stem, **kwargs)
        factory: dict[str, Any] = {name: kwargs.get(name) for name in ("device", "dtype")}
        conv = nn.Conv2d(in_chans, channels[0], 3, stem_stride, padding=1, bias=False, **factory)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", conv)
        self.add_module("maxpool", nn.Identity())
        # timm counts in a stride of 2 of its stem and of its pooling.
        stem_out, *stages = cast(list[dict[str, Any]], self.feature_info)
        stem_out["reduction"] = stem_stride
        for stage in stages:
            stage["reduction"] = stage["reduction"] // 4 * stem_stride


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar": _cfg(),
        "resnet18_cifar_w16": _cfg(),
        "resnet18_cifar_w16_s2": _cfg(pool_size=(2, 2)),
        "resnet18_cifar_w32_s2": _cfg(pool_size=(2, 2)),
    }
)


def _resnet18(variant: str, pretrained: bool, width: int, stem_stride: int, **kwargs: Any) -> CifarResNet:
    channels = (width, 2 * width, 4 * width, 8 * width)
    shape = {"layers": (2, 2, 2, 2), "channels": channels, "stem_stride": stem_stride}
    settings = {"block": BasicBlock, **shape, **kwargs}
    model: CifarResNet = build_model_with_cfg(CifarResNet, variant, pretrained, **settings)
    return model


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 for 32x32 images, 512 features (the paper's encoder); 11.2 M parameters."""
    return _resnet18("resnet18_cifar", pretrained, 64, 1, **kwargs)


@register_model
def resnet18_cifar_w16(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """A quarter as wide, 128 features, for machines without a GPU; 0.7 M parameters."""
    return _resnet18("resnet18_cifar_w16", pretrained, 16, 1, **kwargs)


@register_model
def resnet18_cifar_w16_s2(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """`resnet18_cifar_w16` at half the resolution and a quarter of the work: its stem has stride 2."""
    return _resnet18("resnet18_cifar_w16_s2", pretrained, 16, 2, **kwargs)


@register_model
def resnet18_cifar_w32_s2(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Half as wide, 256 features, stem of stride 2: the work of `resnet18_cifar_w16`, 2.8 M parameters."""
    return _resnet18("resnet18_cifar_w32_s2", pretrained, 32, 2, **kwargs)
