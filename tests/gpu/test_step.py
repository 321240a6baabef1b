"""One step: nothing in it waits for the device, its numbers are the CPU's, what is not finite is caught."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rmd_dist.engine.guard import Guard
from rmd_dist.errors import Fault
from rmd_dist.models.weights import read_tensors
from rmd_dist.tasks import DistillTask, PretrainTask, StepOutput
from tests.gpu.runs import Device, cuda_alone, differing
from tests.tiny import greatest_difference, tensors_at, update_difference

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])


class _NothingIsRead(TorchDispatchMode):
    """On a CPU nothing waits; what would on a GPU is found by the operations that read a tensor."""

    READING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "equal", "unique")
    SENDING = ("lift_fresh",)  # torch.tensor of what the host holds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
        assert name not in self.READING + self.SENDING and not masks, f"{func} is waited for"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits(device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What waits for the device inside raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor is waited for")

    with monkeypatch.context() as patch, _NothingIsRead():
        for name in ("tolist", "numpy", "cpu", "__array__"):
            patch.setattr(torch.Tensor, name, refuse)
        patch.setattr(Guard, "check", lambda *_: None)  # on a CPU every step is judged at once
        yield


def test_waiting_is_noticed(device, monkeypatch):
    x = torch.ones(3, device=device.type)
    for wait in (lambda: x.sum().item(), lambda: float(x[0]), lambda: bool(x[0] > 0), lambda: x[x > 0]):
        with pytest.raises((AssertionError, RuntimeError)), nothing_waits(device, monkeypatch):
            wait()
    with nothing_waits(device, monkeypatch):
        x[torch.zeros(2, dtype=torch.int64, device=device.type)] + x.sum()


@BOTH
@pytest.mark.parametrize("precision", ["no", "bf16", cuda_alone("fp16"), cuda_alone("tf32")])
@pytest.mark.parametrize(
    "more",
    [
        *("", "--cuda-graph false", "--on-nonfinite skip", "--clip-norm 1", "--accumulation 2", "--K 0"),
        *("--data.render device", "--objective simclr"),
    ],
)
def test_a_step_that_is_not_logged_waits_for_nobody(stage, precision, more, device, monkeypatch):
    """Batches included: on a GPU they come from pinned memory."""
    if ("K" in more and stage == "pretrain") or ("simclr" in more and stage == "distill"):
        pytest.skip("the stage has no such flag")
    micro = 2 if "accumulation" in more else 1
    # Of a graph steps 4 and 5 are recorded: a logged one, another.
    words = ["--batch-size", str(48 * micro), "--precision", precision, *more.split()]
    with device.trainer(stage, *words) as trainer, contextlib.closing(trainer.loader.epoch(0)) as batches:
        assert trainer.accelerator.device.type == device.type
        ready = [[next(batches) for _ in range(micro)] for _ in range(4)]
        tensors = [tensor for batch in ready[0] for tensor in batch.tensors]
        assert all(tensor.is_pinned() == (device.type == "cuda") for tensor in tensors)

        def step(*, logging: bool = False) -> None:
            on_device = [batch.to(trainer.accelerator.device) for batch in ready[trainer.step % 4]]
            trainer.train_step(on_device, logging=logging)

        for logging in (True, False, False, True, False):
            step(logging=logging)
        with nothing_waits(device, monkeypatch):
            step()
            step()
        trainer.guard.check(trainer.step)


@BOTH
def test_twenty_steps_in_double_are_those_of_the_cpu(stage, device):
    """On a CPU beside themselves in another memory layout, which parts runs as far as another device does."""
    more = "--precision fp64 --max-steps 20".split()
    found = device.train(stage, "here", *more)
    layout = [] if device.type == "cuda" else ["--channels_last", "false"]
    expected = Device("cpu", device.folder).train(stage, "there", *more, *layout)
    assert greatest_difference(found, expected) < 1e-9
    assert update_difference(found, expected) < 1e-9


def _with_gradient(loss: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    loss = loss * 1.0
    loss.register_hook(lambda gradient: gradient * factor)
    return loss


Spoil = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SPOILS: dict[str, Spoil] = {
    "nan loss": lambda loss, now: loss * torch.where(now, torch.nan, 1.0),
    "infinite loss": lambda loss, now: loss * torch.where(now, torch.inf, 1.0),
    "nan gradient": lambda loss, now: _with_gradient(loss, torch.where(now, torch.nan, 1.0)),
    "loss alone nan": lambda loss, now: loss + torch.where(now, torch.nan, 0.0),
}
"""(loss, whether to spoil it, told on its device as a CUDA graph must) -> the loss."""

TASKS = {"pretrain": PretrainTask, "distill": DistillTask}


@pytest.fixture
def plant(monkeypatch) -> Callable[[str, Spoil, int], None]:
    """`plant(stage, how, call)` ruins the loss of one call of the task's step."""

    def install(stage: str, how: Spoil, call: int) -> None:
        step, calls = TASKS[stage].step, []

        def spoilt(self, module, batch, *, logging):
            output = step(self, module, batch, logging=logging)
            if not calls:
                calls.append(torch.zeros((), device=output.loss.device))
            calls[0] += 1
            return StepOutput(how(output.loss, calls[0] == call), output.values)

        monkeypatch.setattr(TASKS[stage], "step", spoilt)

    return install


@BOTH
@pytest.mark.parametrize("precision", ["no", cuda_alone("fp16")])
@pytest.mark.parametrize("how", SPOILS)
def test_a_planted_step_is_skipped_and_changes_nothing(stage, how, precision, device, plant):
    more = f"--precision {precision} --on-nonfinite skip --checkpoint.every_steps 1 --keep 99".split()
    plant(stage, SPOILS[how], 14)  # late enough that fp16's scale has settled
    device.train(stage, "run", *more, "--max-steps", "16", "--log-every", "4")
    before, after, later = (tensors_at(stage, device.folder / "run", step) for step in (13, 14, 15))
    changed = differing(before, after)
    if precision == "fp16" and how == "nan gradient":
        # An overflow as fp16 has them: its scaler leaves the step out, batch norm has seen the batch.
        assert all("running" in name or "num_batches" in name for name in changed)
        return
    assert changed == []
    assert differing(after, later) != []
    assert all(t.isfinite().all() for t in later.values() if t.is_floating_point())
    lines = (device.folder / "run" / stage / "tiny" / "metrics.jsonl").read_text().splitlines()
    counts = [r["train/nonfinite_steps"] for r in map(json.loads, lines) if "train/nonfinite_steps" in r]
    assert counts[-1] == 1


@BOTH
@pytest.mark.parametrize("how", ["nan loss", "nan gradient"])
def test_a_planted_step_stops_the_run_before_it_is_saved(stage, how, device, plant):
    """A GPU is looked at on logging steps: the run stops at the next of them."""
    plant(stage, SPOILS[how], 10)
    more = "--max-steps 30 --log-every 4 --checkpoint.every_steps 3 --keep 99".split()
    with pytest.raises(Fault, match=r"nan or infinite at step 1[0-2]"):
        device.train(stage, "run", *more)
    checkpoints = sorted((device.folder / "run" / stage / "tiny" / "checkpoints").glob("*.safetensors"))
    assert checkpoints[-1].name == "step-000000009.safetensors"
    for path in checkpoints:
        assert all(t.isfinite().all() for t in read_tensors(path).values() if t.is_floating_point())
