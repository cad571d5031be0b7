"""Find which columns of the records are the conversation, the prompt and the answer, or the text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.examples import Example, Form, Message
from constrained_adapters.data.records import Record, shorten
from constrained_adapters.errors import ConfigError, DataError, nearest

MESSAGES_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
PROMPT_NAMES = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWER_NAMES = ("answer", "completion", "response", "output", "target", "solution")
TEXT_NAMES = ("text", "content", "document", "body")
CHOICES_NAMES = ("choices", "options")
SUPERSEDED_NAMES = ("superseded",)

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Names of roles as data sets write them, and the role that chat templates know."""


@dataclass(frozen=True)
class Columns:
    """The columns that make an example, and a sentence on why.

    Args:
        form: The form of every example.
        names: The column of each part that the form uses: ``messages``, ``prompt``, ``answer``,
            ``text``, ``choices``, ``superseded``, and ``context`` (Alpaca's ``input``, put after the prompt).
        sentence: What was chosen, for people.
    """

    form: Form
    names: dict[str, str]
    sentence: str


def detect_columns(records: list[Record], config: DomainConfig) -> Columns:
    """Choose the form and its columns; names given in the settings win over known names.

    Without given names the first that fits is taken: a conversation, prompt and answer, text. Within
    each, the earliest of the known names (see ``MESSAGES_NAMES`` and its siblings).

    Args:
        records: The domain's records, all splits; the columns are those of any record.
        config: The domain's settings.

    Raises:
        DataError: A given column is absent, or no known column is there.
        ConfigError: Columns of two forms are given.
    """
    there = list(dict.fromkeys(name for record in records for name in record.fields))
    parts = ("messages", "prompt", "answer", "text", "choices")
    given = {part: value for part in parts if (value := getattr(config, part)) is not None}
    for name in given.values():
        if name not in there:
            _refuse_absent(f"no column named {name!r}", records[0], there, nearest(name, there))
    form = _form(given, there, config.name)
    if form is None:
        _refuse_absent("no column that is known", records[0], there, "name the columns: prompt: …, answer: …")
    names = {part: _column(part, given, there, records[0], form) for part in _PARTS[form]}
    if form == "completion":
        choices = given.get("choices") or _known(CHOICES_NAMES, there)
        if choices:
            names["choices"] = choices
        if (
            names["prompt"].lower() == "instruction"
            and "prompt" not in given
            and (more := _known(("input",), there))
        ):
            names["context"] = more
    elif "choices" in given:
        raise ConfigError(
            "'choices' has no effect here",
            got=f"choices = {given['choices']!r} (domain {config.name!r}, whose examples are {form})",
            expected="a prompt and an answer beside it",
        )
    if marks := _known(SUPERSEDED_NAMES, there):
        names["superseded"] = marks
    how = "as given" if given else "found by name"
    used = ", ".join(part if part == name else f"{part} from {name!r}" for part, name in names.items())
    rest = [name for name in there if name not in names.values()]
    unused = f" Not used: {shorten(', '.join(rest))}." if rest else ""
    return Columns(form, names, f"Form {form}, {how}: {used}.{unused}")


def make_examples(records: Iterable[Record], columns: Columns) -> list[Example]:
    """Turn records into examples of one form.

    Strings lose whitespace at both ends; numbers become strings. Choices are a list, a string that
    holds a JSON list, or a string divided by ``|``; where the answer is not among them but is a
    whole number, it is taken as an index from 0. A row is superseded where its column of that name is
    true, yes or 1.

    Raises:
        DataError: A value is absent, empty or of the wrong type; file and line are named.
    """
    make, marks = _MAKERS[columns.form], columns.names.get("superseded")
    return [
        replace(make(record, columns.names), superseded=marks is not None and _is_marked(record, marks))
        for record in records
    ]


_MARKED = frozenset({"true", "yes", "1"})
_UNMARKED = frozenset({"false", "no", "0", ""})
_PARTS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "completion": ("prompt", "answer"),
    "text": ("text",),
}
_KNOWN = {"messages": MESSAGES_NAMES, "prompt": PROMPT_NAMES, "answer": ANSWER_NAMES, "text": TEXT_NAMES}


def _form(given: dict[str, str], there: list[str], domain: str) -> Form | None:
    asked = [form for form, parts in _PARTS.items() if any(part in given for part in parts)]
    if len(asked) > 1:
        raise ConfigError(
            "columns of two forms are given",
            got=", ".join(f"{part}: {name}" for part, name in given.items()) + f" (domain {domain!r})",
            expected="only messages, only prompt and answer, or only text",
        )
    if asked:
        return asked[0]
    for form, parts in _PARTS.items():
        if all(_known(_KNOWN[part], there) for part in parts):
            return form
    # A prompt without an answer (or the reverse) is a mistake that is worth naming, unless there is text.
    alone = any(_known(_KNOWN[part], there) for part in _PARTS["completion"])
    return "completion" if alone else None


def _known(names: tuple[str, ...], there: list[str]) -> str | None:
    lowered = {name.strip().lower(): name for name in reversed(there)}
    return next((lowered[name] for name in names if name in lowered), None)


def _column(part: str, given: dict[str, str], there: list[str], first: Record, form: Form) -> str:
    others = [name for name in there if name not in given.values()]
    name = given.get(part) or _known(_KNOWN[part], others)
    if name is None:
        _refuse_absent(
            f"no column for the {part}",
            first,
            there,
            f"{part}: NAME of the column that holds it (form {form})",
        )
    return name


def _refuse_absent(what: str, first: Record, there: list[str], hint: str | None) -> NoReturn:
    known = "; ".join(" + ".join("|".join(_KNOWN[part]) for part in parts) for parts in _PARTS.values())
    raise DataError(what, got=f"columns {', '.join(there)} ({first.path})", expected=known, hint=hint)


def _from_messages(record: Record, names: dict[str, str]) -> Example:
    turns = _value(record, names["messages"])
    if isinstance(turns, str):  # conversations inside CSV files are written as JSON
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError:
            raise _wrong(record, names["messages"], "a list of turns", turns) from None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _wrong(record, names["messages"], "a list of turns, each with role and content", turns)
    messages = [_message(record, turn) for turn in turns]
    while messages and messages[-1].role != "assistant":
        messages.pop()  # nothing answers it, so nothing is learnt from it
    if not messages:
        raise DataError(
            "the conversation has no assistant turn", got=record.place, expected="at least one answer"
        )
    empty = next((m for m in messages if m.role == "assistant" and not m.content.strip()), None)
    if empty is not None:
        raise DataError(
            "an assistant turn is empty", got=record.place, expected="an answer in every assistant turn"
        )
    return Example(messages=tuple(messages))


def _message(record: Record, turn: dict[str, Any]) -> Message:
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise DataError(
            "the role of a turn is not known",
            got=f"{role!r} ({record.place})",
            expected=", ".join(sorted(ROLES)),
            hint=nearest(str(role).lower(), ROLES),
        )
    if not isinstance(content, str):
        raise _wrong(record, "content", "text", content)
    return Message(ROLES[role.lower()], content.strip())


def _from_completion(record: Record, names: dict[str, str]) -> Example:
    prompt = _text(record, names["prompt"])
    if "context" in names and record.fields.get(names["context"]):
        prompt = f"{prompt}\n\n{_text(record, names['context'])}"
    answer = _text(record, names["answer"])
    choices = _choices(record, names["choices"]) if "choices" in names else ()
    if choices and answer not in choices:
        if not answer.isdecimal() or int(answer) >= len(choices):
            raise DataError(
                "the answer is not among the choices",
                got=f"{shorten(answer)!r} ({record.place})",
                expected=shorten(", ".join(choices)),
            )
        answer = choices[int(answer)]
    return Example(prompt=prompt, answer=answer, choices=choices)


def _choices(record: Record, name: str) -> tuple[str, ...]:
    value = record.fields.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = value.split("|")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        raise _wrong(record, name, "a list of answers", record.fields[name])
    return tuple(dict.fromkeys(str(item).strip() for item in value))


def _from_text(record: Record, names: dict[str, str]) -> Example:
    return Example(text=_text(record, names["text"]))


def _is_marked(record: Record, name: str) -> bool:
    value = record.fields.get(name)
    word = "" if value is None else str(value).strip().lower()
    if word not in _MARKED | _UNMARKED:
        raise _wrong(record, name, "true or false", value)
    return word in _MARKED


def _text(record: Record, name: str) -> str:
    value = _value(record, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(record, name, "text", value)
    text = str(value).strip()
    if not text:
        raise DataError(
            f"{name!r} is empty", got=record.place, expected="text", hint="remove or complete this record"
        )
    return text


def _value(record: Record, name: str) -> Any:
    value = record.fields.get(name)
    if value is None:
        there = ", ".join(record.fields)
        what = f"{name!r} is empty" if name in record.fields else f"{name!r} is missing in this record"
        raise DataError(what, got=f"columns {there} ({record.place})", expected=f"a value for {name!r}")
    return value


def _wrong(record: Record, name: str, expected: str, value: object) -> DataError:
    return DataError(
        f"{name!r} is not {expected}",
        got=f"{type(value).__name__} {shorten(repr(value))} ({record.place})",
        expected=expected,
    )


_MAKERS: dict[Form, Callable[[Record, dict[str, str]], Example]] = {
    "messages": _from_messages,
    "completion": _from_completion,
    "text": _from_text,
}
