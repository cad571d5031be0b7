"""What a model writes, for people to read: greedy continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from constrained_adapters.data.examples import Example
from constrained_adapters.data.tokens import encode_answer, encode_example, encode_prompt
from constrained_adapters.evaluation.decoding import continue_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_length: int = 1024,
) -> list[str]:
    """Answer the prompt of each example greedily; of a text, continue its first half.

    Args:
        model: A causal language model of transformers, adapters included.
        tokenizer: The model's.
        examples: Of any form.
        max_new_tokens: Where an answer is cut, 1 or more.
        batch_size: Most prompts in one batch, padded on the left.
        max_length: Most tokens of a prompt; longer ones lose their middle.

    Returns:
        One text per example, in their order, without special tokens and outer whitespace.

    Raises:
        DataError: The tokenizer cannot render an example.
    """
    prompts = [_prompt_ids(example, tokenizer, max_length) for example in examples]
    ends = end_tokens(model, tokenizer, examples)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    written = continue_prompts(
        model,
        prompts,
        ends=ends,
        padding=padding,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in written]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for no text, such as the end of a turn."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added.union(tokenizer.all_special_ids))


def _prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    if example.form != "text":
        return encode_prompt(example, tokenizer, max_length)
    ids = encode_example(example, tokenizer, max_length).input_ids
    return ids[: max(1, len(ids) // 2)]


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """Where an answer stops: the model's own end tokens, and the special one that ends a turn in training."""
    own = model.generation_config.eos_token_id
    ends = {own} if isinstance(own, int) else set(own or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    special = special_tokens(tokenizer)
    for example in examples:
        if example.form != "text":
            ends.update(special.intersection(encode_answer(example, tokenizer, example.reference)[-1:]))
    return sorted(ends)
