"""Generative replay: the model writes examples of the finished domains itself; nothing of their data is kept.

A domain that is trained with the objective ``prompts`` teaches the model its prompts too, so that it can
write them. Before a later domain, the model as it was after the finished one writes examples, the newest
model answers their prompts anew, and the most diverse are mixed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import IGNORED, Tokens
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.decoding import continue_prompts
from constrained_adapters.evaluation.samples import end_tokens, special_tokens
from constrained_adapters.rehearsal.frame import Frame
from constrained_adapters.rehearsal.selection import order_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING: dict[str, Any] = {"do_sample": True, "top_k": 20}
"""LAMOL's: tokens are drawn from the 20 likeliest."""
ROUNDS = 3
"""How often as many rows as are missing are written again."""


def write_examples(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_examples: int,
    max_length_tokens: int,
    seed: int,
    running_text: bool = False,
    batch_size: int = 16,
) -> list[Tokens]:
    """Examples that a model writes: a prompt from the frame that every example begins with, and its answer.

    The prompt ends at the first token of what follows a prompt, or at half of ``max_length_tokens``; then its
    answer, with its end token, or cut there as a long answer is in training. Dropped are rows without
    prompt or answer, and any that was written before.

    Source: Sun et al. 2020 (LAMOL, arXiv 1909.03329), top-k sampling with k = 20. Deviations: no token of its
    own starts an example or divides prompt and answer; the frame of the tokenizer's examples does. Without a
    chat template a prompt ends at its first line break.

    Args:
        model: That has learnt a domain's prompts, with ``generate``.
        tokenizer: The model's.
        num_examples: How many are wanted, 1 or more.
        max_length_tokens: Longest row.
        seed: Of the draws; the global random state is left as it was.
        running_text: Write texts, every token of which is learnt, instead of prompts with answers.
        batch_size: Rows at once.

    Returns:
        Up to ``num_examples`` different rows; fewer where the model repeats itself.

    Raises:
        ConfigError: No example is wanted, or a row is too short for the frame.
    """
    frame, least = Frame.of(tokenizer), least_length_tokens(tokenizer, running_text=running_text)
    if num_examples < 1 or max_length_tokens < least:
        raise ConfigError(
            "no examples can be written",
            got=f"num_examples = {num_examples}, max_length_tokens = {max_length_tokens}",
            expected=f"1 or more, of at least {least} tokens",
        )
    rows: dict[tuple[int, ...], Tokens] = {}
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(ROUNDS):
            missing = num_examples - len(rows)
            if not missing:
                break
            write = _texts if running_text else _answered
            for row in write(model, tokenizer, frame, missing, max_length_tokens, batch_size):
                rows.setdefault(tuple(row.input_ids), row)
    return list(rows.values())


def least_length_tokens(tokenizer: PreTrainedTokenizerBase, *, running_text: bool = False) -> int:
    """The shortest row that :func:`write_examples` can write: its frame, and two tokens."""
    frame = Frame.of(tokenizer)
    return 2 + (len(frame.text_start) if running_text else len(frame.start) + len(frame.middle))


def refine_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tokens],
    *,
    max_length_tokens: int,
    batch_size: int = 16,
) -> list[Tokens]:
    """Rows whose answers another model, the newest, gives anew and greedily; an empty answer leaves the old.

    Source: Huang et al. 2024 (SSR, arXiv 2403.01244), its refinement by the latest model.

    Args:
        model: That answers.
        tokenizer: The model's.
        rows: With a prompt, whose labels are ``IGNORED``, before the first label.
        max_length_tokens: Longest row.
        batch_size: Rows at once.
    """
    ends, padding = ends_and_padding(model, tokenizer)
    starts = [next(at for at, label in enumerate(row.labels) if label != IGNORED) for row in rows]
    prompts = [row.input_ids[:at] for row, at in zip(rows, starts, strict=True)]
    longest = max(map(len, prompts), default=0)
    answers = continue_prompts(
        model,
        prompts,
        ends=ends,
        padding=padding,
        max_new_tokens=max(max_length_tokens - longest, 1),
        batch_size=batch_size,
    )
    return [
        row if not answer or answer[0] in ends else _row(prompt, answer)
        for row, prompt, answer in zip(rows, prompts, answers, strict=True)
    ]


def most_diverse(rows: Sequence[Tokens], count: int) -> list[Tokens]:
    """The ``count`` rows that cover all best, by hashed token n-grams; SSR clusters embeddings instead."""
    return order_rows(rows, "diverse", count=count, seed=0)


def _answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame,
    count: int,
    max_length: int,
    batch_size: int,
) -> list[Tokens]:
    ends, padding = ends_and_padding(model, tokenizer)
    stops = {*ends, frame.middle[0], *special_tokens(tokenizer)}
    room = max_length - len(frame.start) - len(frame.middle)

    def written(prompts: Sequence[Sequence[int]], at: set[int], most: int) -> list[list[int]]:
        return continue_prompts(
            model,
            prompts,
            ends=sorted(at),
            padding=padding,
            max_new_tokens=most,
            batch_size=batch_size,
            sampling=SAMPLING,
        )

    asked = written([frame.start] * count, stops, max(room // 2, 1))
    bodies = [body[:-1] if body[-1:] and body[-1] in stops else body for body in asked]
    prompts = [[*frame.start, *body, *frame.middle] for body in bodies if body]
    answers = written(prompts, set(ends), max(room - room // 2, 1)) if prompts else []
    return [
        _row(prompt, answer)
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer and answer[0] not in ends
    ]


def _texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame,
    count: int,
    max_length: int,
    batch_size: int,
) -> list[Tokens]:
    ends, padding = ends_and_padding(model, tokenizer)
    texts = continue_prompts(
        model,
        [frame.text_start] * count,
        ends=ends,
        padding=padding,
        max_new_tokens=max_length - len(frame.text_start),
        batch_size=batch_size,
        sampling=SAMPLING,
    )
    bare = [text[:-1] if text[-1:] and text[-1] in ends else text for text in texts]  # as in training
    return [_row(list(frame.text_start), text) for text in bare if text]


def _row(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    return Tokens([*prompt, *answer], [IGNORED] * len(prompt) + list(answer))


def ends_and_padding(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Tokens that end an answer, and the one that pads."""
    ends = end_tokens(model, tokenizer, [Example(prompt="x", answer="x")])
    padding = tokenizer.pad_token_id
    return ends, int(padding) if padding is not None else next(iter(ends), 0)
