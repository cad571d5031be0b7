"""A prompt as one vector: the mean of the base's hidden states after its first decoder layer.

Axis letters: b prompts, s tokens, d width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.errors import ModelError
from constrained_adapters.models.decoder import decoder_layers
from constrained_adapters.models.modes import evaluating

STATISTICS_FILE = "routing.safetensors"
MAX_TOKENS = 256
"""A longer prompt loses its middle."""
BATCH_TOKENS = 4096
"""Rows × tokens of one pass."""

_WORD = re.compile(r"\w+")


class PromptStates:
    """Vectors of prompts from the first decoder layer of a base.

    One layer tells topics apart as well as it takes (docs/guide/routing.md has the figures), and costs one
    part in as many as there are layers of what reading the prompt costs.

    Args:
        model: A causal language model of transformers, or a ``CRMAModel``, whose adapters are switched off
            for the pass. Two threads must not use it at once.
        tokenizer: Of the model.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._module, self.name = _watched(inner)
        self.file = STATISTICS_FILE

    @property
    def width(self) -> int:
        """Of a vector."""
        return int(self._model.get_input_embeddings().weight.shape[1])

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The vectors of texts, (b, d), float64 on the CPU, and how many tokens each is the mean of, (b).

        Cost: one decoder layer on at most :data:`MAX_TOKENS` tokens of each.
        """
        rows = [self._ids(text) for text in texts]
        found = torch.zeros(len(rows), self.width, dtype=torch.float64)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))  # little is padded
        while order:
            count = 1
            while count < len(order) and len(rows[order[count]]) * (count + 1) <= BATCH_TOKENS:
                count += 1
            batch, order = order[:count], order[count:]
            hidden, mask = self._pass([rows[index] for index in batch])
            weights = mask[:, :, None] / mask.sum(1)[:, None, None]
            found[batch] = (hidden.double().cpu() * weights).sum(1)
        return found, torch.tensor([float(len(row)) for row in rows], dtype=torch.float64)

    def words(self, text: str) -> tuple[list[str], Tensor]:
        """The words of a text in their order, and the part of its vector that comes from each, (words, d).

        In scripts without spaces a word is what the tokenizer takes together.
        """
        ids, ends = self._encode(text)
        hidden, _ = self._pass([ids])
        parts = hidden[0].double().cpu() / len(ids)
        spans = [(found.start(), found.group()) for found in _WORD.finditer(text)]
        words: list[str] = []
        sums: list[Tensor] = []
        before = -2
        for at, (end, part) in enumerate(zip(ends, parts, strict=True)):
            span = next((i for i, (begin, word) in enumerate(spans) if begin <= end < begin + len(word)), -1)
            if span >= 0 and span == before and spans[span][1].isascii():
                sums[-1] = sums[-1] + part
            else:
                ascii_word = span >= 0 and spans[span][1].isascii()
                words.append(
                    spans[span][1] if ascii_word else self._tokenizer.decode(ids[at : at + 1]).strip()
                )
                sums.append(part)
            before = span
        return words, torch.stack(sums)

    def _ids(self, text: str) -> list[int]:
        return self._encode(text)[0]

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and where the last letter of each stands in the text; an empty text is one token."""
        fast = bool(getattr(self._tokenizer, "is_fast", False))
        made = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        ids = list(made["input_ids"])
        ends = [end - 1 for _, end in made["offset_mapping"]] if fast else [-1] * len(ids)
        if len(ids) > MAX_TOKENS:
            head = MAX_TOKENS // 2
            ids, ends = ids[:head] + ids[-head:], ends[:head] + ends[-head:]
        return (ids, ends) if ids else ([self._tokenizer.pad_token_id or 0], [-1])

    def _pass(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Hidden states of rows padded on the right, (b, s, d), and which belong to a token, (b, s)."""
        width = max(len(row) for row in rows)
        device = self._model.get_input_embeddings().weight.device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        off: AbstractContextManager[None] = getattr(self._model, "base_only", nullcontext)()
        mode = evaluating(self._model) if self._model.training else nullcontext()
        kept: list[Tensor] = []
        with off, mode, torch.no_grad(), _stopping_after(self._module, kept.append):
            self._model(input_ids=ids, attention_mask=mask, use_cache=False)
        return kept[0], mask.cpu()


def _watched(model: Any) -> tuple[nn.Module, str]:
    """The module whose output is taken, and what files call it."""
    try:
        return decoder_layers(model)[0].module, "decoder layer 1"
    except ModelError:  # an architecture whose layers are not told apart
        return model.get_input_embeddings(), "embeddings"


class _Stop(Exception):  # noqa: N818 - no error: the rest of the pass is not wanted
    """Ends a forward pass."""


@contextmanager
def _stopping_after(module: nn.Module, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Within this context a pass ends, quietly, once ``module`` has put out its hidden states."""

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = module.register_forward_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
