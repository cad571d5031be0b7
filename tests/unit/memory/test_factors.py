"""Compressed positive semi-definite matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.memory.factors import Factor

# The first call on a busy machine can take seconds, and a test is the same on every run.
steady = settings(deadline=None, derandomize=True, max_examples=60)


def covariance(width: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(1, -2, rank)
    columns = torch.randn(width, rank, generator=generator) * spread
    return columns @ columns.T / rank


@steady
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_a_share_of_one_gives_the_matrix_back(width, rank, seed):
    matrix = covariance(width, rank, seed)
    factor = Factor.from_dense(matrix, 1.0)
    torch.testing.assert_close(factor.dense(), matrix, rtol=1e-4, atol=1e-5 * float(matrix.trace()))
    assert factor.rest == pytest.approx(0.0, abs=1e-5 * float(matrix.trace()))


@steady
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_trace_quadratic_and_dense_agree(width, rank, share, seed):
    matrix = covariance(width, rank, seed)
    factor = Factor.from_dense(matrix, share)
    scale = float(matrix.trace())
    assert factor.width == width
    assert factor.trace == pytest.approx(scale, rel=1e-4)
    assert float(factor.dense().trace()) == pytest.approx(scale, rel=1e-4)
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    expected = rows @ factor.dense() @ rows.T
    torch.testing.assert_close(factor.quadratic(rows), expected, rtol=1e-3, atol=1e-4 * scale)
    values = torch.linalg.eigvalsh(factor.dense())
    assert float(values.min()) >= -1e-4 * scale


@steady
@given(st.integers(2, 12), st.floats(0.05, 0.999), st.integers(0, 1000))
def test_it_keeps_the_fewest_directions_that_hold_the_share(width, share, seed):
    matrix = covariance(width, width, seed)
    factor = Factor.from_dense(matrix, share)
    total, kept = float(matrix.trace()), factor.values
    assert float(kept.sum()) >= (share - 1e-4) * total
    assert float(kept[:-1].sum()) < (share + 1e-4) * total
    assert bool((kept[:-1] >= kept[1:]).all())


def test_max_rank_bounds_it_and_the_trace_stays():
    matrix = covariance(10, 10, 1)
    factor = Factor.from_dense(matrix, 1.0, max_rank=3)
    assert factor.vectors.shape == (10, 3)
    assert factor.trace == pytest.approx(float(matrix.trace()), rel=1e-5)


def test_a_zero_matrix_has_no_directions():
    factor = Factor.from_dense(torch.zeros(4, 4), 0.9)
    assert factor.vectors.shape == (4, 0) and factor.rest == 0.0 and factor.trace == 0.0
    assert torch.equal(factor.dense(), torch.zeros(4, 4))
