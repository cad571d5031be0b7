"""What the base answers with confidence and the data denies: facts that training would have to overwrite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import IGNORED, Tokens, encode_answer, encode_prompt
from constrained_adapters.diagnosis.contradictions import answers_agree
from constrained_adapters.evaluation.decoding import continue_prompts
from constrained_adapters.evaluation.likelihood import score_groups
from constrained_adapters.evaluation.row_losses import row_losses
from constrained_adapters.evaluation.samples import end_tokens
from constrained_adapters.models.token_tree import TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Belief:
    """One question on which the base is sure of another answer than the data's.

    Args:
        question: What is asked.
        answer: The data's answer.
        belief: The base's.
        confidence: With choices, its probability among them; else the geometric mean probability of its
            tokens; 0 … 1.
    """

    question: str
    answer: str
    belief: str
    confidence: float


def denied_beliefs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    min_confidence: float,
    max_length: int,
    max_new_tokens: int = 24,
    batch_size: int = 8,
) -> list[Belief]:
    """Ask the model each question and list where it is sure of another answer.

    With choices it is asked which is likeliest; without, it writes an answer, which counts only where it ends
    by itself. An answer that it gives to more than half of the questions is a habit of the model and not what
    it holds of any of them: it is left out.

    Args:
        model: The model before it is taught, in any mode.
        tokenizer: Its own.
        examples: Of the new data; running text is left out.
        min_confidence: 0 … 1.
        max_length: Most tokens of a prompt.
        max_new_tokens: Longest answer that is written.
        batch_size: Prompts at once.

    Returns:
        The surest first.

    Cost: a pass over the choices, or ``max_new_tokens`` decoding steps for each batch.
    """
    asked = [each for each in examples if each.form != "text"]
    chosen = [each for each in asked if len(set(each.choices)) > 1]
    open_ended = [each for each in asked if len(set(each.choices)) < 2]
    said = _likeliest(model, tokenizer, chosen, max_length, batch_size) + _written(
        model, tokenizer, open_ended, max_length, max_new_tokens, batch_size
    )
    counts = Counter(answer for answer, _ in said)
    habits = {answer for answer, count in counts.items() if count > max(1.0, len(said) / 2)}
    found = [
        Belief(example.task_prompt, example.reference, answer, confidence)
        for example, (answer, confidence) in zip([*chosen, *open_ended], said, strict=True)
        if confidence >= min_confidence
        and answer not in habits
        and not answers_agree(answer, example.reference)
    ]
    return sorted(found, key=lambda belief: -belief.confidence)


def _likeliest(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, batch: int
) -> list[tuple[str, float]]:
    choices = [list(dict.fromkeys(each.choices)) for each in examples]
    groups = []
    for example, options in zip(examples, choices, strict=True):
        prompt = encode_prompt(example, tokenizer, max_length)
        answers = [encode_answer(example, tokenizer, option) for option in options]
        groups.append(
            [TokenSequence([*prompt, *ids], [*range(len(prompt), len(prompt) + len(ids))]) for ids in answers]
        )
    found = []
    for options, scores in zip(choices, score_groups(model, groups, max_groups=batch), strict=True):
        logs = [-math.fsum(score.nats) for score in scores]
        total = math.fsum(math.exp(log - max(logs)) for log in logs)
        best = max(range(len(logs)), key=logs.__getitem__)
        found.append((options[best], 1.0 / total))
    return found


def _written(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_length: int,
    max_new_tokens: int,
    batch: int,
) -> list[tuple[str, float]]:
    if not examples:
        return []
    ends = end_tokens(model, tokenizer, examples)
    prompts = [encode_prompt(example, tokenizer, max_length) for example in examples]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    answers = continue_prompts(
        model, prompts, ends=ends, padding=int(padding), max_new_tokens=max_new_tokens, batch_size=batch
    )
    rows = [
        Tokens([*prompt, *ids], [IGNORED] * len(prompt) + ids)
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]
    return [
        (text, math.exp(-nats) if text and ids and ids[-1] in ends else 0.0)
        for text, ids, nats in zip(texts, answers, row_losses(model, rows), strict=True)
    ]
