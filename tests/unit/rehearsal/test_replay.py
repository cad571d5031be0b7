"""The replay buffer and the order in which its rows are mixed in."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.rehearsal import ReplayBuffer, mix_rows


def rows(domain: int, count: int) -> list[Tokens]:
    return [Tokens([domain, i, *range(i % 3)], [-100, i, *range(i % 3)]) for i in range(count)]


def test_finished_domains_share_the_capacity_and_keep_what_they_kept():
    buffer = ReplayBuffer(10).with_domain("a", rows(0, 30), seed=1)
    assert len(buffer) == 10
    two = buffer.with_domain("b", rows(1, 30), seed=2)
    three = two.with_domain("c", rows(2, 2), seed=3)
    assert [len(kept) for kept in three.rows.values()] == [4, 3, 2]  # c had no more
    assert three.rows["a"] == two.rows["a"][:4] == buffer.rows["a"][:4]
    assert two.rows["b"][:3] == three.rows["b"]
    assert len({tuple(row.input_ids) for row in buffer.rows["a"]}) == 10


def test_each_row_is_kept_with_the_same_probability():
    counts = Counter(
        row.input_ids[1]
        for seed in range(400)
        for row in ReplayBuffer(5).with_domain("a", rows(0, 20), seed=seed).all_rows
    )
    assert all(70 < counts[i] < 130 for i in range(20))  # 100 ± 3.5 standard deviations


def test_it_comes_back_from_its_file(tmp_path):
    buffer = ReplayBuffer(7).with_domain("数学", rows(0, 9), seed=0).with_domain("b", rows(1, 9), seed=1)
    path = tmp_path / "buffer"
    path.write_bytes(buffer.to_bytes())
    assert ReplayBuffer.load(path) == buffer
    path.write_bytes(buffer.to_bytes()[:-3])
    with pytest.raises(WorkspaceError, match="replay buffer cannot be read"):
        ReplayBuffer.load(path)


@given(percent=st.integers(1, 99), batch=st.integers(1, 9), steps=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_share_of_old_rows_is_exact_over_the_run_and_level_over_the_batches(percent, batch, steps, seed):
    old, new = rows(0, 7), rows(1, 11)
    ratio = percent / 100
    mixed = mix_rows(new, old, num_rows=steps * batch, ratio=ratio, seed=seed)
    is_old = [row["input_ids"][0] == 0 for row in mixed]
    assert sum(is_old) == int(Fraction(percent, 100) * steps * batch)
    for start in range(0, len(is_old), batch):
        assert abs(sum(is_old[start : start + batch]) - ratio * batch) < 1
    again = mix_rows(new, old, num_rows=steps * batch, ratio=ratio, seed=seed)
    assert again.tokens == mixed.tokens
    taken = Counter(row["input_ids"][1] for row in mixed if row["input_ids"][0] == 1)
    assert not taken or max(taken.values()) - min(taken[i] for i in range(11)) <= 1


def test_the_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    ReplayBuffer(3).with_domain("a", rows(0, 9), seed=0)
    mix_rows(rows(1, 3), rows(0, 3), num_rows=9, ratio=0.5, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
