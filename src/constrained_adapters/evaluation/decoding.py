"""Continuations of prompts in batches, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from constrained_adapters.models.modes import evaluating

# Every setting that changes decoding is given: the model's own defaults would fill the gaps.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def continue_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    padding: int,
    max_new_tokens: int,
    batch_size: int,
    sampling: dict[str, Any] | None = None,
    watch: LogitsProcessor | None = None,
) -> list[list[int]]:
    """Continue each prompt until an end token; greedily, or as ``sampling`` says.

    Args:
        model: A causal language model of transformers, adapters included; read in eval mode.
        prompts: Token ids, each 1 or more.
        ends: Tokens that end a continuation.
        padding: The token that stands where nothing is.
        max_new_tokens: Where a continuation is cut, 1 or more.
        batch_size: Most prompts in one batch, padded on the left.
        sampling: Settings of transformers that replace those of greedy decoding; draws come from the global
            random state.
        watch: Called with the rows so far and the next-token logits before each token is chosen.

    Returns:
        The new tokens of each prompt, in their order, with the end token where there is one.
    """
    config = GenerationConfig(
        **{**GREEDY, **(sampling or {})},
        max_new_tokens=max_new_tokens,
        pad_token_id=padding,
        eos_token_id=list(ends) or None,
    )
    device = model.get_input_embeddings().weight.device
    # Prompts of like length together: less padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    continuations: list[list[int]] = [[] for _ in prompts]
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(prompts[index]) for index in batch)
            gaps = [width - len(prompts[index]) for index in batch]
            rows = [[padding] * gap + list(prompts[index]) for index, gap in zip(batch, gaps, strict=True)]
            masks = [[0] * gap + [1] * (width - gap) for gap in gaps]
            written = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=config,
                logits_processor=LogitsProcessorList([] if watch is None else [watch]),
            )
            for index, row in zip(batch, written[:, width:].tolist(), strict=True):
                continuations[index] = _until(row, set(ends))
    return continuations


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    stop = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
