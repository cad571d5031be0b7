"""Cross-entropy, distillation and their sum, against the formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.objectives import (
    CrossEntropy,
    Distillation,
    SelectiveTokenMasking,
    WeightedSum,
    make_objective,
)
from constrained_adapters.objectives.distillation import IDS, LOG_PROBS, _top_and_rest

N, V = 7, 11


def drawn(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, V, generator=generator, dtype=dtype)
    return logits.requires_grad_(True), torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_cross_entropy_is_its_formula_with_and_without_weights(smoothing):
    logits, targets = drawn()
    log_probs = logits.log_softmax(-1)
    each = -(1 - smoothing) * log_probs[range(N), targets] - smoothing * log_probs.mean(-1)
    objective = CrossEntropy(smoothing)
    assert torch.allclose(objective.loss(logits, targets, {}), each.sum())
    weight = torch.rand(N, dtype=torch.float64)
    assert torch.allclose(objective.loss(logits, targets, {"weight": weight}), (each * weight).sum())


def test_positions_without_a_label_are_never_smoothed():
    """PyTorch's own loss over the kept positions; not the mean that smooths ignored ones too."""
    logits, targets = drawn()
    labels = targets.clone()
    labels[::2] = -100
    kept = labels != -100
    ours = CrossEntropy(0.3).loss(logits[kept], targets[kept], {})
    right = nn.functional.cross_entropy(
        logits, labels, ignore_index=-100, label_smoothing=0.3, reduction="sum"
    )
    uniform = -logits.log_softmax(-1).mean(-1)
    wrong = 0.7 * nn.functional.cross_entropy(logits, labels, reduction="sum") + 0.3 * uniform.sum()
    assert torch.allclose(ours, right)
    assert abs((ours - wrong).item()) > 1.0


def columns_of(teacher: torch.Tensor, temperature: float, k: int) -> dict[str, torch.Tensor]:
    ids = teacher.topk(k, dim=-1).indices
    return {IDS: ids.int(), LOG_PROBS: _top_and_rest(teacher / temperature, ids)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_with_all_tokens_but_one_distillation_is_the_divergence(temperature):
    (student, targets), (teacher, _) = drawn(1, torch.float32), drawn(2, torch.float32)
    q = (teacher / temperature).softmax(-1).double()
    p = (student / temperature).softmax(-1).double()
    expected = temperature**2 * (q * (q.log() - p.log())).sum()
    loss = Distillation(temperature, V).loss(
        student, targets, columns_of(teacher.detach(), temperature, V - 1)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.allclose(gradient.double(), temperature * (p - q), atol=1e-5)


@given(seed=st.integers(0, 999), k=st.integers(1, V - 1), temperature=st.floats(0.3, 5.0))
def test_fewer_tokens_give_at_most_the_divergence_and_agreement_gives_nothing(seed, k, temperature):
    (student, targets), (teacher, _) = drawn(seed, torch.float32), drawn(seed + 1000, torch.float32)
    objective = Distillation(temperature, k)

    def loss(columns):
        return objective.loss(student, targets, columns_of(columns, temperature, k)).item()

    full = Distillation(temperature, V).loss(
        student, targets, columns_of(teacher.detach(), temperature, V - 1)
    )
    assert -1e-5 <= loss(teacher.detach()) <= full.item() * (1 + 1e-5) + 1e-5
    assert loss(student.detach()) == pytest.approx(0.0, abs=1e-4)


def test_where_the_rest_is_nothing_the_gradient_is_finite():
    student = torch.zeros(1, V)
    student[0, 0] = 80.0
    student.requires_grad_(True)
    teacher = torch.zeros(1, V)
    teacher[0, 0] = 90.0
    loss = Distillation(1.0, 1).loss(student, torch.tensor([0]), columns_of(teacher, 1.0, 1))
    (gradient,) = torch.autograd.grad(loss, student)
    assert math.isfinite(loss.item()) and gradient.isfinite().all()


def test_a_sum_is_its_weighted_terms():
    logits, targets = drawn(3, torch.float32)
    teacher, _ = drawn(4, torch.float32)
    columns = columns_of(teacher.detach(), 2.0, 3)
    plain, distilled = CrossEntropy(), Distillation(2.0, 3)
    both = WeightedSum({"a": (1.0, plain), "b": (0.25, distilled), "off": (0.0, plain)})
    expected = plain.loss(logits, targets, {}) + 0.25 * distilled.loss(logits, targets, columns)
    assert torch.allclose(both.loss(logits, targets, columns), expected)
    parts = both.weighted_terms(logits, targets, columns)
    assert set(parts) == {"a", "b"} and torch.allclose(parts["a"], plain.loss(logits, targets, {}))


def test_an_objective_is_made_from_names():
    assert make_objective(label_smoothing=0.1).label_smoothing == 0.1
    made = make_objective(
        ["distillation", "stm"],
        label_smoothing=0.1,
        weights={"distillation": 0.5},
        settings={"distillation": {"temperature": 4.0}, "stm": {"threshold": 3.0}},
    )
    assert [(name, weight) for name, (weight, _) in made._terms.items()] == [
        ("stm", 1.0),
        ("cross_entropy", 1.0),
        ("distillation", 0.5),
    ]
    stm, plain, distillation = (objective for _, objective in made._terms.values())
    assert (stm.threshold, plain.label_smoothing, distillation.temperature) == (3.0, 0.1, 4.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(1.0), "label smoothing is out of range"),
        (lambda: CrossEntropy(-0.1), "label smoothing is out of range"),
        (lambda: Distillation(temperature=0.0), "temperature of distillation is out of range"),
        (lambda: Distillation(temperature=np.inf), "temperature of distillation is out of range"),
        (lambda: Distillation(top_k=0), "keeps no token of the teacher"),
        (lambda: SelectiveTokenMasking(1.0), "perplexity under 1"),
        (lambda: WeightedSum({}), "nothing is to be minimised"),
        (lambda: WeightedSum({"a": (-1.0, CrossEntropy())}), "weight of the objective 'a' is out of range"),
        (lambda: make_objective(settings={"stm": {"threshold": 2.0}}), "objective 'stm' has no effect"),
        (lambda: make_objective(weights={"stm": 2.0}), "objective 'stm' has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ConfigError, match=message) as error:
        make()
    assert 2 <= len(str(error.value).splitlines()) <= 4


def test_an_unknown_objective_is_told_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'distilation'(?s:.*)Try: +distillation"):
        make_objective(["distilation"])
