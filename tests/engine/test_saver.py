"""Saving beside training: the state at the call is written, one write at a time, and no failure is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from rmd_dist.engine import saver as saver_module
from rmd_dist.engine.checkpoint import newest
from rmd_dist.engine.saver import Saver
from rmd_dist.engine.state import State
from rmd_dist.errors import Fault
from tests.engine.test_checkpoint import SCALER, files_up_to, names, network, pair, state, train


def saver(folder: Path, *, asynchronous: bool = True, keep: int = 9, step: int = 0) -> Saver:
    return Saver(folder, enabled=True, asynchronous=asynchronous, keep=keep, step=step)


@pytest.fixture
def slow(monkeypatch):
    """Writing waits for the event that this gives; `slow.writing` counts writers at work."""

    class Gate(threading.Event):
        writing = most = 0

    gate, write = Gate(), saver_module.write_checkpoint

    def waiting(*args, **kwargs):
        gate.writing += 1
        gate.most = max(gate.most, gate.writing)
        assert gate.wait(30)
        path = write(*args, **kwargs)
        gate.writing -= 1
        return path

    monkeypatch.setattr(saver_module, "write_checkpoint", waiting)
    yield gate
    gate.set()


def test_what_is_written_is_the_state_at_the_call(slow, tmp_path):
    """Training changes weights, buffers and momentum in place while the thread has not yet begun to write."""
    module, optimizer = network()
    train(module, optimizer, range(3))
    expected = {name: value.clone() for name, value in state(module, optimizer).items()}
    writer = saver(tmp_path)
    writer.save(State(module, optimizer, step=3).snapshot({"scaler": SCALER}))
    train(module, optimizer, range(3, 6))
    assert newest(tmp_path, warn=pytest.fail) is None
    slow.set()
    writer.wait()
    found, (other, its_optimizer) = newest(tmp_path, warn=pytest.fail), network(seed=1)
    assert found is not None and found.step == 3
    State(other, its_optimizer).restore(found)
    for name, value in state(other, its_optimizer).items():
        assert torch.equal(value, expected[name]), name
        assert not torch.equal(value, state(module, optimizer)[name]), name


def test_one_write_at_a_time(slow, tmp_path):
    module, optimizer = network()
    writer = saver(tmp_path)
    releaser = threading.Timer(0.3, slow.set)
    releaser.start()
    for step in (1, 2, 3):
        train(module, optimizer, range(step, step + 1))
        began = time.monotonic()
        writer.save(State(module, optimizer, step=step).snapshot({"scaler": SCALER}))
        assert (time.monotonic() - began > 0.2) == (step == 2)  # the second waits for the first
    writer.wait()
    assert slow.most == 1 and names(tmp_path) == pair(1, 2, 3)


def test_buffers_are_used_again_and_still_hold_the_newest(tmp_path):
    module, optimizer = network()
    writer = saver(tmp_path)
    train(module, optimizer, range(1))
    writer.save(State(module, optimizer, step=1).snapshot({"scaler": SCALER}))
    first = {name: value.data_ptr() for name, value in writer._buffers.items()}
    train(module, optimizer, range(1, 2))
    writer.save(State(module, optimizer, step=2).snapshot({"scaler": SCALER}))
    assert {name: value.data_ptr() for name, value in writer._buffers.items()} == first and len(first) > 10
    writer.wait()
    found, (other, its_optimizer) = newest(tmp_path, warn=pytest.fail), network(seed=1)
    assert found is not None
    State(other, its_optimizer).restore(found)
    assert all(torch.equal(v, state(module, optimizer)[k]) for k, v in state(other, its_optimizer).items())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_write_that_fails_is_told_and_the_previous_stays(asynchronous, tmp_path):
    module, optimizer = network()
    train(module, optimizer, range(1))
    writer = saver(tmp_path, asynchronous=asynchronous, keep=1)
    writer.save(State(module, optimizer, step=1).snapshot({"scaler": SCALER}))
    writer.wait()
    with files_up_to(2000):
        writer.save(State(module, optimizer, step=2).snapshot({"scaler": SCALER}))
        writer.close()
    assert writer.failed and names(tmp_path) == pair(1)
    writer.save(
        State(module, optimizer, step=3).snapshot({"scaler": SCALER})
    )  # nothing more: the run is about to end
    with pytest.raises(Fault, match=r"cannot write .*: File too large; raise the limit.*same command again"):
        writer.wait()
    assert names(tmp_path) == pair(1)
    assert newest(tmp_path, warn=pytest.fail).step == 1


@pytest.mark.parametrize("spoilt", ["weight", "buffer", "momentum"])
def test_a_poisoned_state_is_never_saved(spoilt, tmp_path):
    module, optimizer = network()
    train(module, optimizer, range(2))
    layer = module[1]
    assert isinstance(layer, nn.BatchNorm2d)
    tensor = {
        "weight": layer.weight.data,
        "buffer": layer.running_var,
        "momentum": optimizer.state[layer.weight]["momentum_buffer"],
    }[spoilt]
    tensor[3] = float("-inf" if spoilt == "weight" else "nan")
    writer = saver(tmp_path)
    writer.save(State(module, optimizer, step=2).snapshot({"scaler": SCALER}))
    with pytest.raises(Fault, match=r"after step 2 is not finite \(1 tensors, such as .*lower --lr"):
        writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path):
    module, optimizer = network()
    writer = Saver(tmp_path, enabled=False, asynchronous=True, keep=1, step=0)
    writer.save(State(module, optimizer, step=4).snapshot({"scaler": SCALER}))
    writer.wait()
    assert writer.step == 4 and list(tmp_path.iterdir()) == []
    assert not writer.asks(1e-9)


def test_the_clock_asks_once_until_a_save(tmp_path):
    module, optimizer = network()
    writer = saver(tmp_path)
    assert not writer.asks(0) and not writer.asks(60)
    time.sleep(0.02)
    assert [writer.asks(1e-4) for _ in range(3)] == [True, False, False]
    writer.save(State(module, optimizer, step=1).snapshot({"scaler": SCALER}))
    assert not writer.asks(1e-2)
    time.sleep(0.02)
    assert writer.asks(1e-4)
    writer.wait()
