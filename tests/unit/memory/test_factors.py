"""Compressed positive semi-definite matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.memory.factors import (
    ROUNDING_SHARE,
    Factor,
    common_basis,
    outside_directions,
    read_directions,
    top_directions,
)
from constrained_adapters.memory.frequent_directions import FrequentDirections

# The first call on a busy machine can take seconds, and a test is the same on every run.
steady = settings(deadline=None, derandomize=True, max_examples=60)


def described(matrix: torch.Tensor, share: float, max_rank: int | None = None) -> Factor:
    return Factor.along(matrix, common_basis([matrix], [share], max_rank))


def covariance(width: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(1, -2, rank)
    columns = torch.randn(width, rank, generator=generator) * spread
    return columns @ columns.T / rank


@steady
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_a_share_of_one_gives_the_matrix_back(width, rank, seed):
    matrix = covariance(width, rank, seed)
    factor = described(matrix, 1.0)
    torch.testing.assert_close(factor.dense(), matrix, rtol=1e-4, atol=1e-5 * float(matrix.trace()))
    assert float(factor.rest.abs().max()) <= 1e-4 * float(matrix.trace())


@steady
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_trace_roots_and_dense_agree(width, rank, share, seed):
    matrix = covariance(width, rank, seed)
    factor = described(matrix, share)
    scale = float(matrix.trace())
    assert factor.width == width
    assert factor.trace == pytest.approx(scale, rel=1e-4)
    dense = factor.dense()
    assert float(dense.trace()) == pytest.approx(scale, rel=1e-4)
    torch.testing.assert_close(dense.diagonal(), matrix.diagonal(), rtol=1e-3, atol=1e-5 * scale)
    torch.testing.assert_close(factor.diagonal, dense.diagonal())
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    expected = rows @ factor.dense() @ rows.T
    blocks = factor.roots(rows)
    assert [block.shape for block in blocks] == [(3, factor.values.numel()), (3, width)]
    squares = sum(float(block.square().sum()) for block in blocks)
    assert squares == pytest.approx(float(expected.trace()), rel=1e-3, abs=1e-4 * scale)
    values = torch.linalg.eigvalsh(dense)
    assert float(values.min()) >= -1e-4 * scale


@steady
@given(st.integers(2, 12), st.floats(0.05, 0.999), st.integers(0, 1000))
def test_it_keeps_the_fewest_directions_that_hold_the_share(width, share, seed):
    matrix = covariance(width, width, seed)
    factor = described(matrix, share)
    total, kept = float(matrix.trace()), factor.values
    assert float(kept.sum()) >= (share - 1e-4) * total
    assert float(kept[:-1].sum()) < (share + 1e-4) * total
    assert bool((kept[:-1] >= kept[1:]).all())


def test_max_rank_bounds_it_and_the_trace_stays():
    matrix = covariance(10, 10, 1)
    factor = described(matrix, 1.0, max_rank=3)
    assert factor.vectors.shape == (10, 3)
    assert factor.trace == pytest.approx(float(matrix.trace()), rel=1e-5)


def test_a_zero_matrix_has_no_directions():
    factor = described(torch.zeros(4, 4), 0.9)
    assert factor.vectors.shape == (4, 0) and not factor.rest.any() and factor.trace == 0.0
    assert torch.equal(factor.dense(), torch.zeros(4, 4))


def loud_axes(width: int, seed: int) -> torch.Tensor:
    """Few shared directions, and axes of very unequal loudness, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(width, generator=generator).mul(1.5).exp()
    return covariance(width, 12, seed) + 0.05 * axes.diag()


@pytest.mark.parametrize("rank", [4, 12, 16])
def test_a_diagonal_rest_is_nearer_than_a_mean_at_the_same_number_of_bytes(rank):
    """One direction less pays for the diagonal."""
    matrix = loud_axes(96, 1)
    factor = described(matrix, 1.0, max_rank=rank - 1)
    values, vectors = torch.linalg.eigh(matrix)
    top, mean = vectors[:, -rank:], float(values[:-rank].mean())
    other = top * (values[-rank:] - mean) @ top.T + mean * torch.eye(96)
    outside = torch.eye(96) - top @ top.T
    exact = (outside @ matrix * outside).sum(1)
    found = ((outside @ factor.dense() * outside).sum(1) / exact).log().abs().mean()
    assert float(found) < float(((outside @ other * outside).sum(1) / exact).log().abs().mean())


def test_matrices_on_one_basis_hold_their_share_and_their_diagonal():
    first = loud_axes(48, 2)
    second = 100.0 * first + 10.0 * covariance(48, 3, 3)
    basis = common_basis([first, second], [0.9, 0.95])
    factors = Factor.stored_together({"first": first, "second": second}, basis)
    assert factors["first"].basis is factors["second"].basis
    for matrix, factor in zip((first, second), factors.values(), strict=True):
        scale = float(matrix.trace())
        assert float(factor.values.sum()) >= 0.895 * scale
        assert factor.trace == pytest.approx(scale, rel=1e-3)
        gram = factor.vectors.T @ factor.vectors
        assert float((gram - torch.eye(len(gram))).abs().max()) < 1e-5
        assert torch.equal(read_directions(factor.basis, factor.turn), factor.vectors)
        assert float((factor.dense() - matrix).norm()) < 0.15 * float(matrix.norm())
        assert bool((factor.values[:-1] >= 0.99 * factor.values[1:] - 1e-4 * scale).all())


def test_only_a_matrix_whose_eigenvectors_are_not_the_basis_is_turned():
    first, second = loud_axes(48, 2), loud_axes(48, 3)
    factors = Factor.stored_together({"first": first, "second": second}, common_basis([first], [1.0], 12))
    assert factors["first"].turn is None and factors["second"].turn.octets.shape[0] == 12
    straight = Factor.along(second, factors["first"].vectors)
    wanted = factors["first"].vectors @ factors["first"].vectors.T
    inside = wanted @ second @ wanted
    near, far = (float((wanted @ f.dense() @ wanted - inside).norm()) for f in (factors["second"], straight))
    assert near < far


@steady
@given(st.integers(2, 150), st.integers(1, 40), st.floats(0.2, 1.0), st.integers(0, 1000))
def test_rounding_costs_no_more_of_the_trace_than_stated(width, rank, share, seed):
    """Of the matrix whose eigenvectors they are, also where one axis is as loud as all others together."""
    first, second = covariance(width, rank, seed), covariance(width, rank, seed + 1)
    first[0, 0] += first.trace()
    basis = common_basis([first, second], [share, share])
    kept = Factor.stored_together({"first": first, "second": second}, basis)["first"]
    own = basis[:, : common_basis([first], [share]).shape[1]]
    assert shares_held(kept.vectors, [first])[0] >= shares_held(own, [first])[0] - ROUNDING_SHARE - 1e-5


@pytest.mark.parametrize(("width", "decay"), [(200, 1.5), (96, 0.5), (20, 1.0)])
def test_the_top_directions_hold_what_the_top_eigenvectors_do(width, decay):
    turned = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(3))).Q
    values = torch.arange(1, width + 1).pow(-decay)
    matrix = (turned * values) @ turned.T
    found = top_directions(matrix, 8)
    assert found.shape == (width, 8)
    assert float((found.T @ found - torch.eye(8)).abs().max()) < 1e-5
    assert shares_held(found, [matrix])[0] == pytest.approx(float(values[:8].sum() / values.sum()), rel=5e-3)
    few = turned[:, :3] @ turned[:, :3].T
    assert top_directions(few, 8).shape == (width, 3)


def shares_held(basis, matrices) -> list[float]:
    return [float((basis.T @ matrix @ basis).trace() / matrix.trace()) for matrix in matrices]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(2, 20), st.integers(1, 20), st.integers(1, 20), st.floats(0.1, 1.0), st.integers(0, 500))
def test_one_matrix_after_another_gets_its_share_of_orthonormal_directions(d, rank, other, share, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, d, generator=generator) for n in (rank, other)]
    rows.append(rows[0][:1] * 3.0)  # one that the first holds already
    matrices = [each.T @ each for each in rows]
    shares = [share, 0.9, 0.999]
    basis = common_basis(matrices, shares)
    assert basis.shape[1] <= d
    assert float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max()) < 1e-4
    assert all(h >= s - 1e-4 for h, s in zip(shares_held(basis, matrices), shares, strict=True))
    sketches = []
    for each in rows:
        sketches.append(FrequentDirections(d, 24))
        sketches[-1].update(each)
    same = common_basis(sketches, shares)
    assert same.shape[1] <= d
    assert float((same.T @ same - torch.eye(same.shape[1])).abs().max()) < 1e-4
    assert all(h >= s - 1e-4 for h, s in zip(shares_held(same, matrices), shares, strict=True))


def test_the_first_matrix_is_served_with_the_fewest_directions_and_first_where_few_are_left():
    matrices = [loud_axes(48, 2), loud_axes(48, 3)]
    basis = common_basis(matrices, [0.8, 0.8])
    values = torch.linalg.eigh(matrices[0])[0].flip(0)
    needed = int((values.cumsum(0) / values.sum() < 0.8).sum()) + 1
    assert needed < basis.shape[1]
    fewest = basis[:, :needed]
    assert shares_held(fewest, matrices)[0] >= 0.8 - 1e-5 > shares_held(fewest[:, :-1], matrices)[0]
    assert torch.equal(common_basis(matrices, [0.8, 0.8], needed), fewest)


def test_directions_outside_a_basis_are_outside_it_also_where_nothing_is_left():
    matrix = loud_axes(24, 4)
    basis = torch.linalg.eigh(matrix)[1][:, -9:]
    values, vectors = outside_directions(matrix, basis)
    assert values.shape == (15,) and vectors.shape == (24, 15)
    assert float((basis.T @ vectors).abs().max()) < 1e-5
    assert float(values.sum()) == pytest.approx(float(torch.linalg.eigh(matrix)[0][:-9].sum()), rel=1e-4)
    held_only = basis @ basis.T
    assert float((basis.T @ outside_directions(held_only, basis)[1]).abs().max()) < 1e-5


def test_a_sketch_is_described_as_its_matrix_is():
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(400, 40, generator=generator) * torch.logspace(0, -2, 40)
    sketch = FrequentDirections(40, 30)
    sketch.update(rows)
    found, expected = Factor.stored(sketch, 8), Factor.stored(rows.T @ rows, 8)
    assert found.trace == pytest.approx(expected.trace, rel=1e-4)
    torch.testing.assert_close(found.diagonal, (rows.T @ rows).diagonal(), rtol=0.02, atol=0.05)
    difference = float((found.dense() - expected.dense()).norm())
    assert difference < 0.01 * float(expected.dense().norm())
