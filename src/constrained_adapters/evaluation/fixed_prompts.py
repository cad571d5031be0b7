"""Greedy answers to a fixed set of prompts in one batch, and how sure the model was of each token.

Axis letters: k prompts, s tokens of the longest prompt, v vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from transformers import LogitsProcessor

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_prompt
from constrained_adapters.errors import ModelError
from constrained_adapters.evaluation.decoding import continue_prompts
from constrained_adapters.evaluation.samples import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FixedAnswers:
    """What a model wrote, and how sure it was.

    Args:
        tokens: The new tokens of each prompt.
        entropies: Of each position, the sum over the prompts that were still being answered of the entropy
            of the next-token distribution (nats), and their number.
        seconds: That writing took.
    """

    tokens: tuple[tuple[int, ...], ...]
    entropies: tuple[tuple[float, int], ...]
    seconds: float

    def cut(self, num_tokens: int) -> FixedAnswers:
        """The same answers as they were after ``num_tokens``: greedy decoding begins alike at any length."""
        return FixedAnswers(
            tuple(row[:num_tokens] for row in self.tokens), self.entropies[:num_tokens], self.seconds
        )

    @property
    def mean_entropy_nats(self) -> float:
        """Mean over all generated positions, 0 … ln v; NaN where there is none."""
        count = sum(number for _, number in self.entropies)
        return sum(total for total, _ in self.entropies) / count if count else float("nan")


class FixedPrompts:
    """Prompts that are answered again and again.

    Args:
        questions: As a user would ask them.
        tokenizer: Renders them in its chat template, where it has one.

    Raises:
        DataError: The tokenizer cannot render a question.
    """

    def __init__(self, questions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._examples = [Example(prompt=question, answer="-") for question in questions]
        self._tokenizer = tokenizer
        self._ids = [encode_prompt(example, tokenizer, 1024) for example in self._examples]

    def answers(self, model: Any, num_tokens: int) -> FixedAnswers:
        """Answer all prompts greedily in one batch, in evaluation mode; no random state is touched.

        Args:
            model: A causal language model of transformers, adapters included.
            num_tokens: Where an answer is cut, 1 or more.

        Raises:
            ModelError: The model cannot generate.
        """
        check_generates(model)
        begun = time.perf_counter()
        ends = end_tokens(model, self._tokenizer, self._examples)
        padding = self._tokenizer.pad_token_id
        watch = _EntropyWatch(max(map(len, self._ids)), ends)
        written = continue_prompts(
            model,
            self._ids,
            ends=ends,
            padding=int(padding) if padding is not None else next(iter(ends), 0),
            max_new_tokens=num_tokens,
            batch_size=len(self._ids),
            watch=watch,
        )
        return FixedAnswers(tuple(map(tuple, written)), tuple(watch.seen), time.perf_counter() - begun)

    def texts(self, answers: FixedAnswers) -> list[str]:
        """The answers without special tokens and outer white space."""
        return [
            str(self._tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in answers.tokens
        ]


def check_generates(model: Any) -> None:
    """Refuse a model that writes no text.

    Raises:
        ModelError: It has no ``generate``, or says that it cannot.
    """
    can = getattr(model, "can_generate", None)
    if callable(getattr(model, "generate", None)) and (can is None or can()):
        return
    raise ModelError(
        "this model cannot generate, so nobody can see whether its answers collapse",
        got=type(model).__name__,
        expected="a causal language model with generate(), such as AutoModelForCausalLM gives",
        hint="train it without the collapse guard",
    )


@final
class _EntropyWatch(LogitsProcessor):
    """Notes the entropy of each next-token distribution of rows that have not ended; changes nothing."""

    def __init__(self, width: int, ends: Sequence[int]) -> None:
        self.seen: list[tuple[float, int]] = []
        self._width, self._ends = width, torch.tensor(list(ends), dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` (k, s + written so far), ``scores`` (k, v); returns ``scores`` as they are."""
        new = input_ids[:, self._width :]
        going = ~torch.isin(new, self._ends.to(new.device)).any(-1)
        nats = torch.special.entr(scores.float().softmax(-1)).sum(-1)
        self.seen.append((float(nats[going].sum()), int(going.sum())))
        return scores
