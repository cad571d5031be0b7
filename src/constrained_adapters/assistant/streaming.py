"""One answer, handed on piece by piece while it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.tokens import encode_prompt
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.decoding import GREEDY
from constrained_adapters.evaluation.samples import end_tokens
from constrained_adapters.models.modes import evaluating

NO_ANSWER = Example(prompt="", answer="")


@dataclass(frozen=True)
class Decoding:
    """How answers are written.

    Args:
        max_new_tokens: Where an answer is cut.
        temperature: 0 is greedy: the likeliest token each time.
        top_p: Draw from the likeliest tokens that hold this share of the probability.
        seed: Of the draws; None takes the global random state as it is.

    Raises:
        ConfigError: A value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(
                "an answer needs room", got=f"max_new_tokens={self.max_new_tokens}", expected="1 or more"
            )
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigError(
                "the temperature is out of range", got=repr(self.temperature), expected="0 or more"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError("top_p is out of range", got=repr(self.top_p), expected="above 0, at most 1")

    def settings(self) -> dict[str, Any]:
        """As transformers' generation takes them."""
        if self.temperature == 0.0:
            return dict(GREEDY)
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {**GREEDY, **drawn}


def encode_conversation(turns: Sequence[Message], tokenizer: Any, max_length: int) -> list[int]:
    """Encode a conversation up to where the next answer starts, as training and scoring rendered prompts.

    Where it is longer than ``max_length``, its oldest questions and answers are left out; a last question
    that is too long loses its middle. Without a chat template only the last question is asked.

    Args:
        turns: The last one is the user's.
        tokenizer: Of the model.
        max_length: Most tokens.

    Raises:
        DataError: The chat template refuses the conversation.
    """
    if not tokenizer.chat_template:
        return encode_prompt(Example(prompt=turns[-1].content, answer=""), tokenizer, max_length)
    kept = list(turns)
    while True:
        example = Example(messages=(*kept, Message("assistant", "")))
        ids = encode_prompt(example, tokenizer, 1 << 30)
        oldest = next((at for at, turn in enumerate(kept[:-1]) if turn.role != "system"), None)
        if len(ids) <= max_length or oldest is None:
            return encode_prompt(example, tokenizer, max_length)
        del kept[oldest : oldest + 2]


def stream_answer(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    decoding: Decoding,
    on_text: Callable[[str], None] | None = None,
) -> tuple[str, bool]:
    """Continue a prompt with the adapters that are active now.

    Args:
        model: A causal language model of transformers.
        tokenizer: Of the model.
        prompt: Token ids.
        decoding: How.
        on_text: Given each piece of text as soon as it is certain. A ``KeyboardInterrupt`` while the answer
            is written ends it, and nothing else.

    Returns:
        The text, and whether it came to its end: it was neither cut nor interrupted.
    """
    streamer = _Pieces(tokenizer, on_text or (lambda piece: None))
    ends = end_tokens(model, tokenizer, [NO_ANSWER])
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([list(prompt)], device=device)
    config = GenerationConfig(
        **decoding.settings(),
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends or None,
    )
    devices = [device] if device.type == "cuda" else []
    with (
        evaluating(model),
        torch.no_grad(),
        torch.random.fork_rng(devices=devices, enabled=decoding.seed is not None),
    ):
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        try:
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                streamer=streamer,
            )
        except KeyboardInterrupt:
            streamer.end()  # type: ignore[no-untyped-call]
            return streamer.text.strip(), False
    return streamer.text.strip(), streamer.last in ends


class _Pieces(TextStreamer):
    """Gathers an answer and hands on its pieces."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self.text = ""
        self.last = -1

    def put(self, value: torch.Tensor) -> None:
        if not (self.skip_prompt and self.next_tokens_are_prompt):
            self.last = int(value.reshape(-1)[-1])
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self.text:
            text = text.lstrip()
        self.text += text
        if text:
            self._on_text(text)
