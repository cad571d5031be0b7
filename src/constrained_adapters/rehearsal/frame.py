"""What stands around prompt and answer in every example of a tokenizer: known without any data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_example, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two examples that share nothing but their frame.
_ONE, _OTHER = Example(prompt="7", answer="x"), Example(prompt="k", answer="x")
_LONG = 4096


@dataclass(frozen=True)
class Frame:
    """Token ids of an example: ``start`` + prompt + ``middle`` + answer.

    Args:
        start: Before the prompt; at least one token.
        middle: Between prompt and answer; at least one token.
        text_start: Before running text; at least one token.
    """

    start: tuple[int, ...]
    middle: tuple[int, ...]
    text_start: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Find the frame by encoding two prompts of one letter.

        Where nothing stands in front, the tokenizer's end token does: models are trained on texts that
        follow one another.
        """
        one, other = (encode_prompt(example, tokenizer, _LONG) for example in (_ONE, _OTHER))
        start, middle = _common(one, other), _common(one[::-1], other[::-1])[::-1]
        fallback = _first_token(tokenizer)
        texts = [encode_example(Example(text=text), tokenizer, _LONG).input_ids for text in "7k"]
        return cls(tuple(start) or fallback, tuple(middle), tuple(_common(*texts)) or fallback)


def _first_token(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    return (0,)


def _common(one: list[int], other: list[int]) -> list[int]:
    """The longest common beginning."""
    pairs = zip(one, other, strict=False)
    length = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]
