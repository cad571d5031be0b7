"""A stays outside the closed subspace, whatever the optimizer does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from constrained_adapters.constraints import SubspaceConstraint
from constrained_adapters.constraints.attach import attach


def orthonormal(width: int, count: int, seed: int = 0) -> torch.Tensor:
    columns = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(columns).Q


def constraint_of(pairs, closed: int = 3) -> tuple[SubspaceConstraint, dict[str, torch.Tensor]]:
    bases = {pair.module: orthonormal(pair.a.shape[1], closed) for pair in pairs}
    matrices = {pair.module: pair.a for pair in pairs}
    return SubspaceConstraint(matrices, bases, free=[pair.b for pair in pairs]), bases


def adafactor(parameters):
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=0.01, relative_step=False, scale_parameter=False, weight_decay=0.1)


OPTIMIZERS = {
    "adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "sgd": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adafactor": adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stays_outside_the_subspace_and_b_learns(make_pairs, set_gradients, name):
    pairs = make_pairs()
    constraint, bases = constraint_of(pairs)
    constraint.after_step()  # the start values are projected when training begins
    start = [(pair.a.detach().clone(), pair.b.detach().clone()) for pair in pairs]
    optimizer = OPTIMIZERS[name]([p for pair in pairs for p in (pair.a, pair.b)])
    attachment = attach(constraint, domain="law")
    try:
        for step in range(10):
            set_gradients(pairs, step)
            optimizer.step()
            for pair in pairs:
                assert (pair.a @ bases[pair.module]).abs().max() < 1e-5
    finally:
        attachment.remove()
    for pair, (a, b) in zip(pairs, start, strict=True):
        assert (pair.a - a).abs().max() > 0.01
        assert (pair.b - b).abs().max() > 0.01


def test_b_moves_exactly_as_without_constraint(make_pairs, set_gradients):
    moved = []
    for bound in (True, False):
        pairs = make_pairs()
        optimizer = AdamW([p for pair in pairs for p in (pair.a, pair.b)], lr=0.05)
        attachment = attach(constraint_of(pairs)[0], domain="law") if bound else None
        for step in range(3):
            set_gradients(pairs, step)
            optimizer.step()
        if attachment is not None:
            attachment.remove()
        moved.append([pair.b.detach() for pair in pairs])
    assert all(torch.equal(one, other) for one, other in zip(*moved, strict=True))


def test_the_adapter_gives_nothing_for_a_protected_input(make_pairs):
    pairs = make_pairs()
    constraint, bases = constraint_of(pairs)
    constraint.after_step()
    for pair in pairs:
        delta = pair.scaling * pair.b @ pair.a
        assert (delta @ bases[pair.module]).abs().max() < 1e-4
        assert delta.abs().max() > 0.1


def test_the_projection_is_idempotent(make_pairs, set_gradients):
    pairs = make_pairs()
    constraint, _ = constraint_of(pairs)
    set_gradients(pairs)
    constraint.before_step(), constraint.after_step()
    once = [(pair.a.detach().clone(), pair.a.grad.clone()) for pair in pairs]
    constraint.before_step(), constraint.after_step()
    for pair, (a, gradient) in zip(pairs, once, strict=True):
        torch.testing.assert_close(pair.a.detach(), a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(pair.a.grad, gradient, rtol=1e-5, atol=1e-6)
    assert float(constraint.measurements()["removed_ratio"]) < 1e-6


def test_removed_ratio_is_the_removed_norm_over_the_whole(make_pairs, set_gradients):
    pairs = make_pairs()
    constraint, _ = constraint_of(pairs)
    set_gradients(pairs)
    everything = [p for pair in pairs for p in (pair.a, pair.b)]
    before = torch.cat([p.grad.flatten() for p in everything])
    constraint.before_step()
    after = torch.cat([p.grad.flatten() for p in everything])
    expected = float((before - after).norm() / before.norm())
    assert 0.1 < expected < 0.9
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx(expected, rel=1e-5)


def test_facts_count_free_matrices_too(make_pairs):
    pairs = make_pairs()
    matrices = {pair.module: pair.a for pair in pairs}
    constraint = SubspaceConstraint(matrices, {"q": orthonormal(12, 4), "v": torch.zeros(12, 0)})
    assert constraint.parameters == [pairs[0].a] or constraint.parameters[0] is pairs[0].a
    assert len(constraint.parameters) == 1
    assert constraint.describe() == {"closed_ratio": 4 / 32, "closed_directions": 4 / 3}


def test_a_parameter_without_gradient_is_let_be(make_pairs, set_gradients):
    pairs = make_pairs()
    constraint, bases = constraint_of(pairs)
    set_gradients(pairs)
    pairs[0].a.grad = None
    constraint.before_step()
    assert pairs[0].a.grad is None
    assert (pairs[1].a.grad @ bases["v"]).abs().max() < 1e-5
    for pair in pairs:
        pair.a.grad = pair.b.grad = None
    constraint.before_step()
    assert float(constraint.measurements()["removed_ratio"]) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_is_projected_within_its_rounding(
    make_pairs, set_gradients, dtype
):
    pairs = make_pairs(dtype=dtype)
    constraint, bases = constraint_of(pairs)
    set_gradients(pairs)
    constraint.before_step(), constraint.after_step()
    for pair in pairs:
        assert pair.a.dtype == pair.a.grad.dtype == dtype
        assert (pair.a.float() @ bases[pair.module]).abs().max() < 0.05
        assert (pair.a.grad.float() @ bases[pair.module]).abs().max() < 0.05


def test_a_large_half_precision_gradient_does_not_overflow():
    matrix = nn.Parameter(torch.zeros(4, 64, dtype=torch.float16))
    matrix.grad = torch.full_like(matrix, 30_000.0)  # its norm, 480,000, is no float16
    constraint = SubspaceConstraint({"q": matrix}, {"q": orthonormal(64, 2)})
    constraint.before_step()
    assert 0.0 < float(constraint.measurements()["removed_ratio"]) < 1.0
