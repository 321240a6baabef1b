"""Models. Importing this registers `resnet18_cifar` and its small siblings with timm."""

from rmd_dist.models.resnet import (
    CifarResNet,
    resnet18_cifar,
    resnet18_cifar_w16,
    resnet18_cifar_w16_s2,
    resnet18_cifar_w32_s2,
)
from rmd_dist.models.simclr import SimCLR, SimCLROutput
from rmd_dist.models.simsiam import SimSiam, SimSiamOutput, feature_width

__all__ = [
    "CifarResNet",
    "SimCLR",
    "SimCLROutput",
    "SimSiam",
    "SimSiamOutput",
    "feature_width",
    "resnet18_cifar",
    "resnet18_cifar_w16",
    "resnet18_cifar_w16_s2",
    "resnet18_cifar_w32_s2",
]
