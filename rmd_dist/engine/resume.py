"""Where a run goes on: its newest intact checkpoint, or one that the user names to go back to."""

from __future__ import annotations

import os
from pathlib import Path

from rmd_dist.engine.checkpoint import Checkpoint, forget_after, newest, open_checkpoint
from rmd_dist.errors import ConfigError, writing
from rmd_dist.runs.folder import RunFolder

ROLLED_BACK, SELECTED_STEP = "rolled_back", "selected_step"
"""Keys of a run's manifest: the checkpoint it went back to; the step that selected.safetensors is of."""


def restarted() -> bool:
    """Whether a launcher (`--max_restarts`) has started this job anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def choose_checkpoint(folder: RunFolder, resume: str) -> Checkpoint | None:
    """The checkpoint to continue from (rank 0): by `resume` (auto, never, or a PATH); None: a new run.

    A PATH is gone back to once: the same command, given again, continues from what was saved since.
    Raises ConfigError if there should be an intact one, and is none.
    """
    path = None if resume in ("auto", "never") else Path(resume)
    if path is not None:
        if path.parent.resolve() != folder.checkpoints.resolve():
            raise ConfigError(f"resume = {resume}: give auto, never, or a checkpoint of {folder.checkpoints}")
        if folder.manifest().get(ROLLED_BACK) != path.name:
            return open_checkpoint(path)
        print(f"{folder.path} went back to {path.name} before; continuing from its newest checkpoint")
    found = newest(folder.checkpoints, warn=lambda text: print(f"warning: {text}", flush=True))
    if found is None and (any(folder.checkpoints.glob("step-*.json")) or folder.finished):
        raise ConfigError(
            f"{folder.path} has no intact checkpoint left; restore one, give another --name, "
            "or delete the folder to start anew"
        )
    return found


def roll_back(folder: RunFolder, resume: str, step: int) -> None:
    """Going back to PATH: forget what came after `step` (rank 0). Nothing to do for auto and never."""
    name = Path(resume).name
    if resume in ("auto", "never") or folder.manifest().get(ROLLED_BACK) == name:
        return
    with writing(folder.path):
        forget_after(folder.checkpoints, step)
        if folder.manifest().get(SELECTED_STEP, 0) > step:
            (folder.path / "selected.safetensors").unlink(missing_ok=True)
    folder.update(**{ROLLED_BACK: name, SELECTED_STEP: 0})
