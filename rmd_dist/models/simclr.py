"""SimCLR (Chen et al. 2020): an encoder and a projector over two or more views."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rmd_dist.models.simsiam import feature_width, hidden_layer


class SimCLROutput(NamedTuple):
    """Projections z = h(f(x)) of each view, each (B, dim)."""

    z: tuple[Tensor, ...]


class SimCLR(nn.Module):
    """SimCLR: a projector of 2 layers, batch norm after the first.

    Args:
        encoder: images (B, 3, H, W) -> pooled features (B, D); a timm model with num_classes=0.
        dim: width of z.
        hidden_dim: width of the projector's hidden layer.
    """

    def __init__(self, encoder: nn.Module, dim: int = 128, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.encoder = encoder
        layer = hidden_layer(feature_width(encoder), hidden_dim)
        self.projector = nn.Sequential(*layer, nn.Linear(hidden_dim, dim))

    def forward(self, *views: Tensor) -> SimCLROutput:
        """Views (B, 3, H, W) of the same images, each with the batch norm statistics of its own."""
        return SimCLROutput(tuple(self.projector(self.encoder(view)) for view in views))
