"""What one pass sums up for the K-FAC memory, densely or, for wide layers, as sketches.

Axis letters: n tokens of a batch, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.frequent_directions import FrequentDirections

WIDE = 2048
SKETCH_ROWS = 512
DRAWN_EXAMPLES = 16
"""Examples that ``output`` is made from: the gradient sketch's own, so that they share its backward pass."""
Covariance = Tensor | FrequentDirections


@dataclass
class Statistics:
    """Sums over tokens, float32; ``groups`` maps each module to the key of its shared input.

    ``energy`` stands by input, ``output`` by module, ``sensitivity`` by module while it is summed up and by
    input once it is normalised.
    """

    groups: dict[str, str] = field(default_factory=dict)
    energy: dict[str, Covariance] = field(default_factory=dict)
    sensitivity: dict[str, Covariance] = field(default_factory=dict)
    output: dict[str, Covariance] = field(default_factory=dict)
    num_tokens: int = 0
    """That ``energy`` is made from."""
    num_loss_tokens: int = 0
    num_drawn_tokens: int = 0
    """Loss tokens of the examples that ``output`` is made from."""
    num_examples: int = 0
    loss_nats: float = 0.0
    """Per loss token of the examples that ``output`` is made from."""

    def normalised(self, domain: str = "") -> Statistics:
        """Turn sums into means: ``energy`` per token, ``output`` per loss token; ``sensitivity`` at trace 1.

        Args:
            domain: Named in errors.

        Raises:
            TrainingError: There was no loss token, or a statistic is not finite.
        """
        of_domain = f" of domain {domain!r}" if domain else ""
        if self.num_loss_tokens == 0:
            raise TrainingError(
                f"no token of these examples{of_domain} carries loss", expected="at least one answer token"
            )
        for kind in ("energy", "sensitivity", "output"):
            for name, value in getattr(self, kind).items():
                # Sums of squares: what is not finite anywhere is not finite on the diagonal.
                diagonal = value.diagonal if isinstance(value, FrequentDirections) else value.diagonal()
                if not torch.isfinite(diagonal).all():
                    raise TrainingError(
                        f"the gradient memory{of_domain} is not finite",
                        got=f"{kind} of layer {name}",
                        hint="look for broken weights or examples; float16 overflows where bfloat16 does not",
                    )
        return replace(
            self,
            energy=_scaled(self.energy, 1 / self.num_tokens),
            sensitivity=_even(self.sensitivity, self.groups),
            output=_scaled(self.output, 1 / max(self.num_drawn_tokens, 1)),
            loss_nats=self.loss_nats / max(self.num_drawn_tokens, 1),
        )


class KFACAccumulator:
    """Sums ``energy``, ``sensitivity`` and ``output`` while the pass runs.

    Args:
        wide: Widths above it are streamed into Frequent Directions, so that no d × d matrix is made.
        sketch_rows: ℓ of those.
        drawn_examples: How many of the first examples make ``output``.
        energy_examples: How many of the first make ``energy``; default: all.
    """

    wants_true_labels = False

    @property
    def wants_drawn_labels(self) -> bool:
        """Only while the batch under way has examples for ``output``."""
        return self._drawn > 0

    def __init__(
        self,
        wide: int = WIDE,
        sketch_rows: int = SKETCH_ROWS,
        drawn_examples: int = DRAWN_EXAMPLES,
        energy_examples: int | None = None,
    ) -> None:
        self.statistics = Statistics()
        self.num_drawn_losses = 0
        """Of the batch under way, how many of its first loss tokens are of examples for ``output``."""
        self._wide, self._sketch_rows = wide, sketch_rows
        self._drawn_examples, self._drawn = drawn_examples, 0
        self._energy_examples, self._energetic = energy_examples, 0

    def start_batch(self, lengths: list[int], loss_lengths: list[int]) -> None:
        """Count the batch's tokens."""
        stats = self.statistics
        stats.num_loss_tokens += sum(loss_lengths)
        fit = max(0, self._drawn_examples - stats.num_examples)
        self._drawn, self.num_drawn_losses = sum(lengths[:fit]), sum(loss_lengths[:fit])
        stats.num_drawn_tokens += self.num_drawn_losses
        if self._energy_examples is not None:
            lengths = lengths[: max(0, self._energy_examples - stats.num_examples)]
        self._energetic = sum(lengths)
        stats.num_tokens += self._energetic
        stats.num_examples += len(loss_lengths)

    def add_inputs(self, name: str, key: str, rows: Tensor) -> None:
        """Take the inputs (n, d_in) of module ``name``, whose first reader is ``key``."""
        self.statistics.groups[name] = key
        if key == name and self._energetic:
            self._add(self.statistics.energy, key, rows[: self._energetic])

    def add_gradients(self, name: str, key: str, rows: Tensor, gradients: Tensor, source: str) -> None:
        """Take the output gradients (n, d_out) of the final states, and of the loss on drawn labels."""
        if source == "states":
            # First power: with squares the first token, on which attention falls back (the "sink" of Xiao et
            # al. 2023, arXiv 2309.17453), takes up to 93 % of the weight of a value projection.
            weights = gradients.norm(dim=1, keepdim=True)
            self._add(self.statistics.sensitivity, name, rows * weights.sqrt())
        elif source == "drawn" and self._drawn:
            self._add(self.statistics.output, name, gradients[: self._drawn])

    def end_batch(self) -> None:
        """Nothing waits for the end of a batch."""

    def _add(self, table: dict[str, Covariance], key: str, rows: Tensor) -> None:
        add_rows(table, key, rows, self._wide, self._sketch_rows)


def add_rows(
    table: dict[str, Covariance],
    key: str,
    rows: Tensor,
    wide: int = WIDE,
    sketch_rows: int = SKETCH_ROWS,
) -> None:
    """Add ``rowsᵀ rows`` of rows (n, d) to ``table[key]``: a matrix, or a sketch for d above ``wide``."""
    width = rows.shape[1]
    if key not in table:
        table[key] = (
            FrequentDirections(width, sketch_rows, rows.device)
            if width > wide
            else torch.zeros(width, width, device=rows.device, dtype=rows.dtype)
        )
    covariance = table[key]
    if isinstance(covariance, FrequentDirections):
        covariance.update(rows)
    else:
        covariance.addmm_(rows.T, rows)


def _scaled(table: Mapping[str, Covariance], scale: float) -> dict[str, Covariance]:
    return {
        key: value.scaled(scale) if isinstance(value, FrequentDirections) else value * scale
        for key, value in table.items()
    }


def _even(table: Mapping[str, Covariance], groups: Mapping[str, str]) -> dict[str, Covariance]:
    """By input: the mean of its modules' covariances, each at trace one."""
    readers: dict[str, list[Covariance]] = {}
    for module, key in groups.items():
        readers.setdefault(key, []).append(table[module])
    return {key: mean_at_trace_one(found) for key, found in readers.items()}


def mean_at_trace_one(covariances: Sequence[Covariance]) -> Covariance:
    """The mean of some matrices of one width, each divided by its trace; of sketches their sketch."""
    total: Covariance | None = None
    for each in covariances:
        diagonal = each.diagonal if isinstance(each, FrequentDirections) else each.diagonal()
        scale = 1.0 / (len(covariances) * max(float(diagonal.sum()), 1e-30))
        if isinstance(each, FrequentDirections):
            part = each.scaled(scale)
            if isinstance(total, FrequentDirections):
                whole = total.diagonal + part.diagonal
                total.update(part.rows)
                total.diagonal = whole
            else:
                total = part
        else:
            assert not isinstance(total, FrequentDirections)
            total = each * scale if total is None else total + each * scale
    assert total is not None
    return total
