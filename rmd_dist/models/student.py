"""A timm classifier taken apart: its pooled features, and its logits of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rmd_dist.errors import ConfigError
from rmd_dist.models.simsiam import feature_width


class Encoder(nn.Module):
    """The pooled features (B, D) of a timm model, whether it has a classifier or not."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The model's: what images it wants."""
        cfg: dict[str, Any] = self.model.pretrained_cfg
        return cfg

    @property
    def width(self) -> int:
        """D of the features."""
        return feature_width(self.model)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return features


class Student(Encoder):
    """A timm classifier that also returns its pooled features: x -> (logits (B, C), features (B, D)).

    With a projector (`project_to`) it also returns the projected features (B, E). The projector is trained
    with the student and no part of the model, which alone is measured and exported.

    Raises ConfigError for a classifier that is not one linear layer of the pooled features: such as that of
    a distilled DeiT (two), or a convolution.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.projector: nn.Linear | None = None
        head = model.get_classifier()
        if not isinstance(head, nn.Linear):
            raise ConfigError(
                f"model.name = {model.pretrained_cfg.get('architecture')!r}: its classifier is a "
                f"{type(head).__name__}, not one Linear layer on the features; choose another model"
            )

    def project_to(self, width: int) -> None:
        """Have a projector to E = `width`, freshly initialised."""
        self.projector = nn.Linear(self.width, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        features = super().forward(x)
        logits = self.model.get_classifier()(features)
        if self.projector is None:
            return logits, features
        return logits, features, self.projector(features)
