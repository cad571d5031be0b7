"""An adapter read from its folder, without its base, as nothing but (A, B) pairs.

``ΔW = B A`` with the scale inside B, whatever rule the file's configuration has for it: ``alpha / r``,
``alpha / √r`` (rsLoRA), or one for each module (``rank_pattern``, ``alpha_pattern``).

Axis letters: r rank, d width.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from constrained_adapters.adapters.files import (
    CONFIG_FILE,
    OLD_WEIGHTS_FILE,
    WEIGHTS_FILE,
    read_adapter_config,
    read_facts,
)
from constrained_adapters.errors import DataError
from constrained_adapters.export.refusals import refuse_unservable

PREFIX = "base_model.model."
"""Of every tensor's name in a PEFT file."""

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""(A, B) by the adapted layer's name in the base: A (r, d_in), B (d_out, r), ΔW = B A."""


@dataclass(frozen=True)
class PlainLora:
    """An adapter as every engine understands it.

    Args:
        pairs: In float32, the scale inside B.
        dtype: In which the file keeps them.
        targets: The ends of layers' names that the adapter's configuration names, where these and nothing
            else choose the layers; None where whole names must be written.
        transposed: The base's layers keep W as d_in × d_out, as GPT-2's do.
        base_name: As the configuration has it.
        facts: Of ``crma.json``; empty for a LoRA made elsewhere.
        folder: Where it was read from.
    """

    pairs: Pairs
    dtype: torch.dtype
    targets: tuple[str, ...] | None
    transposed: bool
    base_name: str | None
    facts: Mapping[str, Any]
    folder: Path


def read_plain_lora(folder: Path) -> PlainLora:
    """Read an adapter and refuse what engines could not serve.

    Args:
        folder: A PEFT LoRA folder, of this library or any other.

    Raises:
        DataError: No adapter is there, it is half-written or damaged, or holds NaN or infinity.
        ModelError: It is no LoRA, or more than one; see :mod:`constrained_adapters.export.refusals`.
    """
    read_adapter_config(folder)  # says what is wrong with a folder that holds none
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = _read_tensors(folder)
    refuse_unservable(config, tensors, where=str(folder))
    if not tensors:
        raise DataError("the adapter is empty", got=f"{folder}: no tensor", expected="an A and a B per layer")
    pairs = {}
    for name, a, b in _in_pairs(tensors, folder):
        _check_finite(name, a, b, folder)
        scale = scaling(config, name, a.shape[0])
        pairs[name] = (a.float(), b.float() * scale)
    named = config.get("target_modules")
    by_name = isinstance(named, list) and not config.get("layers_to_transform") and _cover(named, pairs)
    return PlainLora(
        pairs=pairs,
        dtype=next(iter(tensors.values())).dtype,
        targets=tuple(sorted(named)) if by_name and isinstance(named, list) else None,
        transposed=bool(config.get("fan_in_fan_out")),
        base_name=config.get("base_model_name_or_path"),
        facts=read_facts(folder),
        folder=folder,
    )


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor that PEFT multiplies ``B A`` of a module with."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        if path.is_file():
            return dict(load_file(path))
        path = folder / OLD_WEIGHTS_FILE
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            "the adapter's weights are damaged or half-written",
            got=f"{str(error).splitlines()[0]} ({path})",
            expected="a whole file, as save_adapter or save_pretrained leaves it",
        ) from None


def _in_pairs(tensors: Mapping[str, Tensor], folder: Path) -> list[tuple[str, Tensor, Tensor]]:
    found = []
    for name, a in tensors.items():
        module, mark, _ = name.partition(".lora_A.")
        if not mark:
            continue
        b = tensors.get(f"{module}.lora_B.weight")
        if b is None:
            raise DataError("half of an adapter is missing", got=f"{module} has A and no B ({folder})")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise DataError(
                "A and B of an adapter do not fit together",
                got=f"{module}: A {list(a.shape)}, B {list(b.shape)} ({folder})",
                expected="A (r, d_in) and B (d_out, r)",
            )
        found.append((module.removeprefix(PREFIX), a, b))
    lonely = len(tensors) - 2 * len(found)
    if lonely:
        raise DataError("half of an adapter is missing", got=f"{lonely} layers have B and no A ({folder})")
    return found


def _check_finite(module: str, a: Tensor, b: Tensor, folder: Path) -> None:
    for letter, matrix in (("A", a), ("B", b)):
        bad = int((~matrix.isfinite()).sum())
        if bad:
            raise DataError(
                "the adapter holds values that are no numbers",
                got=f"{bad} NaN or infinite values in {letter} of {module} ({folder})",
                expected="finite values",
                hint="its training diverged: take an earlier checkpoint, or train again at a lower rate",
            )


def _cover(targets: list[str], pairs: Pairs) -> bool:
    return all(any(m == t or m.endswith(f".{t}") for t in targets) for m in pairs)
