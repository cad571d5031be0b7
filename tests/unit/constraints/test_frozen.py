"""The most important weights stand still, bit for bit, whatever the optimizer remembers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from constrained_adapters.constraints.attach import attach
from constrained_adapters.constraints.frozen import FrozenWeightsConstraint, kth_largest


def weights_and_importance(seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: nn.Parameter(torch.randn(*shape, generator=generator))
        for name, shape in {"a": (5, 4), "b": (7,), "c": (3, 2)}.items()
    }
    return weights, {name: torch.rand(p.shape, generator=generator) for name, p in weights.items()}


def masks(weights, importance, share):
    """By sorting everything."""
    whole = torch.cat([importance[name].reshape(-1) for name in weights])
    count = int(share * len(whole))
    least = whole.sort(descending=True).values[count - 1] if count else float("inf")
    return {name: importance[name] >= least for name in weights}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_elements_do_not_move_and_others_do(optimizer):
    weights, importance = weights_and_importance()
    held = masks(weights, importance, 0.2)
    stepper = optimizer(weights.values(), lr=0.1, weight_decay=0.1)

    def step():
        stepper.zero_grad()
        sum((p - 3.0).square().sum() for p in weights.values()).backward()
        stepper.step()

    step()  # so that momentum is there before the constraint is
    constraint = FrozenWeightsConstraint(weights, importance, 0.2)
    before = {name: p.detach().clone() for name, p in weights.items()}
    attachment = attach(constraint, domain="law")
    for _ in range(3):
        step()
    attachment.remove()
    for name, p in weights.items():
        assert torch.equal(p[held[name]], before[name][held[name]])
        assert bool((p[~held[name]] != before[name][~held[name]]).all())
    assert constraint.describe() == {"frozen_ratio": 6 / 33}
    step()
    assert all(bool((p != before[name]).all()) for name, p in weights.items())


def test_removed_ratio_is_that_of_the_norms():
    weights, importance = weights_and_importance()
    held = masks(weights, importance, 0.3)
    constraint = FrozenWeightsConstraint(weights, importance, 0.3)
    for p in weights.values():
        p.grad = torch.randn_like(p)
    gradients = {name: p.grad.clone() for name, p in weights.items()}
    constraint.before_step()
    removed = sum(float(gradients[name][held[name]].square().sum()) for name in weights)
    whole = sum(float(gradients[name].square().sum()) for name in weights)
    assert float(constraint.measurements()["removed_ratio"]) == pytest.approx((removed / whole) ** 0.5)
    for name, p in weights.items():
        assert torch.equal(p.grad, gradients[name].masked_fill(held[name], 0.0))


def test_nothing_is_frozen_at_share_zero_or_where_nothing_matters():
    weights, importance = weights_and_importance()
    assert FrozenWeightsConstraint(weights, importance, 0.0).parameters == []
    nothing = {name: torch.zeros_like(p) for name, p in weights.items()}
    assert FrozenWeightsConstraint(weights, nothing, 0.5).describe() == {"frozen_ratio": 0.0}


def test_a_transposed_gradient_is_zeroed_too():
    p = nn.Parameter(torch.randn(3, 4))
    importance = torch.zeros(3, 4)
    importance[1, 2] = 1.0
    constraint = FrozenWeightsConstraint({"p": p}, {"p": importance}, 0.5)
    p.grad = torch.randn(4, 3).T
    constraint.before_step()
    assert float(p.grad[1, 2]) == 0.0
    assert int((p.grad == 0.0).sum()) == 1


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0.0, 2.0**90, width=32), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    k=st.integers(1, 30),
)
def test_the_kth_largest_is_that_of_sorting(values, cut, k):
    whole = torch.tensor(values, dtype=torch.float32)
    positive = sorted((float(v) for v in whole if v > 0.0), reverse=True)
    found = kth_largest([whole[:cut], whole[cut:]], k)
    if len(positive) >= k:
        assert found == positive[k - 1]
    else:
        assert [v for v in positive if v >= found] == positive
