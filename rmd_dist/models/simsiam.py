"""SimSiam (Chen & He 2021): an encoder, a projector and a predictor over two or more views."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class SimSiamOutput(NamedTuple):
    """Predictions p = q(z) and projections z = h(f(x)) of each view, each (B, dim)."""

    p: tuple[Tensor, ...]
    z: tuple[Tensor, ...]


def feature_width(encoder: nn.Module) -> int:
    """D of the pooled features (B, D) that a timm model gives, below its classifier if it has one."""
    width = getattr(encoder, "head_hidden_size", None)  # where timm's head has a layer before the classifier
    return int(width if width else encoder.num_features)  # type: ignore[arg-type]


def hidden_layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A layer inside a projector or predictor: linear, batch norm, ReLU."""
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)


class SimSiam(nn.Module):
    """SimSiam in its CIFAR form: a projector of 2 layers, a predictor of 2 with a bottleneck.

    Batch norm after both projector layers, the last without affine parameters.

    Args:
        encoder: images (B, 3, H, W) -> pooled features (B, D); a timm model with num_classes=0.
        dim: width of the projector, and of z and p.
        hidden_dim: width of the predictor's hidden layer.
    """

    def __init__(self, encoder: nn.Module, dim: int = 2048, hidden_dim: int = 512) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Sequential(
            *hidden_layer(feature_width(encoder), dim),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            *hidden_layer(dim, hidden_dim),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, *views: Tensor) -> SimSiamOutput:
        """Views (B, 3, H, W) of the same images. z carries gradient: the loss stops it."""
        # One view at a time: batch norm's statistics are those of one view, as in the original.
        z = tuple(self.projector(self.encoder(view)) for view in views)
        return SimSiamOutput(tuple(self.predictor(each) for each in z), z)
