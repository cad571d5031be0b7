"""The step of a trained weight keeps out of what is protected; the weight keeps what it holds there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.weight_step import WeightStepConstraint


def orthonormal(width: int, count: int, seed: int = 0) -> torch.Tensor:
    columns = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(columns).Q


def weight(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))


def fill(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_protected_inputs_get_the_same_output_after_any_steps(optimizer_class, transposed):
    shape = (12, 7) if transposed else (7, 12)
    bound, free, basis = weight(*shape), weight(5, seed=2), orthonormal(12, 4)
    inputs = basis @ torch.randn(4, 20, generator=torch.Generator().manual_seed(3))
    orient = (lambda m: m.T) if transposed else (lambda m: m)
    start, outputs = bound.detach().clone(), orient(bound.detach()) @ inputs
    constraint = WeightStepConstraint(
        {"w": bound}, {"w": basis}, free=[free], transposed=["w"] if transposed else []
    )
    attachment = attach(constraint, domain="law")
    optimizer = optimizer_class([bound, free], lr=0.05, weight_decay=0.1)
    for step in range(5):
        fill([bound, free], step)
        optimizer.step()
    attachment.remove()
    torch.testing.assert_close(orient(bound.detach()) @ inputs, outputs, rtol=1e-4, atol=1e-4)
    assert float((bound.detach() - start).norm()) > 0.1
    assert 0.0 < float(constraint.measurements()["removed_ratio"]) < 1.0
    assert constraint.describe() == {"closed_ratio": 4 / 12, "closed_directions": 4.0}
    assert constraint.parameters[0] is bound


@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_a_step_whose_closure_makes_the_gradient_is_projected(optimizer_class):
    bound, basis = weight(7, 12), orthonormal(12, 4)
    start = bound.detach().clone()
    attachment = attach(WeightStepConstraint({"w": bound}, {"w": basis}), domain="law")
    optimizer = optimizer_class([bound], lr=0.05)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((bound - 1.0) ** 2).sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        optimizer.zero_grad()
    attachment.remove()
    step = bound.detach() - start
    assert float(step.norm()) > 0.1
    assert float((step @ basis).norm()) < 1e-5


@given(rank=st.integers(1, 5), width=st.integers(6, 16), seed=st.integers(0, 50))
def test_one_sgd_step_is_the_projected_gradient_step(rank, width, seed):
    """Brute force in float64: plain gradient descent with G(I - UU^T)."""
    bound, basis = weight(4, width, seed=seed), orthonormal(width, rank, seed)
    fill([bound], seed + 1)
    projector = torch.eye(width).double() - basis.double() @ basis.double().T
    wanted = bound.detach().double() - 0.3 * bound.grad.double() @ projector
    attachment = attach(WeightStepConstraint({"w": bound}, {"w": basis}), domain="law")
    SGD([bound], lr=0.3).step()
    attachment.remove()
    torch.testing.assert_close(bound.detach().double(), wanted, rtol=1e-4, atol=1e-5)


def test_without_a_basis_steps_are_plain_bit_for_bit():
    ends = []
    for bound in (False, True):
        w = weight(4, 6)
        constraint = WeightStepConstraint({"w": w}, {"w": orthonormal(6, 0)} if bound else {})
        attachment = attach(constraint, domain="law")
        optimizer = AdamW([w], lr=0.1)
        fill([w], 5)
        optimizer.step()
        attachment.remove()
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_a_matrix_without_a_gradient_and_a_step_unseen_are_left_alone():
    bound, basis = weight(4, 6), orthonormal(6, 2)
    constraint = WeightStepConstraint({"w": bound}, {"w": basis})
    start = bound.detach().clone()
    constraint.before_step()
    assert float(constraint.measurements()["removed_ratio"]) == 0.0
    constraint.after_step()
    assert torch.equal(bound.detach(), start)
    fill([bound], 1)
    constraint.before_step()
    constraint.after_step()
    with torch.no_grad():
        bound.add_(1.0)
    constraint.after_step()  # the copy belongs to the step before
    assert torch.equal(bound.detach(), start + 1.0)


def test_bfloat16_stays_bfloat16():
    bound, basis = weight(4, 6, dtype=torch.bfloat16), orthonormal(6, 2)
    attachment = attach(WeightStepConstraint({"w": bound}, {"w": basis}), domain="law")
    before = bound.detach().clone()
    fill([bound], 1)
    SGD([bound], lr=0.5).step()
    attachment.remove()
    assert bound.dtype is torch.bfloat16
    step = (bound.detach() - before).float()
    assert float((step @ basis).norm() / step.norm()) < 0.02
