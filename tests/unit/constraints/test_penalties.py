"""Penalties: analytic gradients against autograd, the papers' formulas, and how they meet the step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.ewc_lora import EWCLoRAConstraint
from constrained_adapters.constraints.olora import OLoRAConstraint
from constrained_adapters.constraints.penalty import PenaltyConstraint
from constrained_adapters.memory.diagonal import DiagonalMemory


@dataclass
class Pair:
    module: str
    a: nn.Parameter
    b: nn.Parameter
    scaling: float = 1.7


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_ewc(seed: int, weight: float) -> tuple[PenaltyConstraint, Tensor]:
    theta = nn.Parameter(random(seed, 4, 3))
    finished = [(random(seed + k, 4, 3).square(), random(seed + 10 + k, 4, 3)) for k in range(3)]
    memory = DiagonalMemory()
    for k, (fisher, anchor) in enumerate(finished):
        memory = memory.with_domain(f"{k}", {"w": fisher}, {"w": anchor})
    constraint = EWCConstraint({"w": theta}, memory.importance, memory.anchor, memory.constant, weight)
    return constraint, weight / 2 * sum((f * (theta - old) ** 2).sum() for f, old in finished)


def make_ewc_lora(seed: int, weight: float) -> tuple[PenaltyConstraint, Tensor]:
    pairs = [
        Pair(f"{i}", nn.Parameter(random(seed + i, 2, 5)), nn.Parameter(random(seed + 9 + i, 4, 2)))
        for i in range(2)
    ]
    importance = {pair.module: random(seed + 20 + i, 4, 5).square() for i, pair in enumerate(pairs)}
    penalty = torch.zeros(())
    for pair in pairs:
        delta = (pair.scaling * pair.b @ pair.a).reshape(-1)
        penalty = penalty + weight / 2 * delta @ torch.diag(importance[pair.module].reshape(-1)) @ delta
    return EWCLoRAConstraint(pairs, importance, weight), penalty


def make_olora(seed: int, weight: float) -> tuple[PenaltyConstraint, Tensor]:
    a = [nn.Parameter(random(seed + i, 2, 5)) for i in range(2)]
    earlier = [[random(seed + 20 + 2 * k + i, 3, 5) for k in range(2)] for i in range(2)]
    penalty = torch.zeros(())
    for new, olds in zip(a, earlier, strict=True):
        for old in olds:
            penalty = penalty + weight * (old @ new.T).abs().sum()
    return OLoRAConstraint(a, [torch.cat(olds) for olds in earlier], weight), penalty


MAKERS = {"ewc": make_ewc, "ewc_lora": make_ewc_lora, "olora": make_olora}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@given(seed=st.integers(0, 1000), weight=st.floats(0.01, 100))
def test_the_gradient_that_is_added_is_that_of_the_papers_penalty(make, seed, weight):
    constraint, penalty = make(seed, weight)
    wanted = torch.autograd.grad(penalty, constraint.parameters)
    own = [random(seed + 50 + i, *p.shape) for i, p in enumerate(constraint.parameters)]
    for p, g in zip(constraint.parameters, own, strict=True):
        p.grad = g.clone()
    constraint.before_step()
    for p, g, more in zip(constraint.parameters, own, wanted, strict=True):
        torch.testing.assert_close(p.grad, g + more, rtol=1e-4, atol=1e-4 * max(1.0, weight))
    measured = constraint.measurements()
    torch.testing.assert_close(measured["penalty"], penalty.detach(), rtol=1e-4, atol=1e-4)
    norms = [torch.cat([each.reshape(-1) for each in group]).norm() for group in (wanted, own)]
    torch.testing.assert_close(measured["penalty_ratio"], norms[0] / norms[1], rtol=1e-4, atol=1e-5)
    flat = [torch.cat([each.reshape(-1) for each in group]) for group in (wanted, own)]
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0)
    torch.testing.assert_close(measured["penalty_cosine"], cosine, rtol=1e-3, atol=1e-5)
    assert constraint.describe()["penalty_weight"] == weight


def test_it_is_added_once_a_step_however_many_batches_are_accumulated():
    results = []
    for batches in (1, 4):
        constraint, _ = make_ewc(0, 1.0)
        theta = constraint.parameters[0]
        attachment = attach(constraint, domain="law")
        optimizer = torch.optim.SGD([theta], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(batches):
                ((theta**2).sum() / batches).backward()
            optimizer.step()
        attachment.remove()
        results.append(theta.detach().clone())
    torch.testing.assert_close(results[0], results[1])


def test_a_parameter_without_a_gradient_stays_without():
    constraint, _ = make_olora(0, 1.0)
    constraint.parameters[0].grad = torch.zeros(2, 5)
    constraint.before_step()
    assert constraint.parameters[1].grad is None
    assert constraint.parameters[0].grad.abs().sum() > 0
    constraint.parameters[0].grad = None
    constraint.before_step()
    assert float(constraint.measurements()["penalty_ratio"]) == 0.0


def test_olora_ends_orthogonal_where_nothing_pulls_back():
    constraint, _ = make_olora(3, 1.0)
    optimizer = torch.optim.SGD(constraint.parameters, lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    first = None
    for _ in range(300):
        for p in constraint.parameters:
            p.grad = torch.zeros_like(p)
        constraint.before_step()
        first = float(constraint.measurements()["penalty"]) if first is None else first
        optimizer.step()
        schedule.step()
    assert float(constraint.measurements()["penalty"]) < 0.01 * first
