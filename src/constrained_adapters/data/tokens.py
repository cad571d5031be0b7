"""Examples as token ids, with a label wherever something is to be learnt.

An example is cut into segments of text, some learnt and some not; each is tokenised after the one
before it, so that the ids of a prompt are the same whether or not its answer follows. Training,
scoring and generation share these functions, hence for every example
``encode_example`` = (``encode_prompt`` + ``encode_answer`` of its own answer), cut at ``max_length``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.turns import Segment, segment_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that no loss is taken on; PyTorch's cross-entropy skips it."""

SEPARATOR = "\n"
"""Stands between prompt and answer where the tokenizer has no chat template."""


@dataclass(frozen=True)
class Tokens:
    """One encoded example of s tokens.

    Args:
        input_ids: Token ids, (s).
        labels: The same ids where they are learnt, ``IGNORED`` elsewhere, (s); not shifted.
        num_cut: Tokens that were left out to keep to the longest length.
    """

    input_ids: list[int]
    labels: list[int]
    num_cut: int = 0


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Tokens:
    """Encode an example with its answer.

    Learnt are all assistant turns of a conversation with their end-of-turn tokens; the answer of a
    prompt with its end token; every token of a text. A text gets no end token, since a piece of
    running text does not end where it was cut.

    A prompt that is too long loses its middle, as in LongBench (arXiv 2308.14508): both ends of a
    rendered conversation carry its frame. It keeps what the answer leaves of ``max_length``, but at
    least a quarter of it; an answer that does not fit then is cut at its end.

    Args:
        example: In any form.
        tokenizer: Its chat template renders messages, and prompt and answer too where there is one.
        max_length: Most tokens that are returned.

    Raises:
        DataError: The example is a conversation and the tokenizer has no chat template, or the
            template refuses it or renders it in a way whose answers cannot be found.
    """
    ids, labels, answer = _encode(example, tokenizer)
    kept = _kept(len(ids), len(answer), max_length)
    num_all = len(ids) + len(answer)
    ids, labels = _cut_middle(ids, kept) + answer, _cut_middle(labels, kept) + answer
    return Tokens(ids[:max_length], labels[:max_length], num_all - min(len(ids), max_length))


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """Encode an example up to where its (last) answer starts; for a text, the start token if there is one.

    Cut as by :func:`encode_example`, so that prompt and answer join to the same ids.

    Raises:
        DataError: As :func:`encode_example`.
    """
    ids, _, answer = _encode(example, tokenizer)
    return _cut_middle(ids, _kept(len(ids), len(answer), max_length))


def encode_answer(example: Example, tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Encode any answer as it would follow the example's prompt, with its end token; not cut.

    Raises:
        DataError: As :func:`encode_example`.
    """
    return _encode(_with_answer(example, answer), tokenizer)[2]


class TokenDataset(Dataset[dict[str, list[int]]]):
    """Encoded examples as rows ``{"input_ids", "labels"}`` for a Trainer or a data loader."""

    def __init__(self, tokens: Iterable[Tokens]) -> None:
        self.tokens = tuple(tokens)

    @classmethod
    def from_examples(
        cls, examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> TokenDataset:
        """Encode examples, see :func:`encode_example`.

        Raises:
            DataError: As :func:`encode_example`.
        """
        return cls(encode_example(example, tokenizer, max_length) for example in examples)

    @property
    def num_cut_examples(self) -> int:
        """Examples that lost tokens to the longest length."""
        return sum(tokens.num_cut > 0 for tokens in self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[index].input_ids, "labels": self.tokens[index].labels}


def tensor_rows(tokens: Iterable[Tokens]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Encoded examples as (token ids, labels), each of shape (s,), as memories take them."""
    return [(torch.tensor(each.input_ids), torch.tensor(each.labels)) for each in tokens]


def collate(features: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad rows on the right to one batch.

    Returns:
        ``input_ids``, ``attention_mask`` (1 on tokens, 0 on padding) and ``labels`` (``IGNORED`` on
        padding), each (b, s) of int64, s the longest row.
    """
    longest = max(len(feature["input_ids"]) for feature in features)

    def padded(rows: Iterable[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], dtype=torch.long)

    return {
        "input_ids": padded((feature["input_ids"] for feature in features), pad_token_id),
        "attention_mask": padded(([1] * len(feature["input_ids"]) for feature in features), 0),
        "labels": padded((feature["labels"] for feature in features), IGNORED),
    }


def _encode(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """Ids and labels of all that stands before the last answer, and the ids of that answer."""
    start, segments = _segments(example, tokenizer)
    ids, labels = list(start), [IGNORED] * len(start)
    answer: list[int] = []
    before = ""
    for segment in segments:
        ids += answer
        labels += answer
        found = _continue(before, segment.text, tokenizer)
        if segment.learnt:
            answer = found + list(segment.end)
        else:
            answer = []
            ids += found
            labels += [IGNORED] * len(found)
        before = segment.text
    return ids, labels, answer


def _segments(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[Segment]]:
    """The tokens to start with, and the segments; the last one is learnt."""
    if example.messages:
        return [], segment_turns(example.messages, tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []
    if example.text is not None:
        return start, [Segment(example.text, learnt=True)]
    prompt, answer = example.prompt or "", example.answer or ""
    if tokenizer.chat_template:
        return [], segment_turns([Message("user", prompt), Message("assistant", answer)], tokenizer)
    question = Segment(prompt + SEPARATOR, learnt=False)
    return start, [question, Segment(answer, learnt=True, end=() if eos is None else (eos,))]


def _continue(before: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of ``text`` as they follow ``before``.

    Some tokenizers put a space in front of whatever they are given; after ``before`` they do not. Where
    the two would share a token there is no such continuation, and ``text`` is encoded by itself.
    """
    if before:
        context = _ids(before, tokenizer)
        both = _ids(before + text, tokenizer)
        if both[: len(context)] == context:
            return both[len(context) :]
    return _ids(text, tokenizer)


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # verbose=False: a text over the model's length is cut later, so the tokenizer need not warn.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _with_answer(example: Example, answer: str) -> Example:
    if example.messages:
        last = max(i for i, message in enumerate(example.messages) if message.role == "assistant")
        return Example(messages=(*example.messages[:last], Message("assistant", answer)))
    if example.text is not None:
        return Example(text=answer)
    return Example(prompt=example.prompt, answer=answer)


def _kept(num_prompt: int, num_answer: int, max_length: int) -> int:
    """How many tokens of the prompt are kept."""
    return min(num_prompt, max(max_length - num_answer, max_length // 4))


def _cut_middle(ids: list[int], kept: int) -> list[int]:
    head = kept // 2
    return ids if len(ids) <= kept else ids[:head] + ids[len(ids) - (kept - head) :]
