"""Small sets of rows on which a training is watched: each is read once per check.

Axis letters: n watched label positions, v vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import IGNORED, Tokens, encode_example, tensor_rows
from constrained_adapters.errors import DataError, TrainingError
from constrained_adapters.evaluation.row_losses import mean_row_nats, num_labels
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.models.modes import evaluating

ProbeRow = Example | Tokens | Mapping[str, Sequence[int]]
"""An example, or token ids with labels; a mapping needs ``input_ids`` and may have ``labels``."""
MAX_POSITIONS = 64
"""Label positions whose whole distribution is kept: 13 MB at a vocabulary of 50,000."""
BATCH = 8
MOST_COMPARED = 20_000
"""Training rows that watched ones are looked for in."""


@dataclass(frozen=True)
class Reading:
    """What one check saw, nats per label.

    Args:
        step: Optimizer steps done.
        old: Of each old domain.
        old_all: Of the labels of all old domains together; None without any.
        new: Of the new domain.
        mixed: Of all labels, old and new.
        kl: KL(start ‖ now) of the output distributions on the new domain's labels; None where the start's
            are not known.
    """

    step: int
    old: dict[str, float]
    old_all: float | None
    new: float
    mixed: float
    kl: float | None


def encode_probe(
    rows: Sequence[ProbeRow], name: str, tokenizer: Any, *, most: int, max_length: int = 512
) -> list[Tokens]:
    """The first ``most`` rows as token ids with labels; rows without a label are left out.

    Raises:
        DataError: No row is left, or an example needs a tokenizer and there is none.
    """
    encoded: list[Tokens] = []
    for row in rows:
        tokens = _encode(row, name, tokenizer, max_length)
        if num_labels(tokens):
            encoded.append(tokens)
        if len(encoded) == most:
            break
    if not encoded:
        raise DataError(
            f"there is nothing to watch {name!r} by",
            got=f"{len(rows)} rows, none with a token that carries loss",
            expected="8 examples with answers, none of them trained on",
        )
    return encoded


class Probes:
    """The rows of old domains and of the new one, and the new one's distributions at the start.

    Args:
        old: Rows by domain.
        new: Rows of the domain in training.
    """

    def __init__(self, old: Mapping[str, Sequence[Tokens]], new: Sequence[Tokens]) -> None:
        self._old = {name: list(rows) for name, rows in old.items()}
        self._new = list(new)
        self.rows = {**self._old, "the new domain": self._new}
        """All, by name."""
        self.start: Tensor | None = None
        """Log-probabilities (n, v) of the first reading, float32 on the CPU."""

    def read(self, model: Any, step: int, *, first: bool = False, old: bool = True) -> Reading:
        """Score all rows, each once.

        Args:
            model: A causal LM; it stays as it is.
            step: Noted.
            first: Keep the new rows' distributions as the start's.
            old: Whether the old domains are read; without them a reading holds the new one alone.

        Raises:
            TrainingError: A loss is not finite; the message names the domain and the row.
        """
        new, log_probs = self._read_new(model)
        if first:
            self.start = log_probs
        kl = None
        if self.start is not None and self.start.shape == log_probs.shape:
            start = self.start.to(log_probs.device)
            kl = max(float((start.exp() * (start - log_probs)).sum(-1).mean()), 0.0)
        nats: dict[str, float] = {}
        for name, rows in self._old.items() if old else ():
            try:
                nats[name] = mean_row_nats(model, rows)
            except TrainingError as error:
                raise TrainingError(
                    f"the loss of domain {name!r} is not finite at step {step}",
                    got=error.got,
                    hint=error.hint,
                ) from None
        counts = {name: sum(map(num_labels, self._old[name])) for name in nats}
        total = math.fsum(nats[name] * count for name, count in counts.items())
        num_old, num_new = sum(counts.values()), sum(map(num_labels, self._new))
        return Reading(
            step,
            nats,
            total / num_old if num_old else None,
            new,
            (total + new * num_new) / (num_old + num_new),
            kl,
        )

    @torch.no_grad()
    def _read_new(self, model: Any) -> tuple[float, Tensor]:
        """The new rows' loss, and log-probabilities at up to ``MAX_POSITIONS`` labels, evenly spread."""
        device = model.get_input_embeddings().weight.device
        total, kept = [], []
        num_all = sum(map(num_labels, self._new))
        wanted = {round(i * (num_all - 1) / max(MAX_POSITIONS - 1, 1)) for i in range(MAX_POSITIONS)}
        seen = 0
        with evaluating(model):
            for start in range(0, len(self._new), BATCH):
                rows = self._new[start : start + BATCH]
                batch = pad_rows(tensor_rows(rows), device)
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                place = batch["labels"][:, 1:] != IGNORED
                log_probs = logits[:, :-1][place].float().log_softmax(-1)
                targets = batch["labels"][:, 1:][place]
                total.append(-log_probs.gather(-1, targets[:, None]).sum().item())
                chosen = [at for at in range(len(targets)) if seen + at in wanted]
                kept.append(log_probs[chosen].cpu())
                seen += len(targets)
        nats = math.fsum(total) / num_all
        if not math.isfinite(nats):
            raise TrainingError(
                "the loss of the domain in training is not finite",
                got=f"{nats} nats on {len(self._new)} watched rows",
                hint="lower the learning rate, or look for broken examples",
            )
        return nats, torch.cat(kept)


def warn_of_trained(probes: Probes, dataset: Any) -> None:
    """Say which share of the watched rows is trained on: their loss falls whatever the model forgets.

    Args:
        probes: What is watched.
        dataset: What is trained on; only one of at most ``MOST_COMPARED`` rows of token ids is looked at.

    Warns:
        UserWarning: There are such rows.
    """
    if not hasattr(dataset, "__len__") or not 0 < len(dataset) <= MOST_COMPARED:
        return
    rows = [dataset[at] for at in range(len(dataset))]
    if not all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return
    trained = {tuple(map(int, row["input_ids"])) for row in rows}
    for name, watched in probes.rows.items():
        count = sum(tuple(row.input_ids) in trained for row in watched)
        if count:
            of = f"{count} of {len(watched)} rows that watch {name!r} are trained on"
            warnings.warn(f"{of} ({count / len(watched):.0%}): choose others", stacklevel=2)


def _encode(row: ProbeRow, name: str, tokenizer: Any, max_length: int) -> Tokens:
    if isinstance(row, Tokens):
        return row
    if not isinstance(row, Example):
        ids = list(row["input_ids"])
        return Tokens(ids, list(row.get("labels", ids)))
    if tokenizer is None:
        raise DataError(
            f"examples of {name!r} cannot be read without a tokenizer",
            got="a Trainer without processing_class",
            hint="Trainer(processing_class=tokenizer), or rows of input_ids and labels",
        )
    return encode_example(row, tokenizer, max_length)
