"""Columns in few bits: what is read back, to which error, in how many bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.memory.rounding import RoundedColumns, packed_bytes, round_columns

steady = settings(deadline=None, derandomize=True, max_examples=80)


def unequal(width: int, count: int, seed: int) -> torch.Tensor:
    """Columns of norm one, some with one loud entry, some of zeros."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(width, count, generator=generator)
    columns[0, ::3] *= 50.0
    columns[:, 4::5] = 0.0
    return torch.nn.functional.normalize(columns, dim=0)


@steady
@given(st.integers(1, 200), st.integers(0, 12), st.floats(-9, 0), st.integers(0, 1000))
def test_each_column_is_within_its_error_and_wide_only_where_it_must_be(width, count, power, seed):
    columns = unequal(width, count, seed)
    allowed = 10.0**power * torch.linspace(0.1, 1.0, count)
    rounded = round_columns(columns, allowed)
    error = (rounded.read() - columns).square().sum(0)
    wide = rounded.is_wide.bool()
    assert bool((error[~wide] <= allowed[~wide] * (1 + 1e-5)).all())
    assert bool((error[wide] <= 1e-6).all())
    coarse = (round_columns(columns).read() - columns).square().sum(0)
    assert bool((coarse[wide] > allowed[wide]).all())


@steady
@given(st.integers(1, 200), st.integers(0, 12), st.integers(0, 1000))
def test_bytes_are_as_stated_and_come_back_to_the_bit(width, count, seed):
    columns = unequal(width, count, seed)
    rounded = round_columns(columns, torch.logspace(-9, 0, count))
    packed, num_halves = rounded.packed(), int(rounded.is_wide.sum())
    assert packed.dtype == torch.uint8 and packed.numel() == packed_bytes(
        width, count - num_halves, num_halves
    )
    found = RoundedColumns.unpacked(packed, width, count)
    assert torch.equal(found.read(), rounded.read()) and torch.equal(found.packed(), packed)
    for damaged in (packed[:-1], torch.cat([packed, packed[:1]])) if count else ():
        with pytest.raises(ValueError, match="bytes for"):
            RoundedColumns.unpacked(damaged, width, count)


@steady
@given(st.integers(1, 200), st.integers(1, 8), st.floats(-12, 12), st.integers(0, 1000))
def test_eight_bits_are_the_default_at_any_scale_and_rounding_twice_is_rounding_once(w, k, power, seed):
    columns = unequal(w, k, seed) * 10.0**power
    rounded = round_columns(columns)
    assert not rounded.is_wide.any()
    blocks = torch.nn.functional.pad(columns, (0, 0, 0, -w % 64)).view(-1, 64, k).abs().amax(1)
    bound = blocks.repeat_interleave(64, 0)[:w] * (1 / 254 + 0.005)
    assert bool(((rounded.read() - columns).abs() <= bound).all())
    assert torch.equal(round_columns(rounded.read()).read(), rounded.read())


def test_a_loud_entry_costs_only_its_own_block_precision():
    columns = torch.full((128, 1), 0.01)
    columns[0] = 1.0
    error = (round_columns(columns).read() - columns).abs()
    assert float(error[64:].max()) < 1e-4 < float(error[1:64].max())


def test_values_that_are_not_finite_stay_so():
    for bad in (float("nan"), float("inf")):
        columns = torch.ones(70, 2)
        columns[3, 1] = bad
        for allowed in (None, torch.ones(2)):
            found = round_columns(columns, allowed).read()
            assert bool(found[:, 0].isfinite().all()) and not found[:, 1].isfinite().all()
