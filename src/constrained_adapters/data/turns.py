"""Render a conversation by the tokenizer's chat template and find the assistant's turns in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from constrained_adapters.data.examples import Message
from constrained_adapters.data.records import shorten
from constrained_adapters.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_STAND_IN = "answer_to_be_found"
"""Rendered in an answer's place, to see what the template writes around it."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text.

    Args:
        text: The stretch.
        learnt: Whether its tokens are learnt.
        end: Ids that follow its tokens and are learnt with them.
    """

    text: str
    learnt: bool
    end: tuple[int, ...] = ()


def segment_turns(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Cut a rendered conversation into segments that are learnt (assistant turns) and that are not.

    An assistant turn starts where the template's generation prompt for the turns before it ends. It
    ends after the end-of-turn mark, which is what the template writes after the last answer, less
    the whitespace that follows and that no model is asked to generate. Turns after the last
    assistant turn are left out. Where the template marks no end, the end token is added to the last
    turn. Templates that render an earlier answer otherwise than the last one (Qwen3 drops its
    thinking block) are served, since only the text before each answer must stay as it was.

    Args:
        messages: At least one of the assistant's.
        tokenizer: With a chat template.

    Returns:
        Segments in order; the last one is the last answer. Joined, they are the rendered text up to
        the end of the last turn.

    Raises:
        DataError: There is no template, it refuses the conversation, or it is not prefix-stable:
            what stands before an answer changes once the answer is there.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the examples are conversations, but the model has no chat template",
            got=f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}",
            expected="a chat template, or examples of prompt and answer",
            hint="use the model's instruct version, or columns prompt and answer",
        )
    answers = [position for position, message in enumerate(messages) if message.role == "assistant"]
    kept = messages[: answers[-1] + 1]
    whole = _render(kept, tokenizer, generate=False)
    starts = [_start(kept[:position], whole, tokenizer) for position in answers]
    ends = [
        _end(kept, position, start, whole, tokenizer) for position, start in zip(answers, starts, strict=True)
    ]
    mark = whole[ends[-1] :].rstrip()
    last_end = () if mark or tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    segments: list[Segment] = []
    done = 0
    for start, content_end in zip(starts, ends, strict=True):
        end = content_end + len(mark) if whole.startswith(mark, content_end) else content_end
        segments.append(Segment(whole[done:start], learnt=False))
        segments.append(Segment(whole[start:end], learnt=True, end=last_end if start == starts[-1] else ()))
        done = end
    return segments


def _start(before: Sequence[Message], whole: str, tokenizer: PreTrainedTokenizerBase) -> int:
    prompt = _render(before, tokenizer, generate=True)
    if not whole.startswith(prompt):
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        raise DataError(
            "the chat template is not prefix-stable: an answer changes what stands before it",
            got=f"…{shorten(prompt[max(0, same - 20) : same + 20], 44)!r} without and "
            f"…{shorten(whole[max(0, same - 20) : same + 20], 44)!r} with the answer",
            expected="a template that renders the same prompt with and without the answer",
            hint="set a template on the tokenizer that does, or give columns prompt and answer of one turn",
        )
    return len(prompt)


def _end(
    messages: Sequence[Message], position: int, start: int, whole: str, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Where the content of one answer ends: before all that also follows any other content in its place."""
    other = [*messages[:position], Message("assistant", _STAND_IN), *messages[position + 1 :]]
    rendered = _render(other, tokenizer, generate=False)
    found = rendered.find(_STAND_IN, start)
    after = rendered[found + len(_STAND_IN) :]
    end = len(whole) - len(after)
    if found < 0 or end < start or not whole.endswith(after):
        raise DataError(
            "the chat template writes answers in a way that they cannot be found again",
            got=f"{shorten(messages[position].content)!r} in {shorten(whole[start:])!r}",
            expected="a template that writes the text of an answer in one place",
            hint="set another template on the tokenizer, or give columns prompt and answer",
        )
    return end


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, generate: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate))
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            "the model's chat template refuses a conversation",
            got=f"roles {roles}; {shorten(str(error), 120)}",
            expected="turns that the model was made for (mostly user and assistant, alternating)",
        ) from None
