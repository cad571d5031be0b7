"""One pass of the model for the rows of a batch, each through its own adapters.

Axis letters: n rows, q tokens of a row in a pass, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from constrained_adapters.adapters.mixed import BASE_NAME, MixedBatch
from constrained_adapters.serving.answer import Answer
from constrained_adapters.serving.slots import SlotCache

if TYPE_CHECKING:
    from constrained_adapters.model.crma import CRMAModel


class BatchDecoder:
    """A model with a slot cache. Rows are named by their place in the cache; only one thread may call it.

    Args:
        model: In evaluation mode.
        slots: Most rows.
        context_tokens: Most tokens of a row.

    Raises:
        ModelError: The architecture keeps other things than keys and values.
    """

    def __init__(self, model: CRMAModel, slots: int, context_tokens: int) -> None:
        self.model = model
        attention = model.config._attn_implementation
        if attention not in ("sdpa", "eager"):  # others take no mask of ours
            model.set_attn_implementation("sdpa")
            attention = "sdpa"
        self._mask_dtype: torch.dtype | None = model.dtype if attention == "eager" else None
        self.cache = SlotCache(model.config, slots, context_tokens)
        self._stack = ExitStack()
        self._batch: MixedBatch | None = None
        self._adapters: list[Mapping[str, float]] = []

    @torch.inference_mode()
    def prefill(self, first_row: int, answers: Sequence[Answer], num_tokens: int) -> Tensor | None:
        """Read the next tokens of some prompts into rows that lie side by side.

        Args:
            first_row: Row of the first.
            answers: n of them, all read up to the same token.
            num_tokens: q; shorter prompts are filled up, and what is filled in is overwritten later.

        Returns:
            The logits after each prompt's last token, shape (n, v); None where a prompt is not read wholly.
        """
        start = answers[0].num_cached
        rows = [each.prompt[start : start + num_tokens] for each in answers]
        width = max(map(len, rows))
        lasts = [len(row) - 1 for row in rows]
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self._device)
        positions = torch.arange(start, start + width, device=ids.device).expand(len(rows), -1)
        self.cache.aim(
            slice(first_row, first_row + len(rows)), slice(start, start + width), num_columns=start + width
        )
        self._act([each.adapters for each in answers])
        kept = sorted(set(lasts))
        logits = self._pass(ids, positions, torch.tensor(kept, device=ids.device))
        for answer, row in zip(answers, rows, strict=True):
            answer.num_cached += len(row)
        if any(each.num_cached < len(each.prompt) for each in answers):
            return None
        return torch.stack([logits[row, kept.index(last)] for row, last in enumerate(lasts)])

    @torch.inference_mode()
    def decode(self, answers: Sequence[Answer]) -> Tensor:
        """Read the last token of each answer; they lie in the rows from 0 on.

        Returns:
            The logits after it, shape (n, v).
        """
        ids = torch.tensor([[each.tokens[-1]] for each in answers], device=self._device)
        columns = torch.tensor([each.num_cached for each in answers], device=ids.device)
        self.cache.aim(
            slice(0, len(answers)), columns, num_columns=max(each.num_cached for each in answers) + 1
        )
        self._act([each.adapters for each in answers])
        logits = self._pass(ids, columns[:, None], 1)
        for answer in answers:
            answer.num_cached += 1
        return logits[:, -1]

    def release(self) -> None:
        """Leave the model as it was found, such as before its adapters change."""
        self._stack.close()
        self._batch, self._adapters = None, []

    def _pass(self, ids: Tensor, positions: Tensor, kept: Tensor | int) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=self.cache.masks(positions, self._mask_dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=kept,
        ).logits
        return logits

    def _act(self, adapters: list[Mapping[str, float]]) -> None:
        if self._batch is None:
            self._batch = self._stack.enter_context(self.model.mixed_batch([BASE_NAME]))
        if adapters != self._adapters:
            self._batch.set_rows(adapters)
            self._adapters = adapters

    @property
    def _device(self) -> Any:
        return self.model.get_input_embeddings().weight.device
