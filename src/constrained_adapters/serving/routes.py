"""The router of a run, as the engines call it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.routing import Router
from constrained_adapters.serving.choice import Choice, asked_weights
from constrained_adapters.serving.registry import AUTO, BASE, unknown_model
from constrained_adapters.serving.requests import ChatRequest, CompletionRequest, GenerationBody

if TYPE_CHECKING:
    from constrained_adapters.workspace import Workspace

Talk = str | Sequence[dict[str, str]]
"""A text, or the turns of a conversation."""

Route = Callable[[Talk], Choice]
"""Picks the domains for a talk."""


def run_router(workspace: Workspace, model: Any, tokenizer: Any, say: Callable[[str], None]) -> Route | None:
    """The router that was made with a run; None, and it is said why, where there is none.

    Args:
        workspace: Of the run.
        model: The base, with or without adapters.
        tokenizer: The base's.
        say: Told a line.
    """
    try:
        router = Router.load(workspace, model, tokenizer, tell=say)
    except WorkspaceError as error:
        say(f"no model 'auto': {error.what}" + (f" ({error.hint})" if error.hint else ""))
        return None

    def route(talk: Talk) -> Choice:
        found = router.route(talk)
        return Choice(found.weights, found.facts())

    return route


def asked_talk(request: GenerationBody, tokenizer: Any) -> Talk:
    """What the router is shown: the conversation, or the (first) prompt as text."""
    if isinstance(request, ChatRequest):
        return request.turns()
    assert isinstance(request, CompletionRequest)
    first = request.prompts()[0]
    return first if isinstance(first, str) else str(tokenizer.decode(first, skip_special_tokens=True))


async def chosen(
    request: GenerationBody, names: Sequence[str], ask: Callable[[], Awaitable[Choice]] | None
) -> Choice:
    """The adapters that a request names, or those that the router picks for it.

    Args:
        request: What is asked.
        names: Domains that are served.
        ask: Asks the router; None: there is none.

    Raises:
        RequestError: The request contradicts itself.
        UnknownModelError: It leaves the choice to a router, and there is none.
    """
    weights = asked_weights(request)
    if weights is not None:
        return Choice(weights)
    if ask is None:
        raise unknown_model(AUTO, [BASE, *names])
    return _served(await ask(), names)


def _served(choice: Choice, names: Sequence[str]) -> Choice:
    """``choice`` without domains that were removed since the router was made."""
    left = {name: weight for name, weight in choice.weights.items() if name in names}
    return choice if len(left) == len(choice.weights) else replace(choice, weights=left)
