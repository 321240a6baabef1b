"""Where and in what numbers a process computes what is not a training step of the trainer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """The device, the numbers and the threads of this process."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    dtype: torch.dtype = torch.float32
    """Of weights and images, outside autocast."""

    autocast: torch.dtype | None = None
    """What mixed precision casts to; None: nothing is cast."""

    channels_last: bool = True
    """Memory format of images and weights."""

    workers: int = 1
    """Threads that prepare images."""

    def autocasting(self) -> torch.autocast:
        """Mixed precision as in training, for what is computed elsewhere."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def placed(self, module: _Module) -> _Module:
        """`module` on the device, in the dtype and the memory format."""
        module.to(self.device, self.dtype)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        return module
