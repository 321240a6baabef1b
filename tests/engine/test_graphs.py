"""What replayed steps rest on, without a GPU: a recorder that works anew where a graph would replay."""

from __future__ import annotations

import pytest

from rmd_dist.engine import graphs, trainer
from rmd_dist.engine.graphs import Recording
from rmd_dist.tasks import StepOutput
from tests.gpu.runs import differing
from tests.tiny import final_tensors, train_tiny, words


class Repeating:
    """Replays by working again, on whatever then lies in the memory that the recording was made of."""

    recorded: int

    def run(self, work):
        return work()

    def record(self, work):
        output = StepOutput(None, {})

        def replay():
            output.__dict__.update(work().__dict__)

        Repeating.recorded += 1
        return Recording(replay, output)


@pytest.fixture
def repeating(monkeypatch):
    Repeating.recorded = 0
    monkeypatch.setattr(graphs, "CudaRecorder", Repeating)
    monkeypatch.setattr(trainer, "fits_graph", lambda config, _: config.run.cuda_graph)
    return Repeating


def run(stage, folder, *more):
    """The last checkpoint, and the log, of a run with epochs of five steps that logs every fourth."""
    small = "--model resnet18_cifar_w16_s2 --max-steps 8 --log-every 4 --data.train_samples 240".split()
    train_tiny(stage, words(stage, folder, *small, *more))
    return final_tensors(stage, folder), (folder / stage / "tiny" / "log.txt").read_text()


@pytest.mark.parametrize("stage", ["pretrain", "distill"])
@pytest.mark.parametrize("more", ["", "--accumulation 2 --on-nonfinite skip", "--data.render device"])
def test_batches_are_read_from_the_same_memory(stage, more, repeating, tmp_path):
    """Over an epoch's end, where batches come from another pass over the samples."""
    graphed, _ = run(stage, tmp_path / "graphed", *more.split())
    assert repeating.recorded == 2  # logged steps, and others
    launched, _ = run(stage, tmp_path / "launched", "--cuda-graph", "false", *more.split())
    assert repeating.recorded == 2
    assert differing(graphed, launched) == []


def test_a_step_that_cannot_be_recorded_is_made_all_the_same(repeating, monkeypatch, tmp_path):
    def record(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nTORCH_USE_CUDA_DSA")

    monkeypatch.setattr(repeating, "record", record)
    graphed, log = run("pretrain", tmp_path / "graphed")
    launched, _ = run("pretrain", tmp_path / "launched", "--cuda-graph", "false")
    assert differing(graphed, launched) == []
    assert log.count("not permitted when stream is capturing") == 1
    assert "TORCH_USE_CUDA_DSA" not in log


def test_there_are_none_on_a_cpu(tmp_path):
    _, log = run("pretrain", tmp_path)
    assert "CUDA graph" not in log
