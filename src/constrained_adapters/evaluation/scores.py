"""Scores of examples: loss, exact match and choice by likelihood, all by reading and none by writing.

Prompt, answer and choices of an example go through the model together, see
:mod:`constrained_adapters.evaluation.likelihood`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import IGNORED, encode_answer, encode_example, encode_prompt
from constrained_adapters.errors import DataError, TrainingError
from constrained_adapters.evaluation.items import item_keys
from constrained_adapters.evaluation.likelihood import TokenScores, score_groups
from constrained_adapters.evaluation.samples import special_tokens
from constrained_adapters.models.token_tree import TokenSequence
from constrained_adapters.results import ItemScores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExampleScore:
    """How well a model knows one example.

    Args:
        loss_nats: Mean negative log-likelihood of the learnt tokens, nats per token.
        num_tokens: How many tokens that is.
        exact: Whether greedy decoding writes exactly the (last) answer and then ends; None for text.
        choice_correct: Whether the answer is likelier than every other choice; None without choices.
    """

    loss_nats: float
    num_tokens: int
    exact: bool | None
    choice_correct: bool | None


def score_examples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
) -> list[ExampleScore]:
    """Score examples in any form.

    *Loss* is taken on the tokens that training takes it on, so ``exp(-loss · num_tokens)`` is the
    probability of the answer with its end-of-turn token (of all the assistant's turns where there are
    several). The first token of a text has nothing before it and is not scored, unless the tokenizer
    starts with a token of its own.

    *Exact match* needs no generation: greedy decoding writes the reference if and only if at each of
    its positions the likeliest token, given the reference so far, is the reference's next token. Two
    tokens of equal likelihood, which happen in 16 bit, may fall either way in either procedure.

    *Choice*: the choice with the highest log-likelihood, **summed** over the tokens of its text: the
    log of the probability that what the model says starts with that choice. It is not divided by the
    number of tokens (a mean favours long choices whose ends follow from their beginnings), and the end-
    of-turn token is left out: whether a model stops there is format, which exact match measures, not
    knowledge (on 40 items of the packaged programming domain, the packaged model before training picks
    .18 right without the end and .03 with it, chance is .04). Where one choice begins with another, the
    shorter would always win; the end tokens then count for every choice of that example. A tie with
    another choice is wrong: a model that cannot tell two answers apart does not know the right one.

    Args:
        model: A causal language model, adapters included; its modes and gradients are left as they are.
        tokenizer: The model's.
        examples: Of any form, mixed as may be.
        batch_size: Most examples in one forward pass, 1 or more; long ones go in smaller batches.
        max_length: Most tokens of a prompt with its answer; longer prompts lose their middle as in
            training. An answer that is cut is scored on what is left of it.

    Returns:
        One score per example, in their order.

    Raises:
        DataError: An example has no token to score, or its reference is not among its choices.
        TrainingError: A loss is not finite.
    """
    groups = [_encode(example, tokenizer, str(tokenizer.chat_template), max_length) for example in examples]
    for number, (example, group) in enumerate(zip(examples, groups, strict=True), 1):
        _check(example, group, number)
    scores = score_groups(model, [group.sequences for group in groups], max_groups=batch_size)
    return [
        _example_score(example, group, found, number)
        for number, (example, group, found) in enumerate(zip(examples, groups, scores, strict=True), 1)
    ]


def score_items(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_length: int,
) -> ItemScores:
    """Score examples as :func:`score_examples` does, for the record: six digits of each loss, and its key.

    Args:
        model: As there.
        tokenizer: As there.
        examples: As there.
        batch_size: As there.
        max_length: As there.

    Raises:
        DataError: As there.
        TrainingError: As there.
    """
    scores = score_examples(model, tokenizer, examples, batch_size=batch_size, max_length=max_length)
    return ItemScores(
        keys=item_keys(examples),
        loss=[float(f"{score.loss_nats:.6g}") for score in scores],
        num_tokens=[score.num_tokens for score in scores],
        exact_match=[None if score.exact is None else float(score.exact) for score in scores],
        choice_accuracy=[
            None if score.choice_correct is None else float(score.choice_correct) for score in scores
        ],
        superseded=[example.superseded for example in examples]
        if any(e.superseded for e in examples)
        else [],
    )


def mean_nats(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_length: int,
) -> float:
    """Mean loss over all tokens of all texts: ``Σ nats / Σ tokens``; its ``exp`` is the perplexity.

    Args:
        model: A causal language model.
        tokenizer: The model's.
        texts: Running text, such as text that no domain is about.
        batch_size: Most texts in one forward pass.
        max_length: Most tokens that are read of each text.

    Returns:
        Nats per token, 0 or more.

    Raises:
        DataError: There is no text, or one has no token to score.
        TrainingError: A loss is not finite.
    """
    if not texts:
        raise DataError("there is no text to take the loss of", got="0 texts", expected="1 or more")
    examples = [Example(text=text) for text in texts]
    scores = score_examples(model, tokenizer, examples, batch_size=batch_size, max_length=max_length)
    num_tokens = sum(score.num_tokens for score in scores)
    return math.fsum(score.loss_nats * score.num_tokens for score in scores) / num_tokens


@dataclass(frozen=True)
class _Group:
    """One example as token sequences: itself as it is trained, the reference, every other choice."""

    sequences: list[TokenSequence]
    """The reference stands twice where there are choices: first with all that is learnt, cut to the
    longest length; then as one of the choices. In the tree that costs nothing."""
    answer_start: int
    """Index of the (last) answer's first token in the reference."""
    is_choice: bool = True
    """Whether the reference is among the choices, where there are any."""


# The same items are scored after every domain of every method, and to render and tokenise twenty
# choices of each takes a sixth of the time of scoring them. 2048 items hold about 40 MB.
@functools.lru_cache(maxsize=2048)
def _encode(example: Example, tokenizer: PreTrainedTokenizerBase, _template: str, max_length: int) -> _Group:
    tokens = encode_example(example, tokenizer, max_length)
    scored = [at for at, label in enumerate(tokens.labels) if at > 0 and label != IGNORED]
    learnt = TokenSequence(tokens.input_ids, scored)
    if example.form == "text":
        return _Group([learnt], answer_start=0)
    prompt = encode_prompt(example, tokenizer, max_length)
    if not example.choices:
        return _Group([learnt], len(prompt))
    reference = encode_answer(example, tokenizer, example.reference)
    choices = [encode_answer(example, tokenizer, choice) for choice in dict.fromkeys(example.choices)]
    others = [choice for choice in choices if choice != reference]
    compared = _without_ends([reference, *others], special_tokens(tokenizer))
    sequences = [_continuation(prompt, answer) for answer in compared]
    return _Group([learnt, *sequences], len(prompt), is_choice=reference in choices)


def _without_ends(answers: list[list[int]], special: frozenset[int]) -> list[list[int]]:
    """Drop the special tokens that answers end with, unless one would then begin with another."""
    texts = [answer[: _text_length(answer, special)] for answer in answers]
    # Sorted, a list stands right before one that begins with it, or before another such one.
    ordered = sorted(texts)
    clash = any(after[: len(before)] == before for before, after in itertools.pairwise(ordered))
    return answers if clash else texts


def _text_length(answer: list[int], special: frozenset[int]) -> int:
    return next((end for end in range(len(answer), 0, -1) if answer[end - 1] not in special), 0)


def _check(example: Example, group: _Group, number: int) -> None:
    if not group.sequences[0].scored:
        raise DataError(
            "an example has no token to score",
            got=f"example {number}: {_shown(example)}",
            expected="an answer, or a text of two tokens or more",
        )
    if not group.is_choice:
        raise DataError(
            "the reference is not among the choices",
            got=f"example {number}: {example.reference!r}",
            expected=" | ".join(example.choices),
        )


def _continuation(prompt: list[int], answer: list[int]) -> TokenSequence:
    # Without a prompt the first token has nothing before it and cannot be scored.
    return TokenSequence(prompt + answer, list(range(max(len(prompt), 1), len(prompt) + len(answer))))


def _example_score(example: Example, group: _Group, scores: list[TokenScores], number: int) -> ExampleScore:
    learnt, *choices = scores
    loss_nats = math.fsum(learnt.nats) / len(learnt.nats)
    totals = [math.fsum(choice.nats) for choice in choices]
    if not all(map(math.isfinite, [loss_nats, *totals])):
        raise TrainingError(
            "the loss of an example is not finite",
            got=f"{loss_nats} nats per token on example {number}: {_shown(example)}",
            expected="a finite loss",
            hint="lower the learning rate, or load the base in float32 or bfloat16 instead of float16",
        )
    pairs = zip(group.sequences[0].scored, learnt.hits, strict=True)
    return ExampleScore(
        loss_nats=loss_nats,
        num_tokens=len(learnt.nats),
        exact=None if example.form == "text" else all(hit for at, hit in pairs if at >= group.answer_start),
        choice_correct=all(totals[0] < other for other in totals[1:]) if totals else None,
    )


def _shown(example: Example) -> str:
    text = example.task_prompt or example.reference
    return repr(text if len(text) <= 60 else text[:59] + "…")
