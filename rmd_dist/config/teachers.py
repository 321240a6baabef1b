"""What a configuration says of its teacher."""

from __future__ import annotations

from typing import TypeGuard

from rmd_dist.config.schema import DistillConfig

TIMM = "timm:"
"""What a `teacher` begins with that is a timm model."""


def needs_teacher(config: DistillConfig) -> bool:
    """Whether a distillation uses a teacher."""
    return config.K > 0 or config.student_init == "teacher" or config.targets.kind == "relations"


def is_path(teacher: str | None) -> TypeGuard[str]:
    """Whether a `teacher` is the path of a run folder or a file."""
    return teacher not in (None, "random") and not str(teacher).startswith(TIMM)
