"""Tasks: what one batch means. A task brings model, data and loss; the trainer brings the loop."""

from rmd_dist.tasks.base import Evaluation, Pictures, Place, StepOutput, Task
from rmd_dist.tasks.distill import DistillTask
from rmd_dist.tasks.pretrain import PretrainTask

__all__ = ["DistillTask", "Evaluation", "Pictures", "Place", "PretrainTask", "StepOutput", "Task"]
