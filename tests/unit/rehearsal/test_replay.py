"""The replay buffer and the order in which its rows are mixed in."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction

import pytest
import torch
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.rehearsal import KeptFile, ReplayBuffer, Source, mix_sources
from constrained_adapters.rehearsal.kept_file import KEY_VARIABLE


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
    assert KeptFile(path, private=False).read() == buffer
    path.write_bytes(buffer.to_bytes()[:-3])
    with pytest.raises(WorkspaceError, match="replay buffer cannot be read"):
        KeptFile(path, private=False).read()


@given(percent=st.integers(1, 99), batch=st.integers(1, 9), steps=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_share_of_old_rows_is_exact_over_the_run_and_level_over_the_batches(percent, batch, steps, seed):
    old, new = rows(0, 7), rows(1, 11)
    ratio = percent / 100
    mixed = mix_sources(new, [Source("replay", old, ratio)], num_rows=steps * batch, seed=seed)
    is_old = [row["input_ids"][0] == 0 for row in mixed]
    assert sum(is_old) == int(Fraction(percent, 100) * steps * batch)
    for start in range(0, len(is_old), batch):
        assert abs(sum(is_old[start : start + batch]) - ratio * batch) < 1
    again = mix_sources(new, [Source("replay", old, ratio)], num_rows=steps * batch, seed=seed)
    assert again.tokens == mixed.tokens
    taken = Counter(row["input_ids"][1] for row in mixed if row["input_ids"][0] == 1)
    assert not taken or max(taken.values()) - min(taken[i] for i in range(11)) <= 1


@given(
    shares=st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(lambda each: sum(each) <= 100),
    num_rows=st.integers(1, 150),
)
def test_several_sources_have_their_exact_shares_over_every_beginning_of_the_run(shares, num_rows):
    sources = [Source(str(k), rows(k, 5), percent / 100) for k, percent in enumerate(shares)]
    mixed = mix_sources(rows(9, 3), sources, num_rows=num_rows, seed=3)
    origins = [row["input_ids"][0] for row in mixed]
    assert len(origins) == num_rows
    for k, percent in enumerate(shares):
        assert origins.count(k) == num_rows * percent // 100
        for end in range(num_rows + 1):
            exact = Fraction(percent * end, 100)
            assert int(exact) <= origins[:end].count(k) < exact + len(shares)


def test_each_source_is_taken_in_passes_of_its_own():
    sources = [Source("a", rows(0, 4), 0.5), Source("b", rows(1, 4), 0.5)]
    mixed = mix_sources(rows(2, 1), sources, num_rows=8, seed=0)
    for k in (0, 1):
        taken = [row["input_ids"][1] for row in mixed if row["input_ids"][0] == k]
        assert sorted(taken) == [0, 1, 2, 3]
    assert {row["input_ids"][0] for row in mixed} == {0, 1}  # no room for new rows


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([("replay", 1, 1.5)], r"ratio of replay is out of range(?s:.*)1\.5"),
        ([("replay", 1, -0.1)], "ratio of replay is out of range"),
        ([("replay", 1, float("nan"))], "ratio of replay is out of range"),
        ([("golden set", 0, 0.1)], "nothing to mix in as golden set"),
        ([("replay", 1, 0.6), ("text", 1, 0.5)], r"there is room for(?s:.*)0\.6 \(replay\) \+ 0\.5 \(text\)"),
    ],
)
def test_shares_that_cannot_be_are_refused(sources, message):
    made = [Source(name, rows(0, count), ratio) for name, count, ratio in sources]
    with pytest.raises(ConfigError, match=message):
        mix_sources(rows(1, 3), made, num_rows=4, seed=0)


def test_bytes_bound_the_buffer_too():
    buffer = ReplayBuffer(100, capacity_bytes=300)
    for number, name in enumerate("abc"):
        earlier = buffer
        buffer = buffer.with_domain(name, rows(number, 30), seed=number)
        share = 300 // len(buffer.rows)
        for kept in buffer.rows.values():
            used = sum(4 * (2 * len(row.input_ids) + 1) for row in kept)
            assert used <= share < used + 4 * 9  # not even the smallest step more would fit twice
        for domain, kept in earlier.rows.items():
            assert kept[: len(buffer.rows[domain])] == buffer.rows[domain]
    assert buffer.num_bytes <= 300
    stored = sum(tensor.nbytes for tensor in load(buffer.to_bytes()).values())
    assert stored == buffer.num_bytes


def test_a_private_buffer_leaves_no_file(tmp_path):
    path = tmp_path / "buffer"
    buffer = ReplayBuffer(5).with_domain("a", rows(0, 9), seed=0)
    KeptFile(path, private=False).write(buffer)
    private = KeptFile(path, private=True)
    assert private.read() is None and KeptFile(path, private=False).read() == buffer
    private.write(buffer)
    assert not path.exists()
    private.write(buffer)


def test_an_encrypted_buffer_says_nothing_without_its_key(tmp_path, monkeypatch):
    file = KeptFile(tmp_path / "buffer", private="encrypted")
    buffer = ReplayBuffer(5).with_domain("law", rows(0, 9), seed=0)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert file.read() is None
    with pytest.raises(ConfigError, match=r"no key for it(?s:.*)is not set(?s:.*)generate_key"):
        file.write(buffer)
    key = Fernet.generate_key().decode()
    monkeypatch.setenv(KEY_VARIABLE, key)
    file.write(buffer)
    content = (tmp_path / "buffer").read_bytes()
    assert b"law" not in content and b"input_ids" not in content
    assert file.read() == buffer
    monkeypatch.setenv(KEY_VARIABLE, Fernet.generate_key().decode())
    with pytest.raises(WorkspaceError, match="cannot be decrypted"):
        file.read()
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match="is not a key"):
        file.read()
    monkeypatch.setenv(KEY_VARIABLE, key)
    (tmp_path / "buffer").write_bytes(content[:-9] + b"A" * 9)
    with pytest.raises(WorkspaceError, match="cannot be decrypted"):
        file.read()


@pytest.mark.parametrize("sizes", [{"capacity": 0}, {"capacity": 3, "capacity_bytes": 0}])
def test_a_buffer_without_room_is_refused(sizes):
    with pytest.raises(ConfigError, match="room for nothing"):
        ReplayBuffer(**sizes)


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    """Written before there were bounds on bytes and selections."""
    buffer = ReplayBuffer(4).with_domain("a", rows(0, 9), seed=0)
    facts = {"format_version": 1, "capacity": 4, "num_rows": {"a": 4}}
    path = tmp_path / "old"
    path.write_bytes(save(load(buffer.to_bytes()), metadata={"constrained_adapters": json.dumps(facts)}))
    assert KeptFile(path, private=False).read() == buffer


def test_the_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    ReplayBuffer(3).with_domain("a", rows(0, 9), seed=0)
    mix_sources(rows(1, 3), [Source("replay", rows(0, 3), 0.5)], num_rows=9, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
