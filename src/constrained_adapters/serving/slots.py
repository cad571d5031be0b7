"""Keys and values of all running sequences in one block of memory: a row a sequence, a column a token.

Every row starts at column 0, and a step writes each row at its own column: rows of any age decode together.
They lie side by side from 0 on: when one leaves, the last takes its place, by one copy of what it holds.

Axis letters: s slots, c context in tokens, h key-value heads, n rows of a pass, q tokens of a row in a pass,
d width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from constrained_adapters.errors import ModelError

KINDS = ("full_attention", "sliding_attention")


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, each of shape (s, h, c, d), allocated when the layer is first used."""

    def __init__(self, slots: int, context_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shape = slots, context_tokens
        self.rows = slice(0, 0)
        self.columns: Tensor | slice = slice(0, 0)
        """Where the pass writes: a range, the same for all rows, or one column a row, shape (n,)."""
        self.num_columns = 0
        """Columns that the pass can see."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate."""
        slots, context = self._shape
        for name, states in (("keys", key_states), ("values", value_states)):
            _, heads, _, width = states.shape
            with torch.inference_mode(False):
                block = torch.zeros(slots, heads, context, width, dtype=states.dtype, device=states.device)
            setattr(self, name, block)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values, each (n, h, q, d); return all that its rows can see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        found = []
        for block, states in ((self.keys, key_states), (self.values, value_states)):
            assert block is not None
            mine = block[self.rows]
            if isinstance(self.columns, slice):
                mine[:, :, self.columns] = states
            else:
                mine[torch.arange(len(mine), device=block.device), :, self.columns] = states[:, :, 0]
            found.append(mine[:, :, : self.num_columns])
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that are seen, and the first of them."""
        return self.num_columns, 0

    def get_seq_length(self) -> int:
        """Columns that are seen."""
        return self.num_columns

    def get_max_length(self) -> int:
        """Columns that there are."""
        return self._shape[1]


class SlotCache(Cache):
    """The keys and values of up to ``slots`` sequences.

    Args:
        config: Of the model.
        slots: s.
        context_tokens: c.

    Raises:
        ModelError: The model keeps other things than keys and values of attention.
    """

    def __init__(self, config: Any, slots: int, context_tokens: int) -> None:
        config = config.get_text_config()
        num_layers = int(config.num_hidden_layers)
        kinds = getattr(config, "layer_types", None)
        self.window: int | None = getattr(config, "sliding_window", None)
        if kinds is None:
            kinds = [KINDS[1] if self.window else KINDS[0]] * num_layers
        if not set(kinds) <= set(KINDS):
            raise ModelError(
                "this architecture cannot be decoded in a batch whose rows come and go",
                got=f"layers of the kinds {sorted(set(kinds))}",
                expected="attention, full or with a sliding window",
                hint="--engine vllm",
            )
        self.kinds = sorted(set(kinds))
        self.slots, self.context_tokens = slots, context_tokens
        self._slot_layers = [SlotLayer(slots, context_tokens) for _ in range(num_layers)]
        super().__init__(layers=list(self._slot_layers))

    def aim(self, rows: slice, columns: Tensor | slice, num_columns: int) -> None:
        """Say where the next pass writes and what it sees."""
        for layer in self._slot_layers:
            layer.rows, layer.columns, layer.num_columns = rows, columns, num_columns

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first ``num_tokens`` columns of one row over another."""
        for layer in self._slot_layers:
            for block in (layer.keys, layer.values):
                if block is not None:
                    block[target, :, :num_tokens] = block[source, :, :num_tokens]

    def masks(self, positions: Tensor, dtype: torch.dtype | None) -> Any:
        """What each token of a pass may attend to.

        Args:
            positions: Column of each token, shape (n, q).
            dtype: None for a boolean mask; a floating type for one that is added to the scores.

        Returns:
            Shape (n, 1, q, columns seen); where layers differ, one by kind of layer.
        """
        columns = torch.arange(self._slot_layers[0].num_columns, device=positions.device)
        causal = columns <= positions[:, None, :, None]
        found = {KINDS[0]: causal}
        if self.window:
            found[KINDS[1]] = causal & (columns > positions[:, None, :, None] - self.window)
        if dtype is not None:
            blocked = torch.finfo(dtype).min
            found = {
                kind: torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, blocked)
                for kind, mask in found.items()
            }
        if len(self.kinds) == 1:
            return found[self.kinds[0]]
        return found


def slot_bytes(config: Any, slots: int, context_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of a :class:`SlotCache`: ``s · c · layers · 2 · h · d · bytes of a number``."""
    config = config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(slots * context_tokens * config.num_hidden_layers * 2 * num_heads * width * dtype.itemsize)
