"""Which example of a batch makes its loss not finite?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.data.tokens import IGNORED
from constrained_adapters.errors import TrainingError
from constrained_adapters.models.modes import evaluating
from constrained_adapters.objectives.label_logits import padded_label_logits

LONGEST_SHOWN = 80


def broken_loss_error(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    rows: Any,
    *,
    domain: str,
    step: int,
    decode: Callable[[Sequence[int]], str] | None,
) -> TrainingError:
    """The error that names step, batch and examples; each row of the batch is read once more by itself.

    Args:
        model: As it was when the loss broke.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, (b, s).
        rows: The data set: its rows have ``input_ids``; to find the batch's rows in.
        domain: Named.
        step: The optimizer step that was being made, from 1.
        decode: Token ids as text.
    """
    broken = [
        row for row in range(len(batch["input_ids"])) if not math.isfinite(_row_nats(model, batch, row))
    ]
    what = f"the loss of domain {domain!r} is not finite at step {step}"
    numbers = [_number(rows, _ids(batch, row)) for row in range(len(batch["input_ids"]))]
    members = f"a batch of examples {', '.join(map(_shown_number, numbers))} of {len(rows)}"
    if not broken or len(broken) == len(numbers) > 1:
        return TrainingError(
            what,
            got=f"{members}, of which {'none' if broken else 'each'} by itself has a finite loss",
            expected="a finite loss",
            hint="lower the learning rate, or train in float32 or bf16 instead of fp16",
        )
    first = broken[0]
    text = decode(_ids(batch, first)) if decode is not None else ""
    text = text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
    return TrainingError(
        what,
        got=f"example {_shown_number(numbers[first])} ({text!r}) in {members}",
        expected="a finite loss",
        hint="look at that example, or train in float32 or bf16 instead of fp16",
    )


@torch.no_grad()
def _row_nats(model: nn.Module, batch: Mapping[str, Tensor], row: int) -> float:
    """Mean loss of one row; 0 without labels."""
    own = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "labels")}
    scored = own["labels"] != IGNORED
    if not bool(scored[:, 1:].any()):
        return 0.0
    with evaluating(model):
        logits, targets = padded_label_logits(model, own["input_ids"], own["attention_mask"], scored)
    return float(nn.functional.cross_entropy(logits, targets))


def _ids(batch: Mapping[str, Tensor], row: int) -> list[int]:
    kept: list[int] = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    return kept


def _number(rows: Any, ids: Sequence[int]) -> int | None:
    """Place of a row in the data set, from 1."""
    return next((at for at in range(1, len(rows) + 1) if list(rows[at - 1]["input_ids"]) == list(ids)), None)


def _shown_number(number: int | None) -> str:
    return "?" if number is None else str(number)
