"""Golden sets: facts, reasoning and language that the base has and is to keep.

They are read from files like any domain's examples, or written by the base here, which needs nobody's data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import IGNORED, Tokens, encode_example, encode_prompt
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.decoding import continue_prompts
from constrained_adapters.evaluation.row_losses import row_losses
from constrained_adapters.rehearsal.generative import ends_and_padding
from constrained_adapters.rehearsal.golden_questions import OPENINGS, QUESTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRAWN: dict[str, Any] = {"do_sample": True, "top_k": 0}
"""Votes are drawn from the model's own distribution at temperature 1."""
LEAST_VARIETY = 0.5
"""A text with a smaller share of different 3-grams goes round in circles."""


@dataclass(frozen=True)
class GoldenSet:
    """What the base wrote and what of it is kept.

    Args:
        rows: By kind.
        facts: ``golden_written`` and ``golden_kept``, numbers of rows of all kinds.
    """

    rows: dict[str, list[Tokens]]
    facts: dict[str, float]


def write_golden_set(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_new_tokens: int = 32,
    num_votes: int = 4,
    min_agreement: float = 0.5,
    min_confidence: float = 0.5,
    questions: Mapping[str, Sequence[str]] = QUESTIONS,
    openings: Sequence[str] = OPENINGS,
    batch_size: int = 16,
) -> GoldenSet:
    """Let the base answer questions and continue openings, and keep what it is sure of.

    A greedy answer is kept where its tokens have a geometric mean probability of ``min_confidence`` and
    where ``min_agreement`` of the answers that are drawn begin with the same words (self-consistency, Wang
    et al. 2022, arXiv 2203.11171, here as a filter). A drawn text, of which no two agree, is kept where its
    confidence is among the better half and its 3-grams are different enough.

    Whether an answer is true is not asked: the set holds what the base would say, so that it goes on
    saying it.

    Args:
        model: The untouched base.
        tokenizer: Its own.
        seed: Of the draws; the global random state is left as it was.
        max_new_tokens: Longest answer or text.
        num_votes: Answers drawn for each question, 1 or more.
        min_agreement: 0 … 1.
        min_confidence: 0 … 1.
        questions: By kind: ``facts`` and ``reasoning``.
        openings: Of texts, for the kind ``language``.
        batch_size: Rows at once.

    Raises:
        ConfigError: A bound is outside 0 … 1, or nothing is drawn.
    """
    if num_votes < 1:
        raise ConfigError("no answer is drawn", got=f"num_votes = {num_votes}", expected="1 or more")
    for name, bound in (("min_agreement", min_agreement), ("min_confidence", min_confidence)):
        if not 0.0 <= bound <= 1.0:
            raise ConfigError(f"{name} is out of range", got=repr(bound), expected="0 … 1")
    ends, padding = ends_and_padding(model, tokenizer)

    def written(prompts: Sequence[Sequence[int]], sampling: dict[str, Any] | None) -> list[list[int]]:
        return continue_prompts(
            model,
            prompts,
            ends=ends,
            padding=padding,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sampling=sampling,
        )

    def said(tokens: list[int]) -> str:
        text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip().casefold()
        return text.partition("\n")[0].strip(" .,!\"'")

    rows: dict[str, list[Tokens]] = {}
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for kind, asked in questions.items():
            prompts = [_prompt(question, tokenizer) for question in asked]
            answers = written(prompts, None)
            votes = written([prompt for prompt in prompts for _ in range(num_votes)], DRAWN)
            agreed = []
            for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                own = votes[i * num_votes : (i + 1) * num_votes]
                share = sum(said(vote) == said(answer) for vote in own) / num_votes
                if said(answer) and share >= min_agreement:
                    agreed.append(Tokens([*prompt, *answer], [IGNORED] * len(prompt) + answer))
            nats = row_losses(model, agreed)
            sure = [math.exp(-loss) >= min_confidence for loss in nats]
            rows[kind] = [row for row, keep in zip(agreed, sure, strict=True) if keep]
        starts = [encode_example(Example(text=text), tokenizer, 4096).input_ids for text in openings]
        texts = written(starts, DRAWN)
        rows["language"] = _surest(model, starts, texts)
    num_written = sum(map(len, questions.values())) + len(openings)
    kept = sum(map(len, rows.values()))
    return GoldenSet(rows, {"golden_written": float(num_written), "golden_kept": float(kept)})


def _prompt(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return encode_prompt(Example(prompt=question, answer="x"), tokenizer, 4096)


def _surest(model: Any, starts: Sequence[list[int]], texts: Sequence[list[int]]) -> list[Tokens]:
    rows = [
        Tokens([*start, *text], [*start, *text])
        for start, text in zip(starts, texts, strict=True)
        if text and _variety(text) >= LEAST_VARIETY
    ]
    losses = row_losses(model, rows)
    best = sorted(range(len(rows)), key=lambda i: losses[i])[: (len(rows) + 1) // 2]
    return [rows[i] for i in sorted(best)]


def _variety(tokens: Sequence[int]) -> float:
    """Share of different ones among the 3-grams of a text; 1 where it has none."""
    grams = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return len(set(grams)) / len(grams) if grams else 1.0
