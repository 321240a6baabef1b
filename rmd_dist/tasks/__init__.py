"""Tasks: what one batch means, and what is measured."""

from rmd_dist.tasks.base import Evaluation, StepOutput, Task
from rmd_dist.tasks.distill import DistillTask
from rmd_dist.tasks.parts import Parts, build_parts
from rmd_dist.tasks.pretrain import PretrainTask

__all__ = ["DistillTask", "Evaluation", "Parts", "PretrainTask", "StepOutput", "Task", "build_parts"]
