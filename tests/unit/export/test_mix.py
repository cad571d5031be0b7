"""Mixes as one adapter: exact by concatenation, and the best of a rank by SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.export.mix import compress_pairs, mix_pairs, pad_pairs


def pairs_of(ranks, seed, width=12):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.q": (
            torch.randn(r, width, generator=generator),
            torch.randn(width - 2, r, generator=generator),
        )
        for i, r in enumerate(ranks)
    }


def delta(pairs, module):
    a, b = pairs[module]
    return b @ a


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    weights=st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=4, max_size=4),
    pad=st.integers(0, 6),
)
def test_a_mix_is_the_weighted_sum_of_its_parts(ranks, weights, pad):
    parts = [
        (pairs_of([rank], seed), weight)
        for seed, (rank, weight) in enumerate(zip(ranks, weights, strict=False))
    ]
    mixed = pad_pairs(mix_pairs(parts), sum(ranks) + pad)
    expected = sum(weight * delta(pairs, "layers.0.q") for pairs, weight in parts)
    assert mixed["layers.0.q"][0].shape[0] == sum(ranks) + pad
    torch.testing.assert_close(delta(mixed, "layers.0.q"), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_one_adapter_lacks_is_the_others():
    one, two = pairs_of([2, 2], 0), pairs_of([3], 1)
    mixed = mix_pairs([(one, 1.0), (two, 0.5)])
    assert mixed["layers.0.q"][0].shape[0] == 5
    torch.testing.assert_close(delta(mixed, "layers.1.q"), delta(one, "layers.1.q"))


def test_padding_changes_no_bit_of_the_product():
    pairs = pairs_of([3], 0)
    assert torch.equal(delta(pad_pairs(pairs, 8), "layers.0.q"), delta(pairs, "layers.0.q"))


@pytest.mark.parametrize("rank", [1, 3, 5, 6])
def test_compression_is_the_best_of_its_rank_and_states_its_loss(rank):
    pairs = pairs_of([6, 2], 3)
    found = compress_pairs(pairs, rank)
    lost = whole = 0.0
    for module in pairs:
        exact = delta(pairs, module).double()
        u, s, v = torch.linalg.svd(exact, full_matrices=False)  # the oracle: SVD of the whole matrix
        best = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(delta(found.pairs, module).double(), best, rtol=1e-4, atol=1e-4)
        lost += float((exact - best).square().sum())
        whole += float(exact.square().sum())
        assert found.pairs[module][0].shape[0] <= rank
    assert found.error_ratio == pytest.approx((lost / whole) ** 0.5, abs=1e-5)
    assert found.worst_ratio >= found.error_ratio - 1e-9
    assert (found.error_ratio < 1e-6) == (rank == 6)


def test_weights_that_make_no_mix_are_refused():
    pairs = pairs_of([2], 0)
    with pytest.raises(ConfigError, match="every weight is 0"):
        mix_pairs([(pairs, 0.0)])
    with pytest.raises(ConfigError, match="not a finite number"):
        mix_pairs([(pairs, float("nan"))])


def test_adapters_of_different_shapes_are_refused():
    with pytest.raises(ModelError, match="different bases"):
        mix_pairs([(pairs_of([2], 0), 1.0), (pairs_of([2], 0, width=16), 1.0)])
