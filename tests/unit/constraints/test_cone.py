"""The nearest gradient that goes against none of some others: against quadprog, and by its properties."""

from __future__ import annotations

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from constrained_adapters.constraints import cone
from constrained_adapters.constraints.cone import Products, dual_weights

steady = settings(deadline=None, derandomize=True, max_examples=80)
problems = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000))


def problem(num_domains: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-3, 2, num_domains, dtype=torch.float64)[:, None]
    old = torch.randn(num_domains, size, generator=generator, dtype=torch.float64) * scales
    return torch.randn(size, generator=generator, dtype=torch.float64), old


def project(gradient: torch.Tensor, old: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    weights = dual_weights(Products.of([gradient], [[row] for row in old]), margin)
    return gradient + (weights @ old.double()).to(gradient.dtype)


def nearest(gradient: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The same programme, in the primal."""
    rows = (old / old.norm(dim=1, keepdim=True)).numpy()
    return torch.from_numpy(
        quadprog.solve_qp(np.eye(len(gradient)), gradient.numpy(), rows.T, np.zeros(len(rows)))[0]
    )


@steady
@given(problems)
def test_it_agrees_with_quadprog(sizes):
    gradient, old = problem(*sizes)
    rows = old / old.norm(dim=1, keepdim=True)
    spectrum = torch.linalg.eigvalsh(rows @ rows.T)
    assume(not bool(((spectrum > 1e-12) & (spectrum < 1e-6)).any()))  # there either solver is off by rounding
    expected = nearest(gradient, old)
    torch.testing.assert_close(project(gradient, old), expected, rtol=1e-5, atol=1e-6)


def test_nearly_dependent_old_gradients_are_still_not_gone_against():
    gradient, old = problem(5, 5, 204)  # the smallest eigenvalue of their cosines is 2e-9
    rows = old / old.norm(dim=1, keepdim=True)
    assert float((rows @ project(gradient, old)).min()) >= -1e-8


@steady
@given(problems, st.sampled_from([torch.float32, torch.float64]))
def test_no_product_with_an_old_gradient_is_negative(sizes, dtype):
    gradient, old = (x.to(dtype) for x in problem(*sizes))
    projected = project(gradient, old)
    assert projected.dtype == dtype and projected.shape == gradient.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-8
    assert float((old / old.norm(dim=1, keepdim=True) @ projected).min()) >= -tolerance
    assert float(projected.norm()) <= float(gradient.norm()) * (1 + 1e-6)


@steady
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_one_memory_gives_the_closed_form_of_agem(size, seed):
    gradient, old = problem(1, size, seed)
    product = float(old[0] @ gradient)
    expected = gradient - min(product, 0.0) / float(old[0] @ old[0]) * old[0]
    torch.testing.assert_close(project(gradient, old), expected, rtol=1e-8, atol=1e-9)


def test_a_gradient_without_conflict_is_given_back_bit_for_bit():
    gradient, old = problem(3, 12, 5)
    old = old * (old @ gradient).sign()[:, None]
    assert torch.equal(project(gradient, old), gradient)


@pytest.mark.parametrize("copies", [2, 5])
def test_repeated_and_parallel_old_gradients_change_nothing(copies):
    gradient, old = problem(2, 9, 3)
    old = -old * (old @ gradient).sign()[:, None]
    many = torch.cat([old * 10.0**i for i in range(copies)])
    torch.testing.assert_close(project(gradient, many), project(gradient, old), rtol=1e-6, atol=1e-8)


def test_opposite_old_gradients_leave_only_what_is_orthogonal_to_both():
    gradient, old = problem(1, 5, 1)
    direction = old[0] / old[0].norm()
    projected = project(gradient, torch.stack([old[0], -old[0]]))
    torch.testing.assert_close(projected, gradient - (gradient @ direction) * direction, rtol=1e-5, atol=1e-6)


def test_zero_old_gradients_bind_nothing():
    gradient, old = problem(1, 5, 2)
    old = -old * (old @ gradient).sign()[:, None]
    alone = project(gradient, old)
    with_zero = project(gradient, torch.cat([old, torch.zeros(2, 5, dtype=torch.float64)]))
    torch.testing.assert_close(with_zero, alone, rtol=1e-7, atol=1e-9)
    assert torch.equal(project(gradient, torch.zeros(2, 5, dtype=torch.float64)), gradient)


def test_tiny_old_gradients_bind_as_large_ones_do():
    gradient, old = problem(2, 7, 4)
    small = project(gradient.float(), old.float() * 1e-18)
    torch.testing.assert_close(small, project(gradient.float(), old.float()), rtol=1e-4, atol=1e-5)


@steady
@given(problems, st.sampled_from([0.05, 0.5]))
def test_a_margin_is_the_least_weight_as_in_the_authors_code(sizes, margin):
    """min ½ vᵀ G v + ⟨v, p⟩ with v ≥ γ, which is their call of the solver."""
    gradient, old = problem(*sizes)
    old = old / old.norm(dim=1, keepdim=True) * torch.linspace(0.5, 2.0, len(old)).double()[:, None]
    found = dual_weights(Products.of([gradient], [[row] for row in old]), margin)
    with_own = old @ gradient
    if not bool((with_own < 0.0).any()):
        assert torch.equal(found, torch.zeros_like(with_own))
        return
    # A ridge as ours, on rows of unit length.
    gram = (old @ old.T + 1e-10 * torch.diag(old.norm(dim=1) ** 2)).numpy()
    wanted = quadprog.solve_qp(gram, -with_own.numpy(), np.eye(len(old)), np.full(len(old), margin))[0]
    change = torch.from_numpy(wanted) @ old
    torch.testing.assert_close(found @ old, change, rtol=1e-5, atol=1e-6 * float(change.norm()))
    assert float(found.min()) >= margin * (1 - 1e-9)


@steady
@given(problems)
def test_projecting_twice_is_projecting_once(sizes):
    gradient, old = problem(*sizes)
    once = project(gradient, old)
    torch.testing.assert_close(project(once, old), once, rtol=1e-5, atol=1e-6)


@steady
@given(problems)
def test_what_is_given_back_is_no_farther_than_any_other_in_the_cone(sizes):
    gradient, old = problem(*sizes)
    distance = float((project(gradient, old) - gradient).norm())
    generator = torch.Generator().manual_seed(sizes[2])
    for _ in range(5):
        other = project(torch.randn(len(gradient), generator=generator, dtype=torch.float64), old)
        assert distance <= float((other - gradient).norm()) + 1e-6


def test_many_nearly_parallel_old_gradients_are_solved():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(40, generator=generator, dtype=torch.float64)
    old = common + 1e-4 * torch.randn(64, 40, generator=generator, dtype=torch.float64)
    gradient = torch.randn(40, generator=generator, dtype=torch.float64) - common
    projected = project(gradient, old)
    assert float((old / old.norm(dim=1, keepdim=True) @ projected).min()) >= -1e-5


def test_products_add_up_over_parameters_and_pieces(monkeypatch):
    gradient, old = problem(3, 24, 0)
    whole = Products.of([gradient], [[row] for row in old])
    parts = [(0, 6, (2, 3)), (6, 24, (18,))]
    cut = [gradient[i:j].view(shape) for i, j, shape in parts]
    monkeypatch.setattr(cone, "PIECE", 5)
    found = Products.of(cut, [[row[i:j].view(shape) for i, j, shape in parts] for row in old])
    for name in ("gram", "with_own", "own_square"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
