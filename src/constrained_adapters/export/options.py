"""What the command line's words mean, with the errors for those that mean nothing."""

from __future__ import annotations

from typing import Literal, cast, get_args

from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.export.gguf_base import GGUFType
from constrained_adapters.export.gguf_lora import LoraType
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


def read_gguf_types(text: str | None, *, models: bool) -> tuple[LoraType, GGUFType]:
    """The types of adapters and of whole models; f32 and f16 where none is asked for.

    Args:
        text: As asked.
        models: Whole models are written, not only adapters, which then keep f32 unless f16 is asked for.

    Raises:
        UnknownNameError: It is not a type of what is written.
    """
    if text is None:
        return "f32", "f16"
    known = get_args(GGUFType) if models else get_args(LoraType)
    if text not in known:
        raise UnknownNameError.of("GGUF type", text, known, where="models" if models else "adapters")
    lora = text if text in get_args(LoraType) else "f32"
    return cast(LoraType, lora), cast(GGUFType, text)
