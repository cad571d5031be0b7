"""Rows, random logits and teachers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.objectives import Teachers


@pytest.fixture
def rows() -> list[Tokens]:
    """Five rows of unequal length with a common beginning; the labels are the last tokens."""
    numbers = np.random.default_rng(0)
    made = []
    for length, learnt in [(9, 3), (7, 1), (12, 5), (9, 2), (8, 7)]:
        ids = [5, 6, 7, *numbers.integers(10, 250, length - 3).tolist()]
        made.append(Tokens(ids, [-100] * (length - learnt) + ids[length - learnt :]))
    return made


@pytest.fixture
def teachers(tiny_llama) -> Teachers:
    return Teachers(before=lambda: tiny_llama, untouched=lambda: tiny_llama)


def log_probabilities(model, row: Tokens) -> torch.Tensor:
    """Of every next token, (s − 1, v), by reading the row alone."""
    with torch.no_grad():
        return model(torch.tensor([row.input_ids])).logits[0, :-1].float().log_softmax(-1)
