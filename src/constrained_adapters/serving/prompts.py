"""Requests as token ids, and the checks that they fit."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

from constrained_adapters.serving.failures import RequestError
from constrained_adapters.serving.requests import ChatRequest, CompletionRequest, GenerationBody


def encode_prompts(request: GenerationBody, tokenizer: Any, num_tokens: int) -> list[list[int]]:
    """The prompts of a request as token ids.

    Args:
        request: A chat or a text completion.
        tokenizer: Of the model.
        num_tokens: Rows of the model's embedding.

    Raises:
        RequestError: A prompt is empty, or names a token that there is not; or the chat template refuses.
    """
    if isinstance(request, ChatRequest):
        return [_ids(_conversation(request, tokenizer), tokenizer, special=False)]
    assert isinstance(request, CompletionRequest)
    found = []
    for prompt in request.prompts():
        ids = _ids(prompt, tokenizer, special=True) if isinstance(prompt, str) else prompt
        if not ids and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id]
        if not ids:
            raise RequestError("the prompt is empty", got=repr(prompt), param="prompt")
        if max(ids) >= num_tokens:
            raise RequestError(
                "the prompt names a token that the model does not have",
                got=str(max(ids)),
                expected=f"ids from 0 to {num_tokens - 1}",
                param="prompt",
            )
        found.append(ids)
    return found


def new_tokens(request: GenerationBody, num_prompt_tokens: int, context_tokens: int, most: int | None) -> int:
    """How many tokens an answer may have.

    Args:
        request: May say so itself.
        num_prompt_tokens: Of the longest prompt.
        context_tokens: Most of prompt and answer together.
        most: The server's own limit.

    Raises:
        RequestError: The prompt, or the prompt with the tokens asked for, is longer than the context; or
            more tokens are asked for than the server gives.
    """
    field = "messages" if isinstance(request, ChatRequest) else "prompt"
    wanted = request.most_new_tokens()
    left = context_tokens - num_prompt_tokens
    if left < 1 or (wanted or 0) > left:
        answer = f" and {wanted} of the answer" if wanted else ""
        raise RequestError(
            f"This model's maximum context length is {context_tokens} tokens",
            got=f"{num_prompt_tokens} tokens of the prompt{answer}",
            expected=f"at most {context_tokens} together",
            hint="shorten the prompt, or ask for fewer tokens" if left > 0 else "shorten the prompt",
            param=field if left < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    check_new_tokens(request, most)
    return min(wanted or left, left, most or left)


def check_new_tokens(request: GenerationBody, most: int | None) -> None:
    """Check that no longer answer is asked for than the server gives.

    Raises:
        RequestError: It is.
    """
    wanted = request.most_new_tokens()
    if most is not None and (wanted or 0) > most:
        raise RequestError(
            "more tokens are asked for than this server gives",
            got=f"max_tokens {wanted}",
            expected=f"at most {most}",
            param="max_tokens",
        )


def check_choices(request: GenerationBody, most: int) -> int:
    """The number of answers that are asked for: prompts times ``n``.

    Raises:
        RequestError: There are more than the server gives to one request.
    """
    num_prompts = len(request.prompts()) if isinstance(request, CompletionRequest) else 1
    num_answers = num_prompts * request.num_choices
    if num_answers > most:
        raise RequestError(
            "more answers are asked for than this server gives to one request",
            got=f"{num_prompts} prompts, n = {request.num_choices}",
            expected=f"at most {most} answers",
            param="n",
        )
    return num_answers


def _conversation(request: ChatRequest, tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise RequestError(
            "the model has no chat template",
            got="/v1/chat/completions",
            hint="use /v1/completions, or a base that was trained for conversations",
            param="messages",
        )
    try:
        return str(tokenizer.apply_chat_template(request.turns(), tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(each.role for each in request.messages[:20])
        raise RequestError(
            "the model's chat template refuses the conversation",
            got=f"roles {roles}: {str(error)[:120]}",
            expected="turns that the model was made for (mostly user and assistant, alternating)",
            param="messages",
        ) from None


def _ids(text: str, tokenizer: Any, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
