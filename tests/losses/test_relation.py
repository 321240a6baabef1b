"""RelationLoss on one rank: formula, float64 gradients, closed forms, edges. Ranks: tests/distributed/."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rmd_dist.errors import ConfigError
from rmd_dist.losses import RelationLoss, relation_forms, relation_matrices
from rmd_dist.losses.relation_forms import cheaper
from tests.losses.naive_graph import features, naive_terms

FORMS = ["rows", "gram"]
TARGETS = ["identity", "teacher"]


def _gradient(loss: Tensor, student: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, student)
    return gradient


def _compare(student: Tensor, teacher: Tensor, value: float, gradient: float, **options: object) -> None:
    """Relative errors of all terms below `value`, and of the gradient, as a vector, below `gradient`."""
    form = options.pop("form")
    exact = student.double().requires_grad_()
    own = student.clone().requires_grad_()
    expected = naive_terms(exact, teacher.double(), **options)
    terms = RelationLoss(form=form, **options)(own, teacher)
    for name, got, right in zip(terms._fields, terms, expected, strict=True):
        assert got.dtype == own.dtype
        assert got.item() == pytest.approx(right.item(), rel=value, abs=1e-12), name
    right = _gradient(expected[0], exact)
    error = (_gradient(terms.loss, own).double() - right).norm()
    assert error <= gradient * right.norm(), f"relative error of the gradient: {error / right.norm():.1e}"


def _slow_loop(student: list[list[float]], teacher: list[list[float]]) -> tuple[float, float]:
    def standardized(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        norm = sum((v - mean) ** 2 for v in row) ** 0.5
        return [(v - mean) / norm for v in row]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    s, t = [standardized(r) for r in student], [standardized(r) for r in teacher]
    node = edge = 0.0
    for i, j in itertools.product(range(len(s)), repeat=2):
        edge += (dot(t[i], t[j]) - dot(s[i], s[j])) ** 2
        node += (dot(t[i], s[j]) - (i == j)) ** 2
    return node**0.5, edge**0.5


@pytest.mark.parametrize("form", FORMS)
def test_equals_a_slow_loop_of_the_formula(form):
    student, teacher = features(7, 5)
    node, edge = _slow_loop(student.tolist(), teacher.tolist())
    terms = RelationLoss(0.8, 0.35, form=form, reference_batch=None)(student.double(), teacher.double())
    assert terms.node.item() == pytest.approx(node, rel=1e-12)
    assert terms.edge.item() == pytest.approx(edge, rel=1e-12)
    assert terms.loss.item() == pytest.approx(0.8 * node + 0.35 * edge, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_closed_form(form):
    x = torch.tensor([3.0, 1.0, -1.0, -3.0])
    # teacher: opposite rows, E_t = [[1, -1], [-1, 1]]; student: equal rows, E_s all 1; N = [[1, 1], [-1, -1]]
    terms = RelationLoss(1.0, 1.0, form=form, reference_batch=None)(
        torch.stack([x, 2 * x]), torch.stack([x, 5 - x])
    )
    assert terms.edge.item() == pytest.approx(math.sqrt(8))
    assert terms.node.item() == pytest.approx(math.sqrt(0 + 1 + 1 + 4))


@pytest.mark.parametrize("batch", [2, 3, 64, 150])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_float64_gradients_in_both_weightings(form, target, batch):
    for reference in (None, 64):
        for kind in ("apart", "related"):
            student, teacher = features(batch, 20, kind)
            options = {"form": form, "node_target": target, "reference_batch": reference}
            _compare(student.double(), teacher.double(), 1e-10, 1e-8, **options)


@pytest.mark.parametrize("kind", ["apart", "related", "near"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_fp32_is_within_1e_6_in_value_and_1e_5_in_gradient(form, target, kind):
    for batch in (64, 700):
        for weights in ((0.8, 0.35), (0.0, 1.0), (1.0, 0.0)):
            options = {
                "form": form,
                "node_target": target,
                "node_weight": weights[0],
                "edge_weight": weights[1],
            }
            _compare(*features(batch, 128, kind), 1e-6, 1e-5, **options)


def test_blocks_make_no_difference(monkeypatch):
    student, teacher = features(300, 16, "related")
    for form in FORMS:
        monkeypatch.setitem(relation_forms.BLOCK_NUMEL, "cpu", 1)  # blocks of 64 rows
        _compare(student, teacher, 1e-6, 1e-5, form=form)


@pytest.mark.parametrize("form", FORMS)
def test_student_equal_to_the_teacher(form):
    _, teacher = features(40, 16, "related")
    student = teacher.clone().requires_grad_()
    terms = RelationLoss(0.0, 1.0, form=form)(student, teacher)
    assert terms.edge.item() == 0
    assert torch.equal(_gradient(terms.loss, student), torch.zeros_like(student))
    terms = RelationLoss(form=form, node_target="teacher")(student, teacher)
    assert terms.loss.item() == 0
    assert torch.equal(_gradient(terms.loss, student), torch.zeros_like(student))
    terms = RelationLoss(form=form)(student, teacher)
    assert terms.node.item() > 1  # the paper's target punishes a copy of a clustered teacher
    assert _gradient(terms.loss, student).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", [0.0, 0.1, -7e5])
def test_constant_rows_count_as_zero_rows_and_get_no_gradient(form, constant):
    student, teacher = features(6, 300)
    student[1] = constant
    student[4] = constant * (1 + 1e-7 * torch.randn(300))  # constant but for rounding
    teacher[2] = teacher[4] = constant
    student.requires_grad_()
    terms = RelationLoss(form=form, reference_batch=None)(student, teacher)
    gradient = _gradient(terms.loss, student)
    assert gradient.isfinite().all()
    assert gradient[[1, 4]].abs().max() == 0
    assert (gradient[[0, 2, 3, 5]].abs().amax(1) > 0).all()

    def zeroed(rows: Tensor, which: list[int]) -> Tensor:
        centred = rows.detach().double() - rows.detach().double().mean(1, keepdim=True)
        centred[which] = 0
        return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-30)

    s, t = zeroed(student, [1, 4]), zeroed(teacher, [2, 4])
    assert terms.edge.item() == pytest.approx((s @ s.T - t @ t.T).norm().item(), rel=1e-6)
    assert terms.node.item() == pytest.approx((t @ s.T - torch.eye(6)).norm().item(), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_all_rows_constant(form):
    student = torch.ones(3, 8, requires_grad=True)
    terms = RelationLoss(1.0, 1.0, form=form, reference_batch=None)(student, torch.zeros(3, 8))
    assert terms.node.item() == pytest.approx(3**0.5)
    assert terms.edge.item() == 0
    assert torch.equal(_gradient(terms.loss, student), torch.zeros(3, 8))


@pytest.mark.parametrize(("batch", "width", "reference"), [(2, 512, 64), (300, 64, 64), (2000, 128, None)])
@pytest.mark.parametrize("form", FORMS)
def test_the_teachers_graph_in_another_basis_is_no_difference(form, batch, width, reference):
    """All edges agree, no feature does: rounding alone must not pull as nothing else does."""
    teacher = torch.randn(batch, width, generator=torch.Generator().manual_seed(0))
    student = teacher[:, torch.randperm(width, generator=torch.Generator().manual_seed(1))].requires_grad_()
    apart = torch.randn(batch, width, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = RelationLoss(0.0, 1.0, form=form, reference_batch=reference)
    terms = loss(student, teacher)
    assert terms.edge.item() < 1e-3
    usual = _gradient(loss(apart, teacher).loss, apart).norm()
    assert _gradient(terms.loss, student).norm() < 3 * usual


@pytest.mark.parametrize("form", FORMS)
def test_no_sample_at_all_is_an_error(form):
    with pytest.raises(ValueError, match="at least one sample"):
        RelationLoss(form=form)(torch.zeros(0, 8), torch.zeros(0, 8))


@pytest.mark.parametrize("form", FORMS)
def test_one_sample_has_a_diagonal_and_nothing_else(form):
    for reference in (None, 64):
        for target in TARGETS:
            student, teacher = (f.double() for f in features(1, 12))
            options = {"form": form, "reference_batch": reference, "node_target": target}
            own = student.clone().requires_grad_()
            terms = RelationLoss(**options)(own, teacher)
            expected = naive_terms(student, teacher, reference_batch=reference, node_target=target)
            assert terms.node.item() == pytest.approx(expected[1].item(), rel=1e-10)
            assert terms.edge.item() == pytest.approx(0, abs=1e-12)
            assert _gradient(terms.loss, own).isfinite().all()


def test_reference_batch_is_what_a_graph_of_so_many_nodes_is_expected_to_have():
    student, teacher = (f.double() for f in features(7, 10, "related"))
    for size in (2, 4):
        subsets = [list(rows) for rows in itertools.combinations(range(7), size)]
        raw = [RelationLoss(reference_batch=None)(student[rows], teacher[rows]) for rows in subsets]
        terms = RelationLoss(reference_batch=size)(student, teacher)
        for name in ("node", "edge"):
            mean_square = sum(getattr(r, name).item() ** 2 for r in raw) / len(raw)
            assert getattr(terms, name).item() ** 2 == pytest.approx(mean_square, rel=1e-10)
    full, raw = (
        RelationLoss(reference_batch=7)(student, teacher),
        RelationLoss(reference_batch=None)(student, teacher),
    )
    for got, right in zip(full, raw, strict=True):
        assert got.item() == pytest.approx(right.item(), rel=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_loss_carries_gradient_and_only_to_the_student(form):
    student, teacher = (f.requires_grad_() for f in features(8, 6))
    terms = RelationLoss(form=form)(student, teacher)
    assert (terms.loss.requires_grad, terms.node.requires_grad, terms.edge.requires_grad) == (
        True,
        False,
        False,
    )
    (3 * terms.loss).backward()
    assert teacher.grad is None
    torch.testing.assert_close(
        student.grad, 3 * _gradient(RelationLoss(form=form)(student, teacher).loss, student)
    )
    with torch.no_grad():
        assert not RelationLoss(form=form)(student, teacher).loss.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_fp32_inside_autocast_and_for_half_precision_features(form):
    student, teacher = features(32, 64, "related")
    loss = RelationLoss(form=form)
    outside = loss(student.bfloat16().float(), teacher.bfloat16().float())
    half = student.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(half, teacher.bfloat16())
    assert inside.loss.dtype == torch.float32
    assert [v.item() for v in inside] == [v.item() for v in outside]
    assert _gradient(inside.loss, half).dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("widths", [(12, 20), (20, 12)])
def test_edges_match_features_of_different_width(form, widths):
    student, teacher = features(9, widths[0])[0], features(9, widths[1])[1]
    exact, own = student.double().requires_grad_(), student.double().requires_grad_()
    for reference in (None, 64):
        expected, _, edge = naive_terms(exact, teacher.double(), 0.0, 0.5, reference)
        terms = RelationLoss(0.0, 0.5, form=form, reference_batch=reference)(own, teacher)
        assert terms.edge.item() == pytest.approx(edge.item(), rel=1e-10)
        assert math.isnan(terms.node.item())
        torch.testing.assert_close(
            _gradient(terms.loss, own), _gradient(expected, exact), rtol=1e-8, atol=1e-10
        )
    with pytest.raises(
        ConfigError, match=rf"student has {widths[0]} .* teacher {widths[1]}: .*node_weight 0"
    ):
        RelationLoss(form=form)(student, teacher)


def test_auto_takes_the_cheaper_form(monkeypatch):
    assert [cheaper(b, 512, 1) for b in (64, 256, 512, 1024, 4096)] == ["rows"] * 3 + ["gram"] * 2
    assert cheaper(1024, 512, 8) == "rows"  # the D x D reduction costs more than the gather
    assert cheaper(65536, 512, 1024) == "gram"
    taken = []
    for name, form in list(relation_forms.FORMS.items()):
        monkeypatch.setitem(
            relation_forms.FORMS, name, lambda *a, name=name, form=form: (taken.append(name), form(*a))[1]
        )
    for batch in (8, 200):
        RelationLoss()(*features(batch, 16))
    assert taken == ["rows", "gram"]


def test_matrices_to_look_at():
    student, teacher = features(6, 30)
    matrices = relation_matrices(student, teacher)
    pearson = torch.corrcoef(torch.cat([teacher, student]).double()).float()
    torch.testing.assert_close(matrices.teacher, pearson[:6, :6])
    torch.testing.assert_close(matrices.student, pearson[6:, 6:])
    torch.testing.assert_close(matrices.node, pearson[:6, 6:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "columns"}, "'columns' is not known; use auto, rows or gram"),
        ({"node_target": "student"}, "'student' is not known; use identity or teacher"),
        ({"node_weight": -1.0}, "node_weight: -1.0 is out of range"),
        ({"edge_weight": float("nan")}, "edge_weight: nan is out of range"),
        ({"reference_batch": 1}, "reference_batch: 1 is too small"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        RelationLoss(**options)


@pytest.mark.parametrize("form", ["rows", "gram"])
def test_fp64_features_give_what_fp32_ones_do(form):
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(24, 16, generator=generator) for _ in "st")
    results = []
    for dtype in (torch.float32, torch.float64):
        features = student.to(dtype, copy=True).requires_grad_()
        terms = RelationLoss(form=form)(features, teacher.to(dtype))
        terms.loss.backward()
        results.append([*(t.double() for t in terms), features.grad.double()])
    for low, high in zip(*results, strict=True):
        torch.testing.assert_close(low, high, rtol=1e-5, atol=1e-6)
