"""A uniform sample of what passes by."""

from __future__ import annotations

import torch
from scipy.stats import chisquare

from constrained_adapters.memory.reservoir import Reservoir, pad_rows


def offer_numbered(reservoir: Reservoir, count: int, batch: int = 5) -> None:
    """Rows whose first token is their number."""
    for start in range(0, count, batch):
        ids = torch.arange(start, min(start + batch, count))[:, None].repeat(1, 2)
        reservoir.offer(ids, ids, None)


def test_every_row_is_kept_with_the_same_probability():
    counts = torch.zeros(20)
    for seed in range(2000):
        reservoir = Reservoir(6, seed)
        offer_numbered(reservoir, 20)
        kept = [int(ids[0]) for ids, _ in reservoir.rows]
        assert len(set(kept)) == len(kept) == len(reservoir) == 6
        counts[kept] += 1
    assert reservoir.num_seen == 20
    assert float(counts.sum()) == 2000 * 6
    assert chisquare(counts.numpy()).pvalue > 0.01


def test_the_sample_does_not_depend_on_the_batches_nor_touch_the_global_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    samples = []
    for batch in (1, 7):
        reservoir = Reservoir(4, seed=3)
        offer_numbered(reservoir, 50, batch)
        samples.append([int(ids[0]) for ids, _ in reservoir.rows])
    assert samples[0] == samples[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_all_rows_are_kept_below_the_capacity():
    reservoir = Reservoir(100)
    offer_numbered(reservoir, 12)
    assert [int(ids[0]) for ids, _ in reservoir.rows] == list(range(12))


def test_padding_is_dropped_on_either_side_and_rows_do_not_change_with_the_batch():
    ids = torch.tensor([[5, 6, 7, 0], [0, 0, 8, 9]])
    labels = torch.tensor([[-100, 6, 7, -100], [-100, -100, -100, 9]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    reservoir = Reservoir(4)
    reservoir.offer(ids, labels, mask)
    ids.zero_(), labels.zero_()
    assert [(i.tolist(), x.tolist()) for i, x in reservoir.rows] == [
        ([5, 6, 7], [-100, 6, 7]),
        ([8, 9], [-100, 9]),
    ]


def test_rows_pad_back_to_a_batch_that_offers_the_same_rows():
    rows = [(torch.tensor([5, 6, 7]), torch.tensor([-100, 6, 7])), (torch.tensor([8]), torch.tensor([8]))]
    batch = pad_rows(rows, "cpu")
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert all(value.dtype == torch.int64 for value in batch.values())
    reservoir = Reservoir(4)
    reservoir.offer(**batch)
    for (ids, labels), (expected_ids, expected_labels) in zip(reservoir.rows, rows, strict=True):
        assert ids.tolist() == expected_ids.tolist() and labels.tolist() == expected_labels.tolist()


def test_a_mask_of_who_sees_whom_tells_no_padding():
    ids = torch.tensor([[5, 6, 7], [8, 9, 4]])
    reservoir = Reservoir(4)
    reservoir.offer(ids, ids, torch.ones(2, 1, 3, 3).tril())
    assert [row.tolist() for row, _ in reservoir.rows] == ids.tolist()
