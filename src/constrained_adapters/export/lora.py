"""A plain PEFT LoRA folder that PEFT, vLLM, SGLang, TGI and LoRAX read alike.

The scale is inside B (``lora_alpha = r``), all layers have one rank, and nothing is in the configuration
that an engine reads otherwise than PEFT does: SGLang knows neither rsLoRA nor patterns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from constrained_adapters.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from constrained_adapters.errors import ConfigError, DataError, ModelError
from constrained_adapters.export.folder import new_export, size_bytes, write_record
from constrained_adapters.export.mix import compress_pairs, mix_pairs, pad_pairs
from constrained_adapters.export.plain import PREFIX, Pairs, PlainLora, read_plain_lora
from constrained_adapters.models.embedded import EMBEDDED_NAME
from constrained_adapters.workspace import atomic_write_json

ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's ``max_lora_rank``; TGI and kernels of others want such ranks too."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DType = Literal["same", "float32", "bfloat16", "float16"]
HUB_NAMES = {"embedded": f"HuggingFaceTB/{EMBEDDED_NAME}", EMBEDDED_NAME: f"HuggingFaceTB/{EMBEDDED_NAME}"}
"""What other programs know a packaged base by."""


Folders = Mapping[Path, float] | Mapping[str, float] | Mapping[str | Path, float]
"""Folders of adapters with their weights."""


@dataclass(frozen=True)
class Mix:
    """One or more adapters as one, ready to be written.

    Args:
        pairs: Of one rank in all layers, the scale and the weights inside B.
        weights: Of the parts, by the name of each.
        rank: Of the pairs, padding included.
        own_rank: Without padding.
        error_ratio: What a compression lost, as a share of ‖ΔW‖; 0.0 where nothing was compressed.
        worst: The layer that lost most and its share; None where nothing was compressed.
        parts: As they were read, in the order of ``weights``.
    """

    pairs: Pairs
    weights: dict[str, float]
    rank: int
    own_rank: int
    error_ratio: float
    worst: tuple[str, float] | None
    parts: tuple[PlainLora, ...]

    @property
    def base_fingerprint(self) -> str | None:
        """Of the base that the parts were trained on, where one of them knows it."""
        known = [part.facts.get("base_fingerprint") for part in self.parts]
        return next((each for each in known if each), None)


@dataclass(frozen=True)
class ExportedLora:
    """What was written; ``num_bytes`` on disk."""

    folder: Path
    mix: Mix
    dtype: str
    num_bytes: int


def make_mix(
    adapters: Folders,
    *,
    rank: int | None = None,
    pad_rank: Literal["auto"] | int | None = None,
) -> Mix:
    """Read adapters and make one of them.

    Args:
        adapters: Folders of adapters with their weights: ΔW = Σ wᵢ ΔWᵢ.
        rank: Compress to this rank by SVD, where the sum of the ranks is larger; None keeps ΔW exactly.
        pad_rank: Add zeros up to this rank, or, ``"auto"``, up to the next of :data:`ENGINE_RANKS`.

    Raises:
        DataError: A folder holds no whole adapter.
        ModelError: One is no plain LoRA, they belong to different bases, or no engine takes so many ranks.
        ConfigError: A weight or a rank makes no sense.
    """
    if rank is not None and rank < 1:
        raise ConfigError("an adapter has at least one rank", got=f"rank {rank}")
    parts = [(read_plain_lora(Path(folder)), float(weight)) for folder, weight in adapters.items()]
    _check_one_base([part for part, _ in parts])
    pairs = mix_pairs([(part.pairs, weight) for part, weight in parts])
    error, worst = 0.0, None
    if rank is not None and _largest_rank(pairs) > rank:
        compressed = compress_pairs(pairs, rank)
        pairs, error = compressed.pairs, compressed.error_ratio
        worst = (compressed.worst_module, compressed.worst_ratio)
    own = _largest_rank(pairs)
    padded = _padded_rank(own, pad_rank)
    return Mix(
        pairs=pad_pairs(pairs, padded),
        weights=dict(zip(_names([part for part, _ in parts]), [weight for _, weight in parts], strict=True)),
        rank=padded,
        own_rank=own,
        error_ratio=error,
        worst=worst,
        parts=tuple(part for part, _ in parts),
    )


def export_lora(
    adapters: Folders,
    target: str | Path,
    *,
    rank: int | None = None,
    pad_rank: Literal["auto"] | int | None = None,
    dtype: DType = "same",
    base_name: str | None = None,
    force: bool = False,
) -> ExportedLora:
    """Write one or more weighted adapters as one plain LoRA folder; the base is not needed.

    Args:
        adapters: As :func:`make_mix`; ``{folder: 1.0}`` for one.
        target: The folder to write; it appears whole or not at all.
        rank: As :func:`make_mix`.
        pad_rank: As :func:`make_mix`.
        dtype: Of the weights; ``"same"``: as the first adapter's file has them.
        base_name: What the base is called in the configuration; default: as in the first adapter's.
        force: Replace an earlier export.

    Raises:
        DataError: As :func:`make_mix`.
        ModelError: As :func:`make_mix`.
        ConfigError: As :func:`make_mix`.
        WorkspaceError: The target exists, or cannot be written.
    """
    mix = make_mix(adapters, rank=rank, pad_rank=pad_rank)
    folder = Path(target)
    with new_export(folder, force=force) as new:
        kind = write_mix(mix, new, dtype=dtype, base_name=base_name)
        write_record(new, mix_record(mix, kind))
    return ExportedLora(folder, mix, kind, size_bytes(folder))


def write_mix(mix: Mix, folder: Path, *, dtype: DType = "same", base_name: str | None = None) -> str:
    """Write the two files of a PEFT adapter into ``folder``; return the weights' type.

    Raises:
        DataError: A value is too large for float16.
    """
    first = mix.parts[0]
    kind = first.dtype if dtype == "same" else DTYPES[dtype]
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in mix.pairs.items():
        for letter, matrix in (("A", a), ("B", b)):
            cast = matrix.to(kind).contiguous()
            if not cast.isfinite().all():
                raise DataError(
                    f"a value of this adapter is too large for {kind}",
                    got=f"{float(matrix.abs().max()):.3g} in {letter} of {module}",
                    hint="--dtype bfloat16, or float32",
                )
            tensors[f"{PREFIX}{module}.lora_{letter}.weight"] = cast
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    atomic_write_json(folder / CONFIG_FILE, plain_config(mix, base_name))
    return str(kind).removeprefix("torch.")


def plain_config(mix: Mix, base_name: str | None = None) -> dict[str, Any]:
    """The ``adapter_config.json``: what every release of PEFT since 0.10 and every engine knows."""
    first = mix.parts[0]
    name = base_name or first.base_name
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "peft_version": peft.__version__,
        "base_model_name_or_path": HUB_NAMES.get(name or "", name),
        "revision": None,
        "inference_mode": True,
        "r": mix.rank,
        "lora_alpha": mix.rank,
        "lora_dropout": 0.0,
        "target_modules": _targets(mix),
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": first.transposed,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def mix_record(mix: Mix, dtype: str) -> dict[str, Any]:
    """What is written down about the export of a mix."""
    return {
        "kind": "lora",
        "adapters": mix.weights,
        "rank": mix.rank,
        "own_rank": mix.own_rank,
        "compression_error_ratio": mix.error_ratio,
        "dtype": dtype,
        "base_fingerprint": mix.base_fingerprint,
    }


def _targets(mix: Mix) -> list[str]:
    """Ends of names where these choose the same layers in every part, else whole names."""
    known = {part.targets for part in mix.parts}
    if len(known) == 1 and (targets := next(iter(known))) is not None:
        return sorted(targets)
    return sorted(mix.pairs)


def _check_one_base(parts: list[PlainLora]) -> None:
    prints = {part.facts["base_fingerprint"] for part in parts if part.facts.get("base_fingerprint")}
    if len(prints) > 1:
        raise ModelError(
            "these adapters belong to different bases",
            got=f"{len(prints)} fingerprints in {', '.join(str(part.folder) for part in parts)}",
            expected="adapters that were trained on one base",
        )


def engine_rank(rank: int) -> int | None:
    """The smallest rank of those that engines take, ``rank`` or over; None where all are smaller."""
    return next((each for each in ENGINE_RANKS if each >= rank), None)


def _largest_rank(pairs: Pairs) -> int:
    return max(a.shape[0] for a, _ in pairs.values())


def _padded_rank(own: int, asked: Literal["auto"] | int | None) -> int:
    if asked is None:
        return own
    if asked == "auto":
        fitting = engine_rank(own)
        if fitting is None:
            raise ModelError(
                "no engine takes an adapter of so many ranks",
                got=f"rank {own}",
                expected=f"at most {ENGINE_RANKS[-1]}, the largest max_lora_rank of vLLM",
                hint=f"--rank {ENGINE_RANKS[-1]} compresses it, with the loss stated",
            )
        return fitting
    if asked < own:
        raise ConfigError(
            "padding adds ranks and takes none away",
            got=f"pad_rank {asked} for an adapter of rank {own}",
            hint=f"--rank {asked} compresses it, with the loss stated",
        )
    return asked


def _names(parts: list[PlainLora]) -> list[str]:
    """The adapters' own names, or their folders where two have one name."""
    names = [str(part.facts.get("name") or part.folder.name) for part in parts]
    return names if len(set(names)) == len(names) else [str(part.folder) for part in parts]
