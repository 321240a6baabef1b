"""Each loss against a slow loop of its formula, float64 autograd of the naive formula, and a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rmd_dist.errors import ConfigError
from rmd_dist.losses import LOSSES, build_loss

NAMES = list(LOSSES)
CLASSES = [3, 100]


def _formula(name: str, p: list[float], y: int, many: bool) -> float:
    """The formulas in plain arithmetic, their defaults written out again: a wrong default shows here too."""
    py = p[y]
    nce = math.log(py) / sum(math.log(pk) for pk in p)
    a, q = (1.8, 3.0) if many else (6.0, 1.5)
    agce = ((a + 1) ** q - (a + py) ** q) / q
    a, q = (6.0, 3.0) if many else (6.3, 1.5)
    aul = ((a - py) ** q - (a - 1) ** q) / q
    ael = math.exp(-py / (1.5 if many else 5.0))
    alpha = 10.0 if many else 1.0
    values = {
        "ce": -math.log(py),
        "gce": (1 - py**0.7) / 0.7,
        "rce": -math.log(1e-4) * (1 - py),
        "sce": (6.0 if many else 0.1) * -math.log(py) + (0.1 if many else 1.0) * -math.log(1e-4) * (1 - py),
        "mae": 2 * (1 - py),
        "tce": sum((1 - py) ** i / i for i in range(1, 7)),
        "nce": nce,
        "agce": agce,
        "aul": aul,
        "ael": ael,
        "nce_agce": alpha * nce + (0.1 if many else 4.0) * agce,
        "nce_aul": alpha * nce + (0.015 if many else 4.0) * aul,
        "nce_ael": alpha * nce + (0.1 if many else 4.0) * ael,
    }
    return values[name]


def _batch(classes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(7, classes, generator=g, dtype=torch.float64) * 3
    return logits.to(dtype), torch.randint(classes, (7,), generator=g)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_a_slow_loop_of_the_formula(name, classes):
    logits, targets = _batch(classes)
    expected = [
        _formula(name, p, y, classes > 10)
        for p, y in zip(logits.softmax(1).tolist(), targets.tolist(), strict=True)
    ]
    loss = build_loss(name, classes)
    assert loss.per_sample(logits, targets).tolist() == pytest.approx(expected, rel=1e-10)
    assert loss(logits, targets).item() == pytest.approx(sum(expected) / len(expected), rel=1e-10)
    assert loss.per_sample(logits.float(), targets).tolist() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_finite_differences_of_the_formula(name, classes):
    logits, targets = _batch(classes)
    logits.requires_grad_()
    build_loss(name, classes)(logits, targets).backward()
    for row, column in ((0, 0), (3, 2), (5, int(targets[5]))):
        y, step = int(targets[row]), 1e-5
        ends = []
        for sign in (1, -1):
            moved = logits[row].detach().clone()
            moved[column] += sign * step
            ends.append(_formula(name, moved.softmax(0).tolist(), y, classes > 10))
        slope = (ends[0] - ends[1]) / (2 * step) / len(targets)
        assert logits.grad[row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


CLOSED = {  # at p_y = 1/2 of two classes, with options that make it an easy number
    "ce": ({}, math.log(2)),
    "gce": ({"q": 1.0}, 0.5),
    "rce": ({}, 2 * math.log(10)),
    "sce": ({"alpha": 1.0, "beta": 1.0}, math.log(2) + 2 * math.log(10)),
    "mae": ({"scale": 3.0}, 1.5),
    "tce": ({"t": 2}, 0.5 + 0.125),
    "nce": ({}, 0.5),
    "agce": ({"a": 1.0, "q": 2.0}, (4 - 2.25) / 2),
    "aul": ({"a": 2.0, "q": 2.0}, (2.25 - 1) / 2),
    "ael": ({"a": 0.5}, math.exp(-1)),
    "nce_agce": ({"alpha": 2.0, "beta": 1.0, "a": 1.0, "q": 2.0}, 1 + (4 - 2.25) / 2),
    "nce_aul": ({"alpha": 2.0, "beta": 1.0, "a": 2.0, "q": 2.0}, 1 + (2.25 - 1) / 2),
    "nce_ael": ({"alpha": 2.0, "beta": 1.0, "a": 0.5}, 1 + math.exp(-1)),
}


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_at_even_odds(name):
    options, expected = CLOSED[name]
    loss = build_loss(name, 2, **options)
    assert loss(torch.zeros(3, 2), torch.tensor([0, 1, 1])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_finite_for_huge_logits(name, dtype):
    for right in (True, False):
        logits = torch.full((2, 10), -1e4, dtype=dtype)
        logits[:, 3] = 1e4
        logits.requires_grad_()
        per_sample = build_loss(name, 10).per_sample(logits, torch.tensor([3, 3] if right else [0, 9]))
        per_sample.sum().backward()
        assert per_sample.dtype == torch.float32
        assert per_sample.isfinite().all()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_of_soft_labels_it_is_the_expected_one(name):
    """And of one that is sure it is that of the class, with the same gradient."""
    logits, targets = _batch(10)
    loss = build_loss(name, 10)
    share = torch.rand(7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    by_class = [loss.per_sample(logits, torch.full((7,), c)) for c in range(10)]
    expected = (share * torch.stack(by_class, 1)).sum(1)
    torch.testing.assert_close(loss.per_sample(logits, share), expected)
    gradients = []
    for sure in (targets, torch.nn.functional.one_hot(targets, 10).double()):
        logits.grad = None
        loss(logits.requires_grad_(), sure).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_fp32_inside_autocast(name):
    logits, targets = _batch(10, torch.bfloat16)
    loss = build_loss(name, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss.per_sample(logits, targets)
    assert torch.equal(inside, loss.per_sample(logits.float(), targets))


def test_defaults_go_by_the_number_of_classes_and_yield_to_overrides():
    assert build_loss("nce_agce", 10).options == {"alpha": 1.0, "beta": 4.0, "a": 6.0, "q": 1.5}
    assert build_loss("nce_agce", 11).options == {"alpha": 10.0, "beta": 0.1, "a": 1.8, "q": 3.0}
    assert build_loss("nce_agce", 10, q=2).options == {"alpha": 1.0, "beta": 4.0, "a": 6.0, "q": 2.0}
    assert isinstance(build_loss("tce", 10, t=3.0).options["t"], int)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cee", {}, r"'cee' is not known; use one of ce, gce"),
        ("gce", {"p": 1}, r"gce has no option 'p'; it has q"),
        ("ce", {"q": 1}, r"ce has no option 'q'; it has none"),
        ("gce", {"q": 0}, r"loss_options.q of gce: 0 is not allowed; use a number > 0"),
        ("aul", {"a": 1.0}, r"a of aul: 1.0 is not allowed; use a number > 1"),
        ("tce", {"t": 2.5}, r"t of tce: 2.5 is not allowed; use a whole number >= 1"),
        ("sce", {"alpha": -1}, r"alpha of sce: -1 is not allowed; use a number >= 0"),
        ("mae", {"scale": float("nan")}, r"nan is not allowed"),
        ("mae", {"scale": float("inf")}, r"inf is not allowed"),
        ("mae", {"scale": "2"}, r"'2' is not allowed"),
        ("mae", {"scale": True}, r"True is not allowed"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_loss(name, 10, **options)
