"""SimSiam's heads and forward pass."""

from __future__ import annotations

import timm
import torch
from torch import nn

from rmd_dist.losses import simsiam_loss
from rmd_dist.models import SimSiam, feature_width


def _model(dim: int = 24, hidden_dim: int = 6) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(timm.create_model("resnet18_cifar_w16", num_classes=0), dim, hidden_dim)


def test_heads_are_of_the_cifar_form():
    model = _model()
    linears = [
        (m.in_features, m.out_features, m.bias is not None)
        for m in model.projector
        if isinstance(m, nn.Linear)
    ]
    assert linears == [(128, 24, False), (24, 24, False)]
    norms = [m for m in model.projector if isinstance(m, nn.BatchNorm1d)]
    assert [n.affine for n in norms] == [True, False]
    assert isinstance(model.projector[-1], nn.BatchNorm1d)
    linears = [
        (m.in_features, m.out_features, m.bias is not None)
        for m in model.predictor
        if isinstance(m, nn.Linear)
    ]
    assert linears == [(24, 6, False), (6, 24, True)]
    default = SimSiam(timm.create_model("resnet18_cifar_w16", num_classes=0))
    assert default.projector[-1].num_features == 2048
    assert default.predictor[0].out_features == 512


def test_forward_is_q_of_h_of_f_of_each_view_apart():
    model = _model()
    x1, x2 = torch.randn(2, 4, 3, 32, 32)
    (p1, p2), (z1, z2) = model(x1, x2)
    torch.testing.assert_close(z2, model.projector(model.encoder(x2)))  # statistics of this view alone
    torch.testing.assert_close(p1, model.predictor(z1))
    torch.testing.assert_close(p2, model.predictor(z2))
    assert p1.shape == z1.shape == (4, 24)
    # batch norm without affine ends the projector: zero mean and unit variance in each dimension
    torch.testing.assert_close(z1.mean(0), torch.zeros(24), rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = _model()
    simsiam_loss(*model(*torch.randn(2, 4, 3, 32, 32))).mean().backward()
    # zero-initialised last norms of the blocks hold back the gradient of what stands before them, at first
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert not without
    assert all(p.grad.abs().sum() > 0 for p in (*model.projector.parameters(), *model.predictor.parameters()))


def test_width_of_models_whose_head_widens_the_features():
    assert feature_width(timm.create_model("resnet18_cifar", num_classes=0)) == 512
    mobile = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    assert mobile(torch.randn(1, 3, 64, 64)).shape == (1, feature_width(mobile))
