"""The merged model in the base's own format: safetensors in shards, tokenizer and configurations along.

``W' = W + Σ wᵢ sᵢ Bᵢ Aᵢ`` is summed in float32 and rounded once, tensor by tensor: besides one shard, no
more than one tensor is held.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from constrained_adapters.errors import DataError, ModelError
from constrained_adapters.export.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, Entry
from constrained_adapters.export.folder import require_room
from constrained_adapters.export.lora import DTYPES, DType, Mix
from constrained_adapters.export.quantised import Rounding
from constrained_adapters.workspace import atomic_write_json

SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Merge:
    """What was merged.

    Args:
        dtype: Of the weights; of most of them, where the base keeps several types.
        num_shards: Weight files.
        num_merged: Layers that an adapter changed.
    """

    dtype: str
    num_shards: int
    num_merged: int


def write_merged(
    checkpoint: Checkpoint,
    mix: Mix,
    folder: Path,
    *,
    dtype: DType = "same",
    shard_bytes: int = SHARD_BYTES,
    rounding: Rounding | None = None,
) -> Merge:
    """Merge into a copy of the base, one shard at a time.

    Args:
        checkpoint: The base.
        mix: The adapters.
        folder: Empty; gets all files of the model.
        dtype: Of the floating-point weights; ``"same"``: as the base keeps each.
        shard_bytes: Most bytes of one weight file; one tensor may be larger.
        rounding: Of a base that was quantised while the adapters were trained; None takes it as it is.

    Raises:
        ModelError: An adapted layer is not in the base, or has another shape there.
        DataError: A merged value is too large for float16.
        WorkspaceError: The disk has not the room for the model.
    """
    read = merged_reader(checkpoint, mix, rounding)
    plan = list(_shards(checkpoint, dtype, shard_bytes))
    total = sum(_bytes(entry, dtype) for shard in plan for entry in shard)
    require_room(folder, total)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(plan, start=1):
        file = SINGLE_FILE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for entry in shard:
            kind = _target(entry, dtype)
            tensors[entry.name] = _cast(read(entry.name), kind, entry.name)
            weight_map[entry.name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors
    if len(plan) > 1:
        atomic_write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    commonest = _commonest(checkpoint, dtype)
    _copy_rest(checkpoint, folder, commonest)
    return Merge(commonest, len(plan), len(mix.pairs))


def merged_reader(
    checkpoint: Checkpoint, mix: Mix, rounding: Rounding | None = None
) -> Callable[[str], Tensor]:
    """What reads one tensor of the merged model by its name: in float32 where an adapter changed it.

    Args:
        checkpoint: As :func:`write_merged`.
        mix: As there.
        rounding: As there.

    Raises:
        ModelError: As there.
    """
    owners = {checkpoint.name_of_weight(module): module for module in mix.pairs}
    transposed = mix.parts[0].transposed
    for name, module in owners.items():
        _check_shape(checkpoint.entries[name], module, mix, transposed)

    def read(name: str) -> Tensor:
        tensor = checkpoint.read(name)
        if rounding is not None and name in rounding.names:
            tensor = rounding(tensor)
        if name not in owners:
            return tensor
        a, b = mix.pairs[owners[name]]
        exact = tensor.float()
        return torch.addmm(exact, a.T, b.T) if transposed else torch.addmm(exact, b, a)

    return read


def _shards(checkpoint: Checkpoint, dtype: DType, limit: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in checkpoint.entries.values():
        more = _bytes(entry, dtype)
        if shard and size + more > limit:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += more
    if shard:
        yield shard


def _check_shape(entry: Entry, module: str, mix: Mix, transposed: bool) -> None:
    a, b = mix.pairs[module]
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if entry.shape != shape:
        raise ModelError(
            "the adapter belongs to another base",
            got=f"{module}: the base has {list(entry.shape)}, ΔW is {list(shape)}",
            expected="the base that it was trained on",
        )


def _target(entry: Entry, dtype: DType) -> torch.dtype:
    return entry.dtype if dtype == "same" or not entry.dtype.is_floating_point else DTYPES[dtype]


def _bytes(entry: Entry, dtype: DType) -> int:
    count = 1
    for side in entry.shape:
        count *= side
    return count * _target(entry, dtype).itemsize


def _cast(tensor: Tensor, kind: torch.dtype, name: str) -> Tensor:
    cast = tensor.to(kind).contiguous()
    if kind == torch.float16 and not cast.isfinite().all():
        raise DataError(
            "a merged value is too large for float16",
            got=f"{float(tensor.abs().max()):.3g} in {name}",
            hint="--dtype bfloat16",
        )
    return cast


def _commonest(checkpoint: Checkpoint, dtype: DType) -> str:
    counts: dict[torch.dtype, int] = {}
    for entry in checkpoint.entries.values():
        kind = _target(entry, dtype)
        counts[kind] = counts.get(kind, 0) + _bytes(entry, dtype)
    return str(max(counts, key=lambda kind: counts[kind])).removeprefix("torch.")


def _copy_rest(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    for path in checkpoint.other_files():
        if path.name not in {"config.json", "README.md"}:
            shutil.copyfile(path, folder / path.name)
    config: dict[str, Any] = dict(checkpoint.config)
    for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:
        config[key] = dtype
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
