"""What one pass sums up for the K-FAC memory, densely or, for wide layers, as sketches.

Axis letters: n tokens of a batch, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.frequent_directions import FrequentDirections

WIDE = 2048
SKETCH_ROWS = 512
Covariance = Tensor | FrequentDirections


@dataclass
class Statistics:
    """Sums over tokens, float32; ``groups`` maps each module to the key of its shared input."""

    groups: dict[str, str] = field(default_factory=dict)
    energy: dict[str, Covariance] = field(default_factory=dict)
    weighted: dict[str, Covariance] = field(default_factory=dict)
    output: dict[str, Covariance] = field(default_factory=dict)
    num_tokens: int = 0
    num_loss_tokens: int = 0
    num_examples: int = 0
    loss_nats: float = 0.0

    def normalised(self, domain: str = "") -> Statistics:
        """Sums turned into means: ``energy`` per token, the others per loss token.

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
        for kind in ("energy", "weighted", "output"):
            for name, value in getattr(self, kind).items():
                kept = value.diagonal if isinstance(value, FrequentDirections) else value
                if not torch.isfinite(kept).all():
                    raise TrainingError(
                        f"the gradient memory{of_domain} is not finite",
                        got=f"{kind} of layer {name}",
                        hint="look for broken weights or examples; float16 overflows where bfloat16 does not",
                    )
        return replace(
            self,
            energy=_scaled(self.energy, 1 / self.num_tokens),
            weighted=_scaled(self.weighted, 1 / self.num_loss_tokens),
            output=_scaled(self.output, 1 / self.num_loss_tokens),
            loss_nats=self.loss_nats / self.num_loss_tokens,
        )


class KFACAccumulator:
    """Sums ``energy``, ``weighted`` and ``output`` while the pass runs.

    Args:
        wide: Widths above it are streamed into Frequent Directions, so that no d × d matrix is made.
        sketch_rows: ℓ of those.
    """

    wants_true_labels = False

    def __init__(self, wide: int = WIDE, sketch_rows: int = SKETCH_ROWS) -> None:
        self.statistics = Statistics()
        self._wide, self._sketch_rows = wide, sketch_rows
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}

    def start_batch(self, lengths: list[int], loss_lengths: list[int]) -> None:
        """Count the batch's tokens."""
        stats = self.statistics
        stats.num_tokens += sum(lengths)
        stats.num_loss_tokens += sum(loss_lengths)
        stats.num_examples += len(lengths)
        self._pending = {}

    def add_inputs(self, name: str, key: str, rows: Tensor) -> None:
        """Take the inputs (n, d_in) of module ``name``, whose first reader is ``key``."""
        self.statistics.groups[name] = key
        if key == name:
            self._add(self.statistics.energy, key, rows)

    def add_gradients(self, name: str, key: str, rows: Tensor, gradients: Tensor, *, drawn: bool) -> None:
        """Take the output gradients (n, d_out) of the loss on drawn labels."""
        if drawn:
            weights = gradients.square().sum(1)
            if key in self._pending:
                weights = weights + self._pending[key][1]
            self._pending[key] = (rows, weights)
            self._add(self.statistics.output, name, gradients)

    def end_batch(self) -> None:
        """Add the weighted inputs: once all modules that share them have given their weight."""
        for key, (rows, weights) in self._pending.items():
            self._add(self.statistics.weighted, key, rows * weights.sqrt()[:, None])
        self._pending = {}

    def _add(self, table: dict[str, Covariance], key: str, rows: Tensor) -> None:
        width = rows.shape[1]
        if width > self._wide:
            sketch = table.setdefault(key, FrequentDirections(width, self._sketch_rows, rows.device))
            assert isinstance(sketch, FrequentDirections)
            sketch.update(rows)
        elif key in table:
            dense = table[key]
            assert isinstance(dense, Tensor)
            dense.addmm_(rows.T, rows)
        else:
            table[key] = rows.T @ rows


def _scaled(table: Mapping[str, Covariance], scale: float) -> dict[str, Covariance]:
    return {
        key: value.scaled(scale) if isinstance(value, FrequentDirections) else value * scale
        for key, value in table.items()
    }
