"""Which rows are kept first: by loss against the model itself, by diversity against brute force."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.row_losses import row_losses
from constrained_adapters.rehearsal import ReplayBuffer
from constrained_adapters.rehearsal.selection import (
    farthest_first,
    ngram_embeddings,
    order_rows,
)


def radius(points: torch.Tensor, centres) -> float:
    return float(torch.cdist(points, points[list(centres)]).min(-1).values.max())


@settings(deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 9), taken=st.integers(1, 4), repeats=st.booleans())
def test_every_beginning_covers_at_most_twice_as_badly_as_the_best_choice(seed, count, taken, repeats):
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).double()
    if repeats:
        points[count // 2 :] = points[0]
    order = farthest_first(points, count)
    assert sorted(order) == list(range(count))
    taken = min(taken, count)
    assert farthest_first(points, taken) == order[:taken]
    best = min(radius(points, centres) for centres in combinations(range(count), taken))
    assert radius(points, order[:taken]) <= 2 * best + 1e-9


def test_nothing_is_chosen_of_nothing():
    assert farthest_first(torch.zeros(0, 3), 5) == []
    assert order_rows([], "diverse", count=3, seed=0) == []


def test_hashed_counts_keep_scalar_products_in_the_mean():
    numbers = np.random.default_rng(0)
    rows = [Tokens(numbers.integers(0, 40, 30).tolist(), []) for _ in range(12)]
    made = ngram_embeddings(rows, width=4096)

    def counts(row: Tokens) -> dict[tuple[int, ...], int]:
        ids = row.input_ids
        grams = [(i,) for i in ids] + list(pairwise(ids))
        return {gram: grams.count(gram) for gram in grams}

    errors = []
    for one, other in combinations(range(12), 2):
        a, b = counts(rows[one]), counts(rows[other])
        exact = sum(a[gram] * b.get(gram, 0) for gram in a) / np.sqrt(
            sum(v * v for v in a.values()) * sum(v * v for v in b.values())
        )
        errors.append(float(made[one] @ made[other]) - exact)
    assert max(map(abs, errors)) < 0.15 and abs(np.mean(errors)) < 0.01
    assert np.allclose(np.linalg.norm(made, axis=-1), 1.0)
    assert np.array_equal(made[3], ngram_embeddings([rows[3]], width=4096)[0])  # whatever stands beside it


def test_order_matters_to_bigrams_only():
    one, other = ngram_embeddings([Tokens([1, 2, 3, 4], []), Tokens([4, 3, 2, 1], [])], width=4096)
    assert 0.0 < float(one @ other) < 1.0


def clusters() -> list[Tokens]:
    """Twenty rows that are nearly alike, and one each of three other kinds."""
    alike = [Tokens([5, 6, 7, 8, 9, 10 + i % 2], [-100] * 6) for i in range(20)]
    others = [Tokens([50 + 10 * kind + i for i in range(6)], [-100] * 6) for kind in range(3)]
    return [*alike, *others]


def test_a_diverse_buffer_holds_every_kind_and_a_random_one_need_not():
    rows = clusters()
    diverse = ReplayBuffer(4, selection="diverse").with_domain("a", rows, seed=0)
    kinds = {row.input_ids[0] for row in diverse.all_rows}
    assert kinds == {5, 50, 60, 70}
    missed = [
        {row.input_ids[0] for row in ReplayBuffer(4).with_domain("a", rows, seed=seed).all_rows} != kinds
        for seed in range(20)
    ]
    assert sum(missed) > 15


def test_embeddings_may_be_given():
    rows = clusters()
    points = torch.zeros(len(rows), 2)
    points[7], points[3] = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 5.0])
    buffer = ReplayBuffer(3, selection="diverse").with_domain("a", rows, seed=0, embeddings=points)
    assert [rows.index(row) for row in buffer.all_rows][1:] == [rows.index(rows[7]), rows.index(rows[3])]


def test_the_hardest_rows_come_first_and_survive_a_shrinking_buffer(tiny_llama):
    numbers = np.random.default_rng(0)
    rows = []
    for length in (5, 9, 7, 12, 6, 8):
        ids = numbers.integers(10, 250, length).tolist()
        rows.append(Tokens(ids, [-100, -100, *ids[2:]]))
    losses = row_losses(tiny_llama, rows)
    for row, loss in zip(rows, losses, strict=True):
        with torch.no_grad():
            own = tiny_llama(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert loss == pytest.approx(float(own), rel=1e-5)
    hardest = sorted(range(6), key=lambda i: -losses[i])
    buffer = ReplayBuffer(4, selection="highest_loss").with_domain("a", rows, seed=0, losses=losses)
    assert [rows.index(row) for row in buffer.all_rows] == hardest[:4]
    later = buffer.with_domain("b", rows, seed=0, losses=losses)
    assert [rows.index(row) for row in later.rows["a"]] == hardest[:2]
    assert row_losses(tiny_llama, [Tokens([1, 2], [-100, -100])]) == [0.0]


@pytest.mark.parametrize(
    ("selection", "options"),
    [
        ("highest_loss", {}),
        ("highest_loss", {"losses": [1.0]}),
        ("diverse", {"embeddings": torch.zeros(2, 3)}),
    ],
)
def test_what_a_selection_needs_must_be_there_for_each_row(selection, options):
    with pytest.raises(ConfigError, match="rows cannot be chosen"):
        ReplayBuffer(3, selection=selection).with_domain("a", clusters(), seed=0, **options)
