"""Losses in fp32 on the device against the same formulas in fp64 on the CPU: values and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import conv2d

from rmd_dist.evaluation.measures import knn_accuracy
from rmd_dist.losses import LOSSES, RelationLoss, build_loss, nt_xent, simsiam_loss
from rmd_dist.parallel.numerics import set_numerics
from tests.losses.naive_graph import features, naive_terms


@pytest.mark.parametrize("spread", [3.0, 1e4])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_classification_losses(name, classes, spread, device):
    g = torch.Generator().manual_seed(classes)
    logits = spread * torch.randn(256, classes, generator=g)
    targets = torch.randint(classes, (256,), generator=g)
    found = {}
    for where, x in (("cpu", logits.double()), (device.type, logits)):
        x = x.to(where).detach().requires_grad_()
        loss = build_loss(name, classes)(x, targets.to(where))
        loss.backward()
        found[x.dtype] = loss.double().cpu(), x.grad.double().cpu()
    (expected, slope), (value, gradient) = found[torch.float64], found[torch.float32]
    assert abs(value - expected) <= 1e-6 * max(1.0, abs(expected))
    assert gradient.isfinite().all()
    assert (gradient - slope).norm() <= 1e-5 * slope.norm() + 1e-9


@pytest.fixture
def usual_numerics() -> Iterator[None]:
    """Afterwards torch computes as it did."""
    yield
    set_numerics("no", deterministic=True)


@pytest.mark.parametrize("setting", ["plain", "autocast", "tf32"])
@pytest.mark.parametrize("target", ["identity", "teacher"])
@pytest.mark.parametrize("form", ["rows", "gram"])
@pytest.mark.parametrize("batch", [2, 64, 1024])
def test_the_relation_graph(batch, form, target, setting, device, usual_numerics):
    """In fp32 proper, whatever the products around it may be."""
    set_numerics("tf32" if setting == "tf32" else "no", deterministic=True)
    student, teacher = features(batch, 512, "related")
    leaf = student.double().requires_grad_()
    expected, *_ = naive_terms(leaf, teacher.double(), node_target=target)
    expected.backward()
    here = student.to(device.type).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16, enabled=setting == "autocast"):
        terms = RelationLoss(form=form, node_target=target)(here, teacher.to(device.type))
        terms.loss.backward()
    # Of two nodes `gram` takes differences of sums over 512 features; `auto` never has it do that.
    slack = 1 if batch > 2 or form == "rows" else 10
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-6 * slack)
    difference = here.grad.double().cpu() - leaf.grad
    assert difference.norm() <= 1e-5 * slack * leaf.grad.norm()


@pytest.mark.parametrize("views", [2, 4])
def test_simsiam(views, device):
    g = torch.Generator().manual_seed(0)
    p, z = torch.randn(2, views, 64, 2048, generator=g)
    expected = simsiam_loss(list(p.double()), list(z.double()))
    found = simsiam_loss(list(p.to(device.type)), list(z.to(device.type)))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", ["no", "tf32"])
@pytest.mark.parametrize("views", [2, 4])
def test_simclr(views, precision, device, usual_numerics):
    """In fp32 proper, whatever the products around it may be."""
    set_numerics(precision, deterministic=True)
    z = torch.randn(views, 64, 128, generator=torch.Generator().manual_seed(0))
    found = {}
    for where, x in (("cpu", z.double()), (device.type, z)):
        leaf = x.to(where).requires_grad_()
        loss = nt_xent(list(leaf))
        loss.backward()
        found[x.dtype] = loss.item(), leaf.grad.double().cpu()
    (expected, slope), (value, gradient) = found[torch.float64], found[torch.float32]
    assert value == pytest.approx(expected, rel=1e-6)
    assert (gradient - slope).norm() <= 1e-5 * slope.norm()


def test_tf32_is_off_unless_it_is_asked_for(cuda, usual_numerics):
    """torch by itself has it on in convolutions."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 64, 16, 16, generator=g), torch.randn(64, 64, 3, 3, generator=g)
    a, b = torch.randn(256, 512, generator=g), torch.randn(512, 256, generator=g)
    exact = {"conv": conv2d(x.double(), w.double()), "product": a.double() @ b.double()}
    for precision in ("no", "tf32"):
        set_numerics(precision, deterministic=True)
        found = {"conv": conv2d(x.cuda(), w.cuda()), "product": a.cuda() @ b.cuda()}
        for name, value in exact.items():
            error = (found[name].cpu().double() - value).norm() / value.norm()
            assert (error > 1e-5) == (precision == "tf32"), (precision, name, float(error))


def test_knn_is_the_same_every_time_and_the_cpu_s(device, usual_numerics):
    """Without deterministic algorithms too: votes are whole numbers, whatever the order they come in."""
    g = torch.Generator().manual_seed(0)
    labels, truth = (torch.randint(10, (n,), generator=g).numpy() for n in (5000, 700))
    centres = torch.randn(10, 64, generator=g)
    bank, queries = (centres[y] + 2 * torch.randn(len(y), 64, generator=g) for y in (labels, truth))
    expected = knn_accuracy(bank, labels, queries, truth)
    set_numerics("no", deterministic=False)
    here = torch.device(device.type)
    found = {knn_accuracy(bank, labels, queries, truth, device=here) for _ in range(5)}
    assert len(found) == 1
    # Rounding of the similarities may turn a close vote.
    assert found.pop() == pytest.approx(expected, abs=2 / 700)
