"""The training loop of every task.

What a step changes is `State`; learning rate, data order and augmentation are functions of (seed, step). So
a run continues exactly wherever it stopped, on any number of ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rmd_dist import parallel
from rmd_dist.config import AnyConfig
from rmd_dist.config.convert import flatten
from rmd_dist.data.loader import Batch
from rmd_dist.engine.checkpoint import Checkpoint
from rmd_dist.engine.graphs import GraphedStep, fits_graph
from rmd_dist.engine.guard import Guard
from rmd_dist.engine.optim import build_average, build_optimizer, set_learning_rate
from rmd_dist.engine.preemption import Preemption
from rmd_dist.engine.resume import SELECTED_STEP, choose_checkpoint, roll_back
from rmd_dist.engine.saver import Saver
from rmd_dist.engine.schedule import learning_rate
from rmd_dist.engine.state import State
from rmd_dist.engine.step import Step
from rmd_dist.errors import ConfigError, Stopped, writing
from rmd_dist.files import write_npy
from rmd_dist.models.export import export
from rmd_dist.models.weights import save_tensors
from rmd_dist.parallel.accelerator import compute_of, numerics_of
from rmd_dist.parallel.batch_norm import convert_batch_norm
from rmd_dist.parallel.numerics import compiled
from rmd_dist.parallel.processes import from_main
from rmd_dist.runs.folder import RunFolder
from rmd_dist.runs.history import History
from rmd_dist.runs.monitor import Monitor
from rmd_dist.tasks import Evaluation, Parts, StepOutput

ALWAYS_LOGGED_STEPS = 5  # K is chosen by the first gradient ratios


class Trainer:
    """One run: restore, loop over steps, evaluate, save, finish."""

    def __init__(
        self,
        config: AnyConfig,
        accelerator: Accelerator,
        folder: RunFolder,
        parts: Parts,
        preemption: Preemption,
    ) -> None:
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.preemption, self.parts, self.task, self.loader = preemption, parts, parts.task, parts.loader
        optim = config.optim
        model = compute_of(config, accelerator).placed(convert_batch_norm(self.task.module))
        self.state = State(
            model,
            build_optimizer(model, optim),
            self.task.network,
            build_average(model, optim),
            self.task.tensors() | self.task.fixed_tensors(),
        )
        self.task.average = self.state.evaluated if self.state.ema else None
        self.steps_per_epoch = len(self.loader) // optim.accumulation
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"data.batch_size = {config.data.batch_size} exceeds the samples; choose a smaller one"
            )
        self.total_steps = min(optim.epochs * self.steps_per_epoch, config.run.max_steps or 2**62)
        checkpoint: Checkpoint | None = from_main(lambda: choose_checkpoint(folder, config.run.resume))
        scalars = checkpoint.scalars if checkpoint else {}
        if checkpoint:
            self.state.restore(checkpoint)
        # Compiled before it is wrapped: DDP then has the graph cut into its buckets, and the gradients of one
        # travel while the next is computed.
        module = compiled(model, config.run.deterministic) if config.model.compile else model
        with warnings.catch_warnings():
            # torch renames broadcast_buffers; accelerate knows the old name alone.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.module, self.optimizer = accelerator.prepare(module, self.state.optimizer)
        if scalars.get("scaler") and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(scalars["scaler"])
        skipped = scalars.get("nonfinite_steps", 0)
        buffers = [*model.buffers(), *self.task.tensors().values()]
        self.guard = Guard(config.run.on_nonfinite, buffers, accelerator.device, skipped)
        self.agreement = parallel.Agreement()
        saving = config.checkpoint
        self.saver = Saver(
            folder.checkpoints,
            enabled=parallel.is_main(),
            asynchronous=saving.asynchronous,
            keep=saving.keep,
            step=self.step,
        )
        self._save_asked = False
        self._warned_in_epoch = -1
        self._logged: dict[str, float] = {}
        self._collapsed_in_a_row = 0
        self._drawn_at = -math.inf
        self.history = History(folder.path / "metrics.jsonl", self.step, self.task.headline)
        self.monitor = Monitor(
            folder.path,
            enabled=parallel.is_main(),
            total_steps=self.total_steps,
            title=f"{folder.stage} {folder.path.name}",
            resume_step=self.step,
        )
        step = Step(parts, self.module, self.optimizer, self.guard, accelerator, config)
        self._graphed = GraphedStep(step, self.monitor.warning) if fits_graph(config, accelerator) else None
        self._step = self._graphed or step

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.state.step

    def fit(self) -> dict[str, Any]:
        """Train to the end; returns the results that the closing table shows.

        Raises Stopped, on all ranks, after a checkpoint, when a signal asked for it.
        """
        self.preemption.defer()  # from here on all ranks stop together
        finished, owed = from_main(lambda: (self.folder.finished, self._evaluation_owed()))
        if finished and self.step >= self.total_steps:
            self.monitor.info(
                f"{self.folder.path} is already finished at step {self.step}; --name starts another run"
            )
            return self._finish(trained=False)
        self._announce()
        if owed:
            self._evaluate()
        while self.step < self.total_steps:
            self._epoch()
        return self._finish(trained=True)

    def begin(self) -> None:
        """What comes before the first step, unless the run is continued; nothing of it is saved before that.

        Collective. Raises ConfigError for what the user can mend.
        """
        if self.step:
            return
        self.task.begin(self.monitor.info, self.monitor.warning)
        if self.state.ema is not None:
            self.state.ema.set(self.state.model)  # type: ignore[no-untyped-call]

    def _epoch(self) -> None:
        """The rest of the current epoch: steps, then evaluation and checkpoint where they are due."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        micro_steps = self.config.optim.accumulation
        batches = self.loader.epoch(epoch, done * micro_steps)
        clock, clock_step = time.perf_counter(), self.step
        with contextlib.closing(batches):  # type: ignore[type-var]
            while self.step < min((epoch + 1) * self.steps_per_epoch, self.total_steps):
                logging = self._logs_next_step()
                micro_batches = [batch.to(self.accelerator.device) for batch in islice(batches, micro_steps)]
                lr, output = self.train_step(micro_batches, logging=logging)
                if logging:
                    values = self._fetch(output.values)
                    rate = (
                        (self.step - clock_step) * self.config.data.batch_size / (time.perf_counter() - clock)
                    )
                    self._log(values | {"lr": lr, "images_per_second": rate})
                    clock, clock_step = time.perf_counter(), self.step
                if self.step == 1:
                    views = [view.cpu().numpy() for view in self.loader.rendered(micro_batches[0]).views]
                    self.monitor.images("augmented_views", views, self.step)
                if self._evaluation_due() or self._save_due():
                    # Measured first, then saved: what a checkpoint follows is in metrics.jsonl already.
                    self._evaluate_and_save()
                    clock, clock_step = time.perf_counter(), self.step
                if self.step < self.total_steps and self._asked_to_stop():
                    self._stop()

    def train_step(self, micro_batches: list[Batch], *, logging: bool) -> tuple[float, StepOutput]:
        """One optimizer step over its micro-batches; returns (learning rate, mean output).

        A GPU is waited for neither here nor in what this calls: what is logged stays there (`_fetch`).
        """
        lr = learning_rate(self.step, self.steps_per_epoch, self.config.optim)
        set_learning_rate(self.optimizer, lr)
        self.task.begin_step(self.step / (self.config.optim.epochs * self.steps_per_epoch))
        output = self._step(micro_batches, logging)
        self.state.step += 1
        if self.accelerator.device.type == "cpu":
            self.guard.check(self.step)
        if self.state.ema is not None:
            self.state.ema.update(self.state.model, self.state.step)
        return lr, output

    def _fetch(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Named scalars from the device, and the guard's verdict with them: one transfer, one wait."""
        if (scaler := self.accelerator.scaler) is not None:
            values = values | {"loss_scale": scaler._get_scale_async()}
        scalars = torch.stack([value.detach().double() for value in values.values()])
        numbers = torch.cat([scalars, self.guard.verdict()]).tolist()
        found = dict(zip(values, numbers, strict=False))
        self.guard.check(self.step, numbers[len(values) :], found.get("loss_scale"))
        return found

    def _logs_next_step(self) -> bool:
        step = self.step + 1
        return (
            step <= ALWAYS_LOGGED_STEPS or step % self.config.run.log_every == 0 or step == self.total_steps
        )

    def _log(self, values: dict[str, float]) -> None:
        tagged = {f"train/{name}": value for name, value in values.items()}
        if self.guard.skips:
            tagged["train/nonfinite_steps"] = self.guard.skipped
        self._logged = tagged
        self.monitor.scalars(tagged, self.step)
        self.monitor.progress(self.step, values["loss"], values["lr"], values["images_per_second"])
        epoch = self.step // self.steps_per_epoch
        if epoch != self._warned_in_epoch and (warning := self.task.warning(tagged)):
            self._warned_in_epoch = epoch  # once an epoch is enough
            self.monitor.warning(warning)

    def _evaluate_and_save(self) -> None:
        if self._evaluation_due():
            self._evaluate()
        if self._save_due():
            self._save()

    def _evaluation_due(self) -> bool:
        every = self.config.eval.every_epochs * self.steps_per_epoch
        return self.step >= self.total_steps or bool(every and self.step % every == 0)

    def _evaluation_owed(self) -> bool:
        """Whether the checkpoint continued from was saved by a stop in the midst of its evaluation."""
        return self.step > 0 and self._evaluation_due() and not self.history.has(self.step)

    def _save_due(self) -> bool:
        every = self.config.checkpoint
        if self.step == self.total_steps or self._save_asked:
            return True
        by_steps = every.every_steps and self.step % every.every_steps == 0
        by_epochs = every.every_epochs and self.step % (every.every_epochs * self.steps_per_epoch) == 0
        return bool(by_steps or by_epochs)

    def _save(self) -> None:
        self.guard.check(self.step)
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        scalars = {"scaler": scaler, "nonfinite_steps": self.guard.skipped}
        self.saver.save(self.state.snapshot(scalars))
        self._save_asked = False

    def _asked_to_stop(self) -> bool:
        """What the ranks agree on between batches: to stop, to save by the clock, that a save has failed."""
        stop, save, failed = self.agreement.exchange(
            self.preemption.requested is not None,
            self.saver.asks(self.config.checkpoint.every_minutes),
            self.saver.failed,
        )
        self._save_asked = self._save_asked or save
        if failed:
            from_main(self.saver.wait)
        return stop

    def _stop(self) -> None:
        """Save the state as it stands and leave by Stopped."""
        self.agreement.drain()
        if self.saver.step != self.step:
            self._save()
        why = self.preemption.requested or "a signal to another rank"
        from_main(self.saver.wait)
        from_main(lambda: self.folder.update(status="stopped", step=self.step, why=why))
        self.monitor.info(f"stopped by {why} at step {self.step} of {self.total_steps}, saved")
        raise Stopped(
            f"{why} at step {self.step} of {self.total_steps}, saved in {self.folder.path}; "
            "the same command continues"
        )

    def _evaluate(self) -> None:
        self.guard.check(self.step)  # a GPU's last steps have not been looked at
        try:
            evaluation = self.task.evaluate(self.state.evaluated, self._between_batches)
        except _EvaluationAbandoned:
            self._stop()
            raise
        self.monitor.scalars(evaluation.scalars, self.step)
        if from_main(self._pictures_due):
            self._draw(evaluation)
        if self.history.add(self.step, evaluation.scalars) and parallel.is_main():
            with writing(selected := self.folder.path / "selected.safetensors"):
                save_tensors(selected, self.state.evaluated.state_dict())
            self.folder.update(**{SELECTED_STEP: self.step})
        shown = ", ".join(f"{tag} {value:.4g}" for tag, value in evaluation.scalars.items())
        self.monitor.info(f"epoch {self.step / self.steps_per_epoch:.3g}: {shown}")
        collapsed = self.task.collapsed(evaluation.scalars, self._logged)
        self._collapsed_in_a_row = self._collapsed_in_a_row + 1 if collapsed else 0
        if collapsed and self._collapsed_in_a_row >= 2:
            self.monitor.warning(collapsed)
        parallel.barrier()

    def _pictures_due(self) -> bool:
        """They take a second of a CPU: rarer than evaluations may be, but also at the end."""
        waited = time.monotonic() - self._drawn_at
        return self.step >= self.total_steps or waited >= 60 * self.config.eval.pictures_every_minutes

    def _draw(self, evaluation: Evaluation) -> None:
        self._drawn_at = time.monotonic()
        if evaluation.confusion is not None:
            classes = self.parts.about["classes"]
            self.monitor.confusion("confusion/test", evaluation.confusion, classes, self.step)
        for tag, matrix in self.task.matrices(self.state.evaluated).items():
            self.monitor.heatmap(
                tag, matrix, self.step, vmin=-1.0, vmax=1.0, title=f"{tag}, step {self.step}"
            )

    def _between_batches(self) -> None:
        """A stop does not wait for the end of an evaluation: the run continues by making it again."""
        if self._asked_to_stop():
            raise _EvaluationAbandoned

    def _finish(self, *, trained: bool) -> dict[str, Any]:
        self.agreement.drain()
        from_main(self.saver.wait)
        results = self.history.results()
        if trained:
            from_main(lambda: self._export(results))
        self.monitor.table(*self.history.table())
        self.monitor.info(f"run folder: {self.folder.path}")
        parallel.barrier()
        return results

    def _export(self, results: dict[str, Any]) -> None:
        with writing(self.folder.path):
            name, about = self.config.model.name, self.parts.about
            export(self.folder.path, self.state.evaluated, name, self.parts.num_classes, about)
            for name, values in self.task.per_sample().items():
                write_npy(self.folder.path / f"{name}.npy", values)
        if self.step not in self.history.closed:
            self.monitor.hparams(flatten(self.config), {k: v["value"] for k, v in results.items()})
        # Last of all: a run that is killed before this does again what may be missing.
        complete = self.step == self.config.optim.epochs * self.steps_per_epoch
        self.folder.finish(step=self.step, why=None, complete=complete, results=results, **self.parts.about)

    def _announce(self) -> None:
        world, numerics = parallel.world_size(), numerics_of(self.config, self.accelerator)
        if parallel.is_main():
            roll_back(self.folder, self.config.run.resume, self.step)
            about = {"world_size": world} | numerics | self.parts.about
            self.folder.begin(self.step, **about)
        self.monitor.hparams(flatten(self.config), {})
        state = f"continuing at step {self.step}" if self.step else "starting"
        self.monitor.info(
            f"{state}: {self.total_steps} steps, {self.steps_per_epoch} an epoch, batch "
            f"{self.config.data.batch_size} on {world} x {self.accelerator.device.type}, "
            f"precision {numerics['precision']}, into {self.folder.path}"
        )
        if teacher := self.parts.about.get("teacher"):
            self.monitor.info(f"teacher: {teacher}")

    def close(self) -> None:
        """Stop the loader's threads, let the checkpoint in flight be written, flush. Safe to call twice."""
        if self._graphed is not None:
            self._graphed.close()
        self.loader.close()
        self.saver.close()
        self.monitor.close()


class _EvaluationAbandoned(Exception):
    """Raised inside an evaluation, on all ranks after the same batch."""
