"""A ResNet that is compiled in seconds: every kind of layer that resnet18_cifar has, but few of them."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock

from rmd_dist.models import CifarResNet
from rmd_dist.models.resnet import _cfg

NAME = "resnet_of_four_blocks"
default_cfgs = generate_default_cfgs({NAME: _cfg()})  # where timm looks for it


@register_model
def resnet_of_four_blocks(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """8 features."""
    shape = {"block": BasicBlock, "layers": (1,) * 4, "channels": (8,) * 4, "stem_stride": 2}
    return build_model_with_cfg(CifarResNet, NAME, pretrained, **shape, **kwargs)
