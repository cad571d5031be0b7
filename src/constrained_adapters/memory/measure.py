"""From token rows to the gradient memory of a domain, on any causal model and any of its linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.gradient_sketch import SketchAccumulator
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.protected import InputKind, protected_share
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.memory.statistics import DRAWN_EXAMPLES

LEAST_SHARES = {"sensitivity": 0.95, "energy": 0.0}
"""Share of an input factor's trace that a memory keeps, so that it serves a later, stricter constraint.

``energy`` is described along the directions that ``sensitivity`` needs, unless it is what is protected."""
LEAST_BASE_SHARES = {"sensitivity": 0.9, "energy": 0.0}
"""The same for the base's own text, which reaches nearly every direction a little."""
LOGIT_POSITIONS = 256
"""Rows × answer tokens whose logits are made at once: 50 MB in float32 for a vocabulary of 49,152 tokens."""


def measure_memory(
    model: Any,
    modules: Mapping[str, nn.Module],
    rows: Sequence[tuple[Tensor, Tensor]],
    *,
    domain: str,
    base_fingerprint: str,
    kind: InputKind,
    strength: float,
    batch_size: int,
    seed: int,
) -> KFACMemory:
    """Make the memory of the domain that ``rows`` are from, at the model's present weights.

    Args:
        model: A causal LM without PEFT's outer wrapper; adapters on its layers act if they are on.
        modules: The layers to remember by their name in the base.
        rows: (token ids, labels), each of shape (s,); labels of −100 carry no loss.
        domain: Its name.
        base_fingerprint: Of the base.
        kind: Input factor that a constraint will act on; it is served first.
        strength: The constraint's; the memory keeps what it needs, and at least ``LEAST_SHARES``.
        batch_size: Rows per pass; the result does not depend on it.
        seed: Of the drawn labels; the global random state is left as it was.

    Raises:
        TrainingError: No row carries loss, or a statistic is not finite.

    Cost: one forward and one backward pass over the rows, and two more backward passes over the first
    ``DRAWN_EXAMPLES`` of them, which the outputs' factors and the gradient sketch are of; while it runs, two
    dense d × d matrices per layer and one per distinct input; wide ones are sketched instead.
    """
    device = model.get_input_embeddings().weight.device
    with_loss = [row for row in rows if bool((row[1][1:] != -100).any())] or list(rows)
    drawn, others = with_loss[:DRAWN_EXAMPLES], with_loss[DRAWN_EXAMPLES:]
    longest = max((int((labels[1:] != -100).sum()) for _, labels in drawn), default=1)
    fitting = max(1, min(batch_size, LOGIT_POSITIONS // max(longest, 1)))
    parts = ((drawn, fitting), (others, batch_size))
    sketch = SketchAccumulator(domain=domain)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        stats = gather_statistics(
            model,
            modules,
            (pad_rows(batch, device) for part, size in parts for batch in _of_like_length(part, size)),
            generator=torch.Generator().manual_seed(seed),
            domain=domain,
            accumulators=[sketch],
            # Where the constraint does not act on it, as many as the factor that it stands beside is of.
            energy_examples=None if kind == "energy" else DRAWN_EXAMPLES,
        )
    least = LEAST_BASE_SHARES if domain == BASE_DOMAIN else LEAST_SHARES
    # First, so that where directions are few it is the constraint's own kind that has them.
    shares: dict[str, float] = {kind: max(least[kind], protected_share(kind, domain, strength))}
    shares |= {other: share for other, share in least.items() if other != kind}
    memory = KFACMemory.from_statistics(
        stats, domain=domain, base_fingerprint=base_fingerprint, shares=shares
    )
    return replace(memory, sketch=sketch.finish())


def _of_like_length(
    rows: Sequence[tuple[Tensor, Tensor]], batch_size: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Batches of rows sorted by length, so that little is padded."""
    ordered = sorted(rows, key=lambda row: row[0].numel())
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]
