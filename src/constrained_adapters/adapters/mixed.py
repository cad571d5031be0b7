"""Each row of a batch through its own weighted adapters, all rows at once.

For the adapters that occur, stacked as A (R × d_in) and B (d_out × R) with their scalings inside B, row i
adds ``B (g_i ⊙ A x_i)``: its gate g_i is the row's weight on the ranks of each of its adapters and 0
elsewhere. Two matrix products a layer, however many adapters there are; PEFT loops over them.

Axis letters: n entries, b rows of the batch (a multiple of n), R sum of the ranks, d width.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from constrained_adapters.adapters.concatenate import TensorState, concatenate, own_arithmetic, state_of
from constrained_adapters.adapters.lora import own_scaling
from constrained_adapters.errors import ConfigError

BASE_NAME = "__base__"
"""PEFT's name for a row without adapter."""

RowAdapters = str | Mapping[str, float]
"""One row's adapters: a name (weight 1), weights by name, or :data:`BASE_NAME`."""

Layout = tuple[tuple[str, int], ...]
"""The adapters of a stack in their order, each with its rank."""

MAX_SETS = 2


@dataclass
class Stack:
    """The concatenated adapters of one layer; A: (R, d_in), B: (d_out, R)."""

    a: Tensor
    b: Tensor
    layout: Layout
    states: list[TensorState]
    sources: list[Tensor]


@dataclass
class StackedSet:
    """The stacks of one set of adapters, by layer, each made when it is first used."""

    names: tuple[str, ...]
    stacks: dict[int, Stack | None] = field(default_factory=dict)

    def of(self, layer: LoraLayer) -> Stack | None:
        """The layer's stack; None where none of the adapters is on it."""
        key = id(layer)
        if key not in self.stacks:
            self.stacks[key] = _stack(layer, self.names)
        return self.stacks[key]

    def drop_changed(self, layers: Sequence[LoraLayer]) -> None:
        """Forget the stacks whose matrices were trained, replaced or moved since."""
        for layer in layers:
            stack = self.stacks.get(id(layer))
            if stack is not None and [state_of(t) for t in _matrices(layer, self.names)] != stack.states:
                del self.stacks[id(layer)]


class StackCache:
    """The last :data:`MAX_SETS` sets of adapters that occurred together.

    Memory: each holds a copy of its adapters.
    """

    def __init__(self) -> None:
        self._sets: OrderedDict[tuple[str, ...], StackedSet] = OrderedDict()

    def get(self, names: set[str], layers: Sequence[LoraLayer]) -> StackedSet:
        """A set that holds ``names``, checked: a cached one of up to twice the size saves the stacking."""
        holding = [key for key in self._sets if names <= set(key) and len(key) <= 2 * len(names)]
        key = min(holding, key=len, default=tuple(sorted(names)))
        found = self._sets.pop(key, None) or StackedSet(key)
        found.drop_changed(layers)
        self._sets[key] = found
        while len(self._sets) > MAX_SETS:
            self._sets.popitem(last=False)
        return found

    def drop(self, adapter: str | None = None) -> None:
        """Forget the sets with ``adapter``; without one, all."""
        for key in list(self._sets):
            if adapter is None or adapter in key:
                del self._sets[key]


class MixedBatch:
    """Which adapters act on which row; may be changed between two decoding steps.

    Args:
        rows: One entry per row, see :meth:`set_rows`.
        layers: The adapted layers.
        cache: Of their stacks.
        known: Maps a name as typed to an adapter's name, or raises.
    """

    def __init__(
        self,
        rows: Sequence[RowAdapters],
        *,
        layers: Sequence[LoraLayer],
        cache: StackCache,
        known: Callable[[str], str],
    ) -> None:
        self._layers, self._cache, self._known = layers, cache, known
        self.set_rows(rows)

    def set_rows(self, rows: Sequence[RowAdapters]) -> None:
        """Say anew what each row of the following passes goes through, as rows join and leave.

        Args:
            rows: n entries; a batch of b = k · n rows belongs to them in blocks of k, as ``generate`` lays
                out beams and ``num_return_sequences``.

        Raises:
            ConfigError: There is no entry, or a weight is not a finite number.
            UnknownNameError: A name is no adapter.
        """
        self.rows = [self._weights(row) for row in rows]
        if not self.rows:
            raise ConfigError(
                "a mixed batch needs one entry per row", got="none", expected="at least one row"
            )
        self._gates: dict[tuple[Layout, int], Tensor] = {}
        names = {name for row in self.rows for name in row}
        self._stacked = self._cache.get(names, self._layers) if names else None

    def output(self, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output for inputs x of shape (b, …, d_in)."""
        result: Tensor = layer.base_layer(x, *args, **kwargs)
        stack = self._stacked.of(layer) if self._stacked is not None else None
        if stack is None:
            return result
        gates = self._gates.get((stack.layout, x.shape[0]))
        if gates is None:
            gates = self._make_gates(stack, x.shape[0])
        inner = nn.functional.linear(x.to(stack.a.dtype), stack.a)
        inner = inner * gates.view(x.shape[0], *[1] * (x.dim() - 2), -1)
        return result + nn.functional.linear(inner, stack.b).to(result.dtype)

    def _weights(self, row: RowAdapters) -> dict[str, float]:
        if isinstance(row, str):
            return {} if row == BASE_NAME else {self._known(row): 1.0}
        if not isinstance(row, Mapping):
            raise ConfigError(
                "an entry of a mixed batch cannot be read",
                got=repr(row),
                expected=f"an adapter's name, {{name: weight}} or {BASE_NAME!r}",
            )
        for name, weight in row.items():
            if not isinstance(weight, int | float) or not math.isfinite(weight):  # type: ignore[redundant-expr]
                raise ConfigError(
                    f"the weight of adapter {name!r} is not a finite number",
                    got=f"{weight!r} in {dict(row)}",
                    expected="a number such as 0.7",
                )
        return {self._known(name): float(weight) for name, weight in row.items() if name != BASE_NAME}

    def _make_gates(self, stack: Stack, num_rows: int) -> Tensor:
        """Gates of shape (b, R), kept until the rows change."""
        if num_rows % len(self.rows):
            raise ConfigError(
                "the batch does not divide into the entries of adapter_names",
                got=f"{num_rows} rows for {len(self.rows)} entries",
                expected="one entry per row, or as many rows for each entry (beams, num_return_sequences)",
            )
        values = [
            [row.get(name, 0.0) for name, rank in stack.layout for _ in range(rank)] for row in self.rows
        ]
        with own_arithmetic(stack.a.device):
            gates = torch.tensor(values, dtype=stack.a.dtype, device=stack.a.device)
            gates = gates.repeat_interleave(num_rows // len(self.rows), dim=0)
        self._gates[stack.layout, num_rows] = gates
        return gates


def _matrices(layer: Any, names: Sequence[str]) -> list[Tensor]:
    return [
        part[name].weight for name in names if name in layer.lora_A for part in (layer.lora_A, layer.lora_B)
    ]


def _stack(layer: Any, names: Sequence[str]) -> Stack | None:
    here = {name: own_scaling(layer, name) for name in names if name in layer.lora_A}
    if not here:
        return None
    sources = _matrices(layer, names)
    with own_arithmetic(sources[0].device):
        a, b = concatenate(layer, here)
    layout = tuple((name, int(layer.lora_A[name].weight.shape[0])) for name in here)
    return Stack(a, b, layout, [state_of(tensor) for tensor in sources], sources)
