"""Steps replayed as a CUDA graph are those launched kernel by kernel, to the bit."""

from __future__ import annotations

import contextlib
import gc
import re

import pytest
import torch

from rmd_dist.engine.graphs import WARM_UP
from rmd_dist.tasks import PretrainTask
from tests.gpu.runs import Device, cuda_alone, differing

BOTH = pytest.mark.parametrize("stage", ["pretrain", "distill"])


def records(device: Device, stage: str, name: str) -> list[str]:
    """What a run has recorded, but for its times."""
    lines = (device.folder / name / stage / "tiny" / "metrics.jsonl").read_text().splitlines()
    return [re.sub(r'"(time|train/images_per_second)": [^,}]*', "", line) for line in lines]


@BOTH
@pytest.mark.parametrize("precision", ["no", cuda_alone("tf32"), cuda_alone("bf16")])
@pytest.mark.parametrize(
    "more",
    ["", *map(cuda_alone, ("--on-nonfinite skip", "--clip-norm 1", "--accumulation 2", "--ema-decay 0.9"))],
)
def test_twenty_steps_are_those_launched_kernel_by_kernel(stage, precision, more, device):
    """Weights, momenta and everything logged; epochs have ten steps, so evaluations come between."""
    words = ["--precision", precision, "--max-steps", "20", "--log-every", "4", *more.split()]
    graphed = device.train(stage, "graphed", *words)
    launched = device.train(stage, "launched", "--cuda-graph", "false", *words)
    assert differing(graphed, launched) == []
    assert records(device, stage, "graphed") == records(device, stage, "launched")


def test_a_table_in_the_teachers_place(device):
    """Batches bring its rows along."""
    device.train("pretrain", "teacher", "--max-steps", "4")
    words = ["--teacher", str(device.folder / "teacher/pretrain/tiny"), "--teacher-table", "true"]
    words += ["--data-root", str(device.folder), "--augment.padding", "1", "--max-steps", "12"]
    graphed = device.train("distill", "graphed", *words)
    launched = device.train("distill", "launched", "--cuda-graph", "false", *words)
    assert differing(graphed, launched) == []


@BOTH
def test_views_that_the_device_renders(stage, device):
    """They are the bytes that threads make, inside a graph and outside; so is what is learnt of them."""
    graphed = device.train(stage, "graphed", "--max-steps", "12", "--data.render", "device")
    launched = device.train(
        stage, "launched", "--max-steps", "12", "--data.render", "device", "--cuda-graph", "false"
    )
    threads = device.train(stage, "threads", "--max-steps", "12")
    assert differing(graphed, launched) == []
    assert differing(graphed, threads) == []


def test_simclr(device):
    """Its negatives are told from its positives by masks."""
    words = ["--objective", "simclr", "--max-steps", "12"]
    graphed = device.train("pretrain", "graphed", *words)
    launched = device.train("pretrain", "launched", "--cuda-graph", "false", *words)
    assert differing(graphed, launched) == []


def test_more_views(device):
    """FastSiam's loss; the views of an image differ, and so does what is learnt of them."""
    words = ["--views.count", "4", "--max-steps", "8"]
    graphed = device.train("pretrain", "graphed", *words)
    launched = device.train("pretrain", "launched", "--cuda-graph", "false", *words)
    assert differing(graphed, launched) == []
    assert differing(graphed, device.train("pretrain", "two", "--max-steps", "8")) != []


@BOTH
def test_steps_are_replayed(stage, cuda, monkeypatch):
    """The host runs a step only to warm up and to record: logged ones, others."""
    with cuda.trainer(stage) as trainer, contextlib.closing(trainer.loader.epoch(0)) as batches:
        calls = []
        compute = trainer._graphed._step
        trainer._graphed._step = lambda *args: calls.append(trainer.step) or compute(*args)
        for number in range(10):
            batch = next(batches).to(trainer.accelerator.device)
            trainer.train_step([batch], logging=number % 2 == 0)
        assert calls == list(range(WARM_UP + 2))


def test_a_step_that_no_graph_can_hold_is_launched_kernel_by_kernel(cuda, monkeypatch, capsys):
    """It is told once, and the run is what it would have been."""
    launched = cuda.train("pretrain", "launched", "--cuda-graph", "false", "--max-steps", "8")
    step = PretrainTask.step

    def waiting(self, module, batch, *, logging):
        output = step(self, module, batch, logging=logging)
        float(output.loss)
        return output

    monkeypatch.setattr(PretrainTask, "step", waiting)
    found = cuda.train("pretrain", "run", "--max-steps", "8")
    assert differing(found, launched) == []
    log = (cuda.folder / "run" / "pretrain" / "tiny" / "log.txt").read_text()
    assert log.count("launched kernel by kernel") == 1


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18_cifar_w16"])
def test_other_models(name, cuda):
    """With dropout, which draws other numbers in every step; continued as uninterrupted otherwise."""
    words = ["--model", name, "--max-steps", "12", "--K", "0"]
    graphed = cuda.train("distill", "graphed", *words)
    launched = cuda.train("distill", "launched", "--cuda-graph", "false", *words)
    assert differing(graphed, launched) == []
    assert all(t.isfinite().all() for t in graphed.values() if t.is_floating_point())


def test_memory_is_given_back(cuda):
    def kept(name: str) -> int:
        cuda.train("pretrain", name, "--max-steps", "6")
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    assert kept("first") >= kept("second") >= kept("third")
