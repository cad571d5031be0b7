"""Text that stands for what the base knew: it writes it itself, free of anybody's data, or it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from constrained_adapters.errors import AdapterStateError, TrainingError
from constrained_adapters.memory.probe import Rows
from constrained_adapters.memory.reservoir import sample_rows
from constrained_adapters.models.modes import evaluating

_TOKENS_A_DIRECTION = 8
_LEAST_TEXTS = 32


def base_texts(
    model: Any, width: int, rows: Rows | None = None, *, num_texts: int | None, length_tokens: int, seed: int
) -> Rows:
    """Text for the memory of the base: drawn from what is given, else written by it.

    Args:
        model: As for :func:`write_base_text`.
        width: Input directions.
        rows: (token ids, labels), each of shape (s,); None where the base writes.
        num_texts: How many; None: enough for eight tokens per input direction, at least 32.
        length_tokens: Of each text that is written.
        seed: Of the sampling.

    Raises:
        AdapterStateError: Rows are given, and there is none.
        TrainingError: As :func:`write_base_text`.
    """
    if rows is None:
        count = num_texts or _enough(width, length_tokens)
        return write_base_text(model, num_texts=count, length_tokens=length_tokens, seed=seed)
    if not rows:
        raise AdapterStateError(
            "there is no text for the base's memory", got="no rows", hint="leave rows out"
        )
    mean = sum(ids.numel() for ids, _ in rows) / len(rows)
    return sample_rows(rows, num_texts or _enough(width, max(1, int(mean))), seed)


def _enough(width: int, length_tokens: int) -> int:
    return max(_LEAST_TEXTS, -(-_TOKENS_A_DIRECTION * width // length_tokens))


@torch.no_grad()
def write_base_text(
    model: Any, *, num_texts: int, length_tokens: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Sample texts from the start token at temperature 1, so they follow the model's own distribution.

    Args:
        model: A causal LM with ``generate``; adapters must be off. Its modules' training modes are left as
            they were.
        num_texts: How many texts.
        length_tokens: Length at which a text ends, if the model has not ended it.
        seed: Of the sampling; the global random state is left as it was.

    Returns:
        Rows of (token ids, labels), each of shape (s,); every token but the start carries loss.

    Raises:
        TrainingError: A logit is not a number, or is infinite.

    Cost: ``length_tokens`` decoding steps at batch ``num_texts``.
    """
    start = _start_token(model)
    device = model.get_input_embeddings().weight.device
    ids = torch.full((num_texts, 1), start, device=device)
    devices = [device] if device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=length_tokens,
            pad_token_id=start,
            logits_processor=LogitsProcessorList([_RefuseBroken()]),
        )
    ends = _end_tokens(model)
    return [_row(text.cpu(), ends) for text in written]


class _RefuseBroken(LogitsProcessor):
    """Stops before torch draws from what is no distribution, which on a GPU breaks the whole process."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not bool((scores < torch.inf).all()):  # a token that is ruled out may be at -inf
            raise TrainingError(
                "the base cannot write text: what it predicts is not finite",
                got=f"logits of token {input_ids.shape[1] + 1}",
                hint="look for broken weights; float16 overflows where bfloat16 does not",
            )
        return scores


def _row(text: Tensor, ends: set[int]) -> tuple[Tensor, Tensor]:
    stop = next((i + 1 for i, token in enumerate(text.tolist()) if i > 0 and token in ends), text.numel())
    ids = text[:stop].to(torch.int32)
    labels = ids.clone()
    labels[0] = -100
    return ids, labels


def _start_token(model: Any) -> int:
    config = model.generation_config
    start = config.bos_token_id if config.bos_token_id is not None else model.config.bos_token_id
    if start is None:
        start = next(iter(_end_tokens(model)), 0)
    return int(start)


def _end_tokens(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    end = model.config.eos_token_id if end is None else end
    return set(end) if isinstance(end, list) else {end} if end is not None else set()
