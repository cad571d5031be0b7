"""The sketch's bound, whatever the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.frequent_directions import FrequentDirections

steady = settings(deadline=None, derandomize=True, max_examples=60)


def decaying_rows(count: int, width: int, decay: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return torch.randn(count, width, generator=generator) * torch.logspace(0, -decay, width) @ turned


@steady
@given(
    count=st.integers(1, 120),
    width=st.integers(1, 24),
    size=st.integers(2, 16),
    decay=st.floats(0.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_the_error_obeys_the_bound_of_the_paper(count, width, size, decay, seed):
    rows = decaying_rows(count, width, decay, seed)
    sketch = FrequentDirections(width, size)
    sketch.update(rows)
    exact = rows.double()
    difference = exact.T @ exact - sketch.rows.double().T @ sketch.rows.double()
    values = torch.linalg.eigvalsh(difference)
    whole = float(exact.square().sum())
    assert float(values.min()) >= -1e-5 * whole
    tails = exact.T @ exact
    spectrum = torch.linalg.eigvalsh(tails).flip(0).clamp_min(0.0)
    for k in range(min(size, width)):
        assert float(values.max()) <= float(spectrum[k:].sum()) / (size - k) + 1e-5 * whole
    assert sketch.rows.shape[0] <= 2 * size
    torch.testing.assert_close(sketch.diagonal.double(), tails.diagonal(), rtol=1e-4, atol=1e-6 * whole)


@pytest.mark.parametrize("portion", [1, 7, 100])
def test_the_portions_in_which_rows_arrive_do_not_matter(portion):
    rows = decaying_rows(100, 12, 1.0, 3)
    whole, parts = FrequentDirections(12, 5), FrequentDirections(12, 5)
    whole.update(rows)
    for part in rows.split(portion):
        parts.update(part)
    torch.testing.assert_close(parts.rows, whole.rows)
    torch.testing.assert_close(parts.diagonal, whole.diagonal)


def test_rows_of_a_rank_below_its_size_are_kept_exactly():
    rows = decaying_rows(200, 30, 1.0, 4)[:, :30] @ torch.diag((torch.arange(30) < 6).float())
    sketch = FrequentDirections(30, 8)
    sketch.update(rows)
    torch.testing.assert_close(sketch.rows.T @ sketch.rows, rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_scaling_scales_the_matrix():
    sketch = FrequentDirections(6, 4)
    sketch.update(decaying_rows(30, 6, 1.0, 5))
    half = sketch.scaled(0.5)
    torch.testing.assert_close(half.rows.T @ half.rows, 0.5 * sketch.rows.T @ sketch.rows)
    torch.testing.assert_close(half.diagonal, 0.5 * sketch.diagonal)


def test_a_row_that_is_not_finite_is_an_error():
    sketch = FrequentDirections(3, 2)
    with pytest.raises(TrainingError, match="not finite"):
        sketch.update(torch.full((9, 3), float("nan")))
