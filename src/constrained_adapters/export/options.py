"""What the command line's words mean, with the errors for those that mean nothing."""

from __future__ import annotations

from typing import Literal, cast, get_args

from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.export.lora import DType


def read_dtype(text: str) -> DType:
    """A weight type's name.

    Raises:
        UnknownNameError: It is none.
    """
    if text not in get_args(DType):
        raise UnknownNameError.of("type of weights", text, get_args(DType))
    return cast(DType, text)


def read_pad_rank(text: str | None) -> Literal["auto"] | int | None:
    """``auto`` or a number.

    Raises:
        ConfigError: It is neither.
    """
    if text is None or text == "auto":
        return cast(Literal["auto"] | None, text)
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError("this is no rank to pad to", got=repr(text), expected="auto, or a rank of 1 or more")
