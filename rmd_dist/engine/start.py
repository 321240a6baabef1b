"""From a configuration to a finished run: data, teacher, task, trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from rmd_dist import parallel
from rmd_dist.config import TIMM, AnyConfig, DistillConfig, is_path, needs_teacher
from rmd_dist.config.datasets import dataset_name
from rmd_dist.data.dataset import dataset_info
from rmd_dist.data.prepare import prepare
from rmd_dist.engine.checkpoint import newest
from rmd_dist.engine.preemption import Preemption, while_ranks_meet
from rmd_dist.engine.resume import restarted
from rmd_dist.engine.trainer import Trainer
from rmd_dist.errors import ConfigError, Fault, Stopped
from rmd_dist.parallel.accelerator import compute_of, make_accelerator, numerics_of
from rmd_dist.parallel.processes import as_fault, from_main, stop_with_launcher
from rmd_dist.runs.console import preparation_progress
from rmd_dist.runs.folder import RECORDED, RunFolder, newest_finished
from rmd_dist.tasks import build_parts
from rmd_dist.tasks.parts import Parts
from rmd_dist.tasks.teacher import TeacherSource, named_source


def train(config: AnyConfig) -> dict[str, Any]:
    """Run one stage from its beginning, or from the newest checkpoint, to its end; returns the results.

    Collective. Raises ConfigError for everything that the user can mend before the run begins, Fault for
    what fails under it, Stopped (a BaseException) when a signal asked for it.
    """
    stop_with_launcher()
    if config.run.resume == "never" and restarted():
        config.run.resume = "auto"  # what is there is this job's own
    folder = RunFolder(config)
    try:
        with while_ranks_meet(), _told(folder):
            run = config.run
            accelerator = make_accelerator(run.precision, run.cpu, run.threads, run.deterministic)
        with Preemption() as preemption, _told(folder):  # a launcher's SIGTERM must not cut the telling off
            return _train(config, accelerator, folder, preemption)
    finally:
        folder.close()


@contextlib.contextmanager
def opened_trainer(config: AnyConfig) -> Iterator[Trainer]:
    """The trainer of a run, before its first step, to be used by hand; closed afterwards. Collective."""
    folder, run = RunFolder(config), config.run
    accelerator = make_accelerator(run.precision, run.cpu, run.threads, run.deterministic)
    from_main(folder.open)
    try:
        with contextlib.closing(_build_trainer(config, accelerator, folder, Preemption())) as trainer:
            yield trainer
    finally:
        folder.close()


@contextlib.contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    """What fails inside becomes a Fault that names the newest intact checkpoint, and is recorded."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if (fault := as_fault(error)) is None:
            _record(folder, f"{type(error).__name__}: {error}")
            error.add_note(_newest_intact(folder))
            raise
        _record(folder, str(fault))
        raise Fault(f"{fault}; {_newest_intact(folder)}") from error


def _train(config: AnyConfig, accelerator: Any, folder: RunFolder, preemption: Preemption) -> dict[str, Any]:
    trainer = None
    try:
        from_main(folder.open)
        trainer = _build_trainer(config, accelerator, folder, preemption)
        trainer.begin()
    except (ConfigError, Stopped):
        if trainer is not None:
            trainer.close()
        if parallel.is_main():
            folder.discard_if_empty()
        raise
    try:
        results = trainer.fit()
        trainer.close()
    except Stopped:
        trainer.close()
        parallel.shutdown()  # all ranks are here
        raise
    except ConfigError as error:  # no mistake of the user's: it was right when the run began
        trainer.close()
        raise Fault(str(error)) from error
    except BaseException:
        with contextlib.suppress(Fault):  # the first error is the one to tell
            trainer.close()
        raise
    parallel.shutdown()
    return results


def _record(folder: RunFolder, why: str) -> None:
    """Say in the manifest why the run failed, where that can still be written."""
    if parallel.is_main() and folder.begun:
        with contextlib.suppress(Fault):
            folder.update(status="failed", why=why)


def _newest_intact(folder: RunFolder) -> str:
    found = newest(folder.checkpoints, warn=lambda _: None)
    return f"newest intact checkpoint: {found.path}" if found else "no checkpoint had been saved"


def _build_trainer(config: AnyConfig, accelerator: Any, folder: RunFolder, preemption: Preemption) -> Trainer:
    """The trainer of a run whose folder is open, at its newest checkpoint if it has one. Collective."""
    data = config.data
    prepare_data(data.dataset, data.root, data.source, data.loader)
    set_seed(config.run.seed)  # weights are drawn the same on every rank
    teacher = None
    if isinstance(config, DistillConfig):
        teacher = from_main(lambda: _choose_teacher(config, folder))
    parts = build_parts(config, compute_of(config, accelerator), teacher)
    _try_out(config, parts)
    # What a run began with is part of it: the samples, their labels, the teacher, how torch computes.
    about = parts.about | numerics_of(config, accelerator)
    now = {key: about[key] for key in RECORDED if key in about}
    from_main(lambda: folder.refuse_other(**now))
    return Trainer(config, accelerator, folder, parts, preemption)


def _try_out(config: AnyConfig, parts: Parts) -> None:
    """ConfigError where the model cannot be trained on such images, which many find out in a forward pass."""
    size = config.data.image_size or dataset_info(config.data.dataset, config.data.root).image_size
    try:
        parts.task.try_out(size)
    except ConfigError:  # it says more
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        wanted = " x ".join(str(side) for side in parts.task.preprocess.size)
        raise ConfigError(
            f"model.name = {config.model.name!r} cannot be trained on images of {size} pixels, of which it "
            f"gets {wanted}: {reason}; choose another --model"
        ) from error


def _choose_teacher(config: DistillConfig, folder: RunFolder) -> TeacherSource:
    """What the user named, else what this run began with, else the newest finished pretraining that fits."""
    weights = config.teacher_weights
    if is_path(config.teacher):
        named_source(config.teacher, None)
    if weights and not str(config.teacher).startswith(TIMM):
        raise ConfigError(
            f"teacher_weights = {weights} needs --teacher {TIMM}NAME, which says whose weights they are"
        )
    if not needs_teacher(config):
        return None
    if config.teacher == "random" and config.teacher_image_size:
        raise ConfigError(
            f"teacher_image_size = {config.teacher_image_size} is of a teacher that others have "
            "trained; leave it out with --teacher random"
        )
    if teacher := config.teacher or folder.teacher():
        return "random" if teacher == "random" else named_source(str(teacher), weights)
    dataset = dataset_name(config.data.dataset)
    found = newest_finished(Path(config.run.root), dataset, config.model.name)
    if found is None:
        why, instead = "student_init = teacher", ""
        if config.targets.kind == "relations":
            why, instead = "targets = relations", " or --targets given"
        elif config.K:
            why, instead = f"K = {config.K:g}", ", --teacher random or --K 0"
        raise ConfigError(
            f"{why} needs a teacher, and {config.run.root}/pretrain has no finished run of "
            f"{dataset} with {config.model.name}; run rmd pretrain first, or give "
            f"--teacher PATH, --teacher {TIMM}NAME{instead}"
        )
    return found


def prepare_data(dataset: str | None, root: str, source: str | None, loader: str) -> None:
    """Write missing betons with a progress bar: one process of this machine builds, the others wait."""
    if loader == "ffcv" and dataset is not None:
        with preparation_progress(enabled=parallel.is_main()) as progress:
            prepare(dataset, Path(root), Path(source) if source else None, progress=progress)
