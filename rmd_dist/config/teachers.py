"""What a configuration says of its teacher, and how many crops are taken of an image because of it."""

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


def starts_from_file(student_init: str | None) -> TypeGuard[str]:
    """Whether a `student_init` is the path of a run folder or a file."""
    return student_init not in (None, "random", "teacher")


def crops_of(config: DistillConfig) -> int:
    """Crops of each image: the first is trained on, the others are what the moving average sees."""
    averaged = config.targets.kind == "relations" and config.targets.average > 0
    return (config.augment.count or 2) if averaged else 1
