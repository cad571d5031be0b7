"""Turns pydantic's complaints into the four-line errors of this package, with 'did you mean'."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from constrained_adapters.errors import ConfigError, nearest

Location = tuple[int | str, ...]


def config_error(
    error: ValidationError, model: type[BaseModel], *, where: str | Callable[[Location], str]
) -> ConfigError:
    """Turn pydantic's first complaint into a four-line :class:`ConfigError`.

    Args:
        error: What pydantic raised.
        model: The class that was validated; its fields are the 'did you mean'.
        where: What is named as the place: a class, or a function from the location of a
            setting to its file and line.
    """
    said = error.errors()
    # Of a section that may be a word instead, a section that is wrong is no wrong word.
    complaints = [
        each for each in said if each["type"] != "bool_type" or not isinstance(each["input"], dict)
    ] or said
    # A misspelt key is said before the missing one that it was meant to be.
    first = next((each for each in complaints if each["type"] == "extra_forbidden"), complaints[0])
    path = _settings_path(model, first["loc"])
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    field = dotted.lstrip(".") or "(whole)"
    place = where if isinstance(where, str) else where(path)
    if first["type"] == "extra_forbidden":
        key = str(path[-1])
        known = sorted(_settings_class(model, path[:-1]).model_fields)
        hint = nearest(key, known) or _section_of(key, model)
        return ConfigError(
            f"no setting named {key!r}", got=f"{field} ({place})", expected=", ".join(known), hint=hint
        )
    if first["type"] == "missing":
        return ConfigError(f"the setting {field!r} is missing", got=place, expected=f"a value for {field!r}")
    if first["type"] == "value_error":
        return ConfigError(first["msg"].removeprefix("Value error, "), got=f"{field} ({place})")
    # A union complains once for each of its members: together they say what is allowed.
    of_field = [each for each in complaints if _settings_path(model, each["loc"])[: len(path)] == path]
    messages = dict.fromkeys(_expectation(each["type"], each["msg"]) for each in of_field)
    value = repr(first["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    allowed = " ".join(str(each.get("ctx", {}).get("expected", "")) for each in of_field)
    options = re.findall(r"'([^']+)'", allowed)
    return ConfigError(
        f"the setting {field!r} is not valid",
        got=f"{field} = {shown} ({place})",
        expected=", or ".join(messages),
        hint=_value_hint(first["type"], first["input"], options),
    )


def _settings_path(model: type[BaseModel], location: Location) -> Location:
    """Leave out what pydantic adds for the members of a union: ``('layers', 'list[str]', 0)``."""
    current: Any = model
    path: list[int | str] = []
    for part in location:
        if isinstance(part, str) and (part == "bool" or part.startswith("function-")):
            continue  # a section that may be a word instead
        path.append(part)
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            break
        current = _inner_model(current.model_fields[part].annotation)
        if current is None:
            break
    return tuple(path)


def _settings_class(model: type[BaseModel], path: Location) -> type[BaseModel]:
    current = model
    for part in path:
        if isinstance(part, str):
            current = _inner_model(current.model_fields[part].annotation) or current
    return current


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_inner_model(argument) for argument in get_args(annotation))
    return next((inner for inner in found if inner is not None), None)


def _section_of(key: str, model: type[BaseModel]) -> str | None:
    """Where a setting belongs that was written in the wrong section, such as ``training.steps``."""
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        if inner is not None and key in inner.model_fields:
            return f"{name}.{key}"
        if key == name:
            return f"{key!r} at the top, not inside a section"
    return None


def _expectation(kind: str, message: str) -> str:
    named = {
        "model_type": "a section with its settings below it",
        "list_type": "a list",
        "bool_type": "true or false",
        "string_type": "a text",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "too_short": "at least one",
    }
    return named.get(kind) or message.removeprefix("Value error, ").removeprefix("Input should be ")


def _value_hint(kind: str, value: Any, options: list[str]) -> str | None:
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'put it in quotes: "{value}"'
    if kind == "bool_type" and isinstance(value, str):
        return {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
    return nearest(value, options) if isinstance(value, str) else None
