"""The pairs (A, B) that the rows of a mixed batch go through at one layer, laid out for few products.

Two forms, both as three-dimensional tensors, padded with zeros to one rank r:

* each row its own pair, the adapters of a weighted row side by side: a batched product computes
  ``B_i A_i x_i`` and no rank too many;
* where many rows share few adapters, one pair per adapter: all rows go through all G · r ranks, and a gate
  g_i, the row's weight on the ranks of its own adapters and 0 elsewhere, makes it ``B (g_i ⊙ A x_i)``.

Every row against every adapter is G times the arithmetic; a pair per row is a copy per row. The first form is
taken while its copies are at most twice as large as the adapters.

Axis letters: n entries, G adapters that occur, m pairs (n or G), r rank, k tokens of an entry, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.concatenate import TensorState, concatenate, own_arithmetic, state_of
from constrained_adapters.adapters.lora import own_scaling

Row = Mapping[str, float]
"""The weights of one entry's adapters by name; empty for the base alone."""

PairState = tuple[Row, list[TensorState]]
"""What a pair was made of: the adapters with their weights, and the matrices as they were."""

MAX_COPIES = 2
"""Own pairs are made while they are at most this many times as large as the adapters."""


class RowPairs:
    """One layer's pairs, written anew only where an entry or its adapters changed.

    Memory: a copy of the adapters that occur, at most :data:`MAX_COPIES` of them and padding, until it is
    released.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.release()

    def release(self) -> None:
        """Free the copies."""
        self.rows: Sequence[Row] | None = None
        """The entries that it follows; the very object is compared."""
        self._a: Tensor | None = None
        """A of each pair, shape (m or more, r, d_in)."""
        self._b: Tensor | None = None
        """B with scaling and weight inside, shape (m or more, r, d_out)."""
        self._gates: Tensor | None = None
        """In the shared form the gates, shape (n, 1, m · r)."""
        self._num_pairs = 0
        self._states: list[PairState] = []
        self._sources: list[list[Tensor]] = []
        """The matrices that the states speak of: while they live, no other has their identity."""

    def follow(self, rows: Sequence[Row]) -> None:
        """Make the pairs those of ``rows``."""
        layer = self.layer
        here = [{name: weight for name, weight in row.items() if name in layer.lora_A} for row in rows]
        ranks = {name: len(layer.lora_A[name].weight) for row in here for name in row}
        self.rows, self._gates, self._num_pairs = rows, None, 0
        if not ranks:
            return
        widest, top = max(sum(ranks[name] for name in row) for row in here), max(ranks.values())
        with own_arithmetic(next(layer.parameters()).device):
            if len(rows) * widest <= MAX_COPIES * sum(ranks.values()):
                self._hold(here, widest)
                return
            self._hold([{name: 1.0} for name in ranks], top)
            assert self._a is not None
            gates = [[row.get(name, 0.0) for name in ranks] for row in here]
            self._gates = self._a.new_tensor(gates).repeat_interleave(self._a.shape[1], dim=1).unsqueeze(1)

    def delta(self, x: Tensor) -> Tensor | None:
        """What the adapters add for inputs of shape (n · c, …, d_in), shape (n · c, …, d_out).

        None where none is on this layer.
        """
        if not self._num_pairs:
            return None
        assert self._a is not None and self._b is not None and self.rows is not None
        a, b = self._a[: self._num_pairs], self._b[: self._num_pairs]
        inputs = x.to(a.dtype).reshape(len(self.rows), -1, a.shape[2])
        if self._gates is None:
            found = torch.bmm(torch.bmm(inputs, a.transpose(1, 2)), b)
        else:
            found = (nn.functional.linear(inputs, a.flatten(0, 1)) * self._gates) @ b.flatten(0, 1)
        return found.view(*x.shape[:-1], -1)

    def _hold(self, pairs: Sequence[Row], rank: int) -> None:
        """Write each pair that is not held already into its place."""
        layer = self.layer
        sources = [
            [part[name].weight for name in pair for part in (layer.lora_A, layer.lora_B)] for pair in pairs
        ]
        self._make_room(len(pairs), rank, [matrix for each in sources for matrix in each])
        assert self._a is not None and self._b is not None
        for place, (pair, matrices) in enumerate(zip(pairs, sources, strict=True)):
            state = (dict(pair), [state_of(matrix) for matrix in matrices])
            if state == self._states[place]:
                continue
            self._a[place], self._b[place] = 0, 0
            if pair:
                scalings = {name: weight * own_scaling(layer, name) for name, weight in pair.items()}
                a, b = concatenate(layer, scalings)
                self._a[place, : len(a)], self._b[place, : len(a)] = a, b.T
            self._states[place], self._sources[place] = state, matrices
        self._num_pairs = len(pairs)

    def _make_room(self, num_pairs: int, rank: int, matrices: Sequence[Tensor]) -> None:
        """Keep the tensors that are there unless they are too small, or twice too large."""
        device, dtype = matrices[0].device, reduce(torch.promote_types, (each.dtype for each in matrices))
        if self._a is not None and (self._a.device, self._a.dtype) == (device, dtype):
            room, ranks, _ = self._a.shape
            if num_pairs <= room <= 2 * num_pairs and rank <= ranks <= 2 * rank:
                return
        d_in, d_out = matrices[0].shape[1], matrices[1].shape[0]
        self._a = torch.zeros(num_pairs, rank, d_in, device=device, dtype=dtype)
        self._b = torch.zeros(num_pairs, rank, d_out, device=device, dtype=dtype)
        self._states = [({}, [])] * num_pairs
        self._sources = [[]] * num_pairs
