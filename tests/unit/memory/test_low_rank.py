"""Thin products against the dense matrix and torch's SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.memory.low_rank import LinearSketch, top_pairs

steady = settings(deadline=None, derandomize=True, max_examples=60)


def tokens(batch: int, length: int, d_out: int, d_in: int, decay: float, seed: int):
    """Output gradients and inputs whose product's spectrum falls by ``decay`` powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.logspace(0, -decay, length)[:, None]
    gradients = loud * torch.randn(batch, length, d_out, generator=generator)
    return gradients, torch.randn(batch, length, d_in, generator=generator)


@steady
@given(
    length=st.integers(1, 30),
    d_out=st.integers(1, 20),
    d_in=st.integers(1, 20),
    rank=st.integers(1, 4),
    decay=st.floats(0.0, 4.0),
    seed=st.integers(0, 1000),
)
def test_the_pairs_hold_what_the_best_ones_hold(length, d_out, d_in, rank, decay, seed):
    gradients, inputs = tokens(2, length, d_out, d_in, decay, seed)
    found = top_pairs(gradients, inputs, rank)
    assert found.left.shape == (2, d_out, rank) and found.right.shape == (2, rank, d_in)
    dense = gradients.double().mT @ inputs.double()
    values = torch.linalg.svdvals(dense)
    for b in range(2):
        best = float(values[b, :rank].square().sum())
        held = float(found.right[b].square().sum())
        assert 0.995 * best - 1e-9 <= held <= (1 + 1e-4) * best + 1e-9
        error = float((found.left[b].double() @ found.right[b].double() - dense[b]).square().sum())
        assert error == pytest.approx(
            float(dense[b].square().sum()) - held, abs=1e-4 * float(dense[b].norm() ** 2)
        )


@steady
@given(st.integers(1, 9), st.integers(0, 1000))
def test_they_are_torchs_own_where_the_rank_is_small(length, seed):
    gradients, inputs = tokens(1, length, 20, 16, 1.0, seed)
    u, s, v = torch.linalg.svd(gradients[0].double().T @ inputs[0].double(), full_matrices=False)
    found = top_pairs(gradients, inputs, 2)
    expected = (u[:, :2] * s[:2]) @ v[:2]
    if length > 2 and s[1] - s[2] < 0.1 * s[0]:
        return  # pairs that are nearly equal may stand for each other
    scale = float(s[0])
    torch.testing.assert_close(found.left[0] @ found.right[0], expected.float(), rtol=1e-3, atol=1e-3 * scale)


def test_padding_changes_nothing():
    gradients, inputs = tokens(1, 12, 20, 16, 2.0, 1)
    found = top_pairs(gradients, inputs, 2)
    empty = (torch.zeros(1, 9, 20), torch.zeros(1, 9, 16))
    padded = top_pairs(torch.cat([gradients, empty[0]], 1), torch.cat([inputs, empty[1]], 1), 2)
    torch.testing.assert_close(padded.left @ padded.right, found.left @ found.right, rtol=1e-3, atol=1e-4)


def test_a_gradient_of_zeros_gives_zeros():
    found = top_pairs(torch.zeros(1, 3, 5), torch.ones(1, 3, 4), 2)
    assert not found.right.any() and bool(torch.isfinite(found.left).all())


@steady
@given(
    d_out=st.integers(1, 40), d_in=st.integers(1, 40), true_rank=st.integers(1, 4), seed=st.integers(0, 1000)
)
def test_a_sum_of_low_rank_is_read_exactly_whatever_the_portions(d_out, d_in, true_rank, seed):
    generator = torch.Generator().manual_seed(seed)
    span = torch.randn(true_rank, d_in, generator=generator)
    gradients = torch.randn(30, d_out, generator=generator)
    inputs = torch.randn(30, true_rank, generator=generator) @ span
    sketch = LinearSketch(d_out, d_in, 4, "cpu")
    for part in torch.arange(30).split(7):
        sketch.add(gradients[part], inputs[part])
    exact = gradients.T @ inputs
    found = sketch.read()
    assert found.left.shape[1] <= 4
    error = float((found.dense() - exact).norm())
    assert error <= 1e-3 * float(exact.norm()) + 1e-5
