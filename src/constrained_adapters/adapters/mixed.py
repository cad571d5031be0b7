"""Each row of a batch through its own weighted adapters, all rows at once.

How a layer computes them: :mod:`~constrained_adapters.adapters.row_pairs`. PEFT's own mixed batch loops over
the adapters in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from constrained_adapters.adapters.row_pairs import RowPairs
from constrained_adapters.errors import ConfigError

BASE_NAME = "__base__"
"""PEFT's name for a row without adapter."""

RowAdapters = str | Mapping[str, float]
"""One row's adapters: a name (weight 1), weights by name, or :data:`BASE_NAME`."""


class MixedBatch:
    """Which adapters act on which row; may be changed between two decoding steps.

    Args:
        rows: One entry per row, see :meth:`set_rows`.
        known: Maps a name as typed to an adapter's name, or raises.
    """

    def __init__(self, rows: Sequence[RowAdapters], *, known: Callable[[str], str]) -> None:
        self._known = known
        self.set_rows(rows)

    def set_rows(self, rows: Sequence[RowAdapters]) -> None:
        """Say anew what each row of the following passes goes through, as rows join and leave.

        Args:
            rows: n entries; a batch of b = c · n rows belongs to them in blocks of c, as ``generate`` lays
                out beams and ``num_return_sequences``. An entry that stays in its place costs nothing.

        Raises:
            ConfigError: There is no entry, or a weight is not a finite number.
            UnknownNameError: A name is no adapter.
        """
        if not rows:
            raise ConfigError(
                "a mixed batch needs one entry per row", got="none", expected="at least one row"
            )
        self.rows = [self._weights(row) for row in rows]

    def output(self, pairs: RowPairs, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the layer of ``pairs`` for inputs x of shape (b, …, d_in)."""
        if pairs.rows is not self.rows:
            pairs.follow(self.rows)
        result: Tensor = pairs.layer.base_layer(x, *args, **kwargs)
        if len(x) % len(self.rows):
            raise ConfigError(
                "the batch does not divide into the entries of adapter_names",
                got=f"{len(x)} rows for {len(self.rows)} entries",
                expected="one entry per row, or as many rows for each entry (beams, num_return_sequences)",
            )
        delta = pairs.delta(x)
        return result if delta is None else result + delta.to(result.dtype)

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
