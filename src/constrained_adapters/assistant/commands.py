"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable

from constrained_adapters.assistant.conversation import Conversation
from constrained_adapters.errors import ConfigError, UnknownNameError

HELP = """\
/domain NAME               this domain answers
/mix law=0.7 medicine=0.3  a mix of domains answers
/base                      the base answers, without any adapter
/auto                      the router picks the domain of each question
/clear                     forget what was said
/help                      this list
/quit                      leave (or Ctrl-D); Ctrl-C stops an answer"""

_WEIGHT = re.compile(r"\s*(?P<name>[^=]+?)\s*=\s*(?P<weight>\S+)(?:\s+|$)")


def parse_mix(text: str) -> dict[str, float]:
    """Read ``law=0.7 medicine=0.3``; names may have inner spaces.

    Raises:
        ConfigError: It is no list of names with weights, or a name is there twice.

    >>> parse_mix("law=0.7 family law = 0.3")
    {'law': 0.7, 'family law': 0.3}
    """
    weights: dict[str, float] = {}
    at = 0
    while at < len(text.rstrip()):
        found = _WEIGHT.match(text, at)
        try:
            weight = float(found["weight"]) if found else None
        except ValueError:
            weight = None
        if found is None or weight is None or found["name"] in weights:
            raise ConfigError(
                "this is no mix of domains", got=repr(text.strip()), expected="law=0.7 medicine=0.3"
            )
        weights[found["name"]] = weight
        at = found.end()
    if not weights:
        raise ConfigError("the mix names no domain", got=repr(text), expected="law=0.7 medicine=0.3")
    return weights


def obey(line: str, conversation: Conversation) -> str | None:
    """Do what a line that begins with a slash says.

    Returns:
        What to tell the user; None to leave.

    Raises:
        UnknownNameError: There is no such command, or no such domain.
        ConfigError: A mix cannot be read.
        AdapterStateError: ``/auto`` without a router.
    """
    name, _, rest = line[1:].strip().partition(" ")
    if name not in _COMMANDS:
        raise UnknownNameError.of("command", name, _COMMANDS, where="/help lists them")
    return _COMMANDS[name](conversation, rest.strip())


def _domain(conversation: Conversation, rest: str) -> str:
    conversation.use({rest: 1.0})
    return f"answered by: {conversation.mode}"


def _mix(conversation: Conversation, rest: str) -> str:
    conversation.use(parse_mix(rest))
    return f"answered by: {conversation.mode}"


def _base(conversation: Conversation, rest: str) -> str:
    conversation.use_base()
    return "answered by: the base"


def _auto(conversation: Conversation, rest: str) -> str:
    conversation.use_auto()
    return "the router picks the domain of each question"


def _clear(conversation: Conversation, rest: str) -> str:
    conversation.forget()
    return "forgotten"


_COMMANDS: dict[str, Callable[[Conversation, str], str | None]] = {
    "domain": _domain,
    "mix": _mix,
    "base": _base,
    "auto": _auto,
    "clear": _clear,
    "help": lambda conversation, rest: HELP,
    "quit": lambda conversation, rest: None,
}
