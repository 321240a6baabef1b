"""Which labels are wrong, and a page on which a person decides about them.

    from rmd_dist import audit

    found = audit.features(features, labels)     # arrays or tensors (n, D) and (n,)
    found = audit.images("PHOTOS", model="resnet50", weights="resnet50.pth")
    found.flagged, found.suggested, found.score, found.noise_matrix, found.wrong

What the page and its decisions are made of needs no torch; the rest is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmd_dist.audit.dataset import images
    from rmd_dist.audit.detect import Audit, Share, features

__all__ = ["Audit", "Share", "features", "images"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("Audit", "Share", "features"):
        return getattr(import_module("rmd_dist.audit.detect"), name)
    if name == "images":
        return import_module("rmd_dist.audit.dataset").images
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
