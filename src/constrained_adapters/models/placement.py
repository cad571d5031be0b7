"""Where a base model runs and in which floating-point type: each choice with its reason."""

from __future__ import annotations

import os

import torch

from constrained_adapters.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(asked: str) -> tuple[torch.device, str]:
    """Return the device and the reason for it.

    Args:
        asked: ``"auto"`` (cuda, else mps, else cpu) or a device of torch, such as ``"cuda:1"``.

    Raises:
        ConfigError: No such device, or it is not there.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if asked == "auto":
        reason = "auto: the fastest one here" if len(there) > 1 else "auto: no GPU is visible to torch"
        return torch.device(there[0]), reason
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if device is not None and device.type == "cuda" else 1
    if device is None or device.type not in there or (device.index or 0) >= count:
        raise ConfigError(
            f"there is no device {asked!r}", got=f"device={asked!r}", expected=f"auto, {', '.join(there)}"
        )
    return device, "as asked"


def choose_dtype(asked: str, device: torch.device, num_parameters: int) -> tuple[torch.dtype, str]:
    """Return the type of the base's weights and the reason for it.

    On a CPU the choice is not about memory first: without bfloat16 instructions a training step of the
    default model takes 3.7 times as long in bfloat16 as in float32 (2.7 s against 9.9 s for 4 × 90 tokens
    on one AVX-512 core).

    Args:
        asked: ``"auto"`` or a type's name.
        device: Where the model will run.
        num_parameters: Size of the model; 0 where it is not known.
    """
    if asked != "auto":
        return _DTYPES[asked], "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "auto: this GPU computes in bfloat16"
        return torch.float16, "auto: this GPU has no bfloat16"
    if device.type == "mps":
        return torch.float32, "auto: float32 is the type that every operation supports on mps"
    needed, memory = 4 * num_parameters, _memory_bytes()
    if memory and needed > memory / 2:
        return (
            torch.bfloat16,
            f"auto: in float32 the weights would take {needed / 1e9:.0f} of {memory / 1e9:.0f} GB",
        )
    instructions = _bfloat16_instructions()
    if instructions:
        return torch.bfloat16, f"auto: this CPU computes in bfloat16 ({instructions})"
    return torch.float32, "auto: this CPU has no bfloat16 instructions, float32 is several times faster"


def _bfloat16_instructions() -> str:
    ask = getattr(torch.cpu, "get_capabilities", None)  # older releases of torch have no such question
    found = ask() if ask is not None else {}
    return next((name for name in ("amx_bf16", "avx512_bf16", "sve_bf16") if found.get(name)), "")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 0
