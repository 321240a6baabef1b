"""SimCLR's projector and forward pass."""

from __future__ import annotations

import timm
import torch
from torch import nn

from rmd_dist.models import SimCLR


def test_the_projector_has_two_layers():
    model = SimCLR(timm.create_model("resnet18_cifar_w16", num_classes=0))
    kinds = [type(module) for module in model.projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [tuple(m.weight.shape) for m in model.projector if isinstance(m, nn.Linear)] == [
        (2048, 128),
        (128, 2048),
    ]


def test_forward_is_h_of_f_of_each_view_apart():
    torch.manual_seed(0)
    model = SimCLR(timm.create_model("resnet18_cifar_w16", num_classes=0), 12, 24)
    views = torch.randn(3, 4, 3, 32, 32)
    output = model(*views)
    assert [z.shape for z in output.z] == [(4, 12)] * 3
    for view, z in zip(views, output.z, strict=True):
        torch.testing.assert_close(z, model.projector(model.encoder(view)))
