"""An adapter as a GGUF file that llama.cpp adds to its base, weighted anew in each request.

``llama-server --lora law.gguf --lora medicine.gguf``, then ``"lora": [{"id": 0, "scale": 0.7}]``. llama.cpp
computes ``scale · alpha / r · B A``; here alpha = r, the adapter's own scale being inside B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch

from constrained_adapters.errors import DataError
from constrained_adapters.export.folder import require_room
from constrained_adapters.export.gguf_base import RECORD_KEY, TYPES
from constrained_adapters.export.gguf_names import Names, restore_heads
from constrained_adapters.export.lora import Mix
from constrained_adapters.export.plain import Pairs

LoraType = Literal["f32", "f16"]


def write_gguf_lora(
    mix: Mix, config: Any, file: Path, kind: LoraType, *, name: str, record: Mapping[str, Any]
) -> None:
    """Write an adapter.

    Args:
        mix: The adapter.
        config: Of its base, as transformers reads it.
        file: To write.
        kind: Of A and B.
        name: In the file's metadata.
        record: Kept in the file's metadata.

    Raises:
        ModelError: The base's architecture is not known here, or llama.cpp has no place for a layer.
        DataError: A value is too large for float16.
        WorkspaceError: The disk has not the room.
    """
    names = Names(config)
    dtype = np.float32 if kind == "f32" else np.float16
    require_room(file.parent, sum(a.numel() + b.numel() for a, b in mix.pairs.values()) * dtype().itemsize)
    writer = gguf.GGUFWriter(file, names.arch_name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(mix.rank))
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_string(RECORD_KEY, json.dumps(record, ensure_ascii=False))
    for module, (a, b) in mix.pairs.items():
        weight = f"{module}.weight"
        for end, matrix in (("lora_a", a), ("lora_b", names.convert(weight, b))):
            values = matrix.contiguous().numpy().astype(dtype)
            if not np.isfinite(values).all():
                raise DataError(
                    "a value of this adapter is too large for float16",
                    got=f"{float(matrix.abs().max()):.3g} in {module}",
                    hint="--type f32",
                )
            writer.add_tensor(f"{names.name(weight)}.{end}", values)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_lora(file: Path, config: Any, modules: list[str]) -> Pairs:
    """Read an adapter back as transformers has it.

    Args:
        file: Of :func:`write_gguf_lora`, or of llama.cpp's own converter.
        config: Of its base.
        modules: Names of layers in transformers to look for.

    Raises:
        DataError: The file is damaged, or lacks one of these layers.
    """
    names = Names(config)
    try:
        reader = gguf.GGUFReader(file)
        tensors = {each.name: torch.from_numpy(np.array(each.data)).float() for each in reader.tensors}
        alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise DataError("the GGUF file is damaged or no LoRA", got=f"{error} ({file})") from None
    pairs = {}
    for module in modules:
        title = names.name(f"{module}.weight")
        if f"{title}.lora_a" not in tensors:
            raise DataError("a layer is missing in the GGUF file", got=f"{title} ({file})", expected=module)
        a, b = tensors[f"{title}.lora_a"], tensors[f"{title}.lora_b"]
        if names.family.reorders and module.endswith(("q_proj", "k_proj")):
            b = restore_heads(b, names.heads if module.endswith("q_proj") else names.kv_heads)
        pairs[module] = (a, b * (alpha / a.shape[0]))
    return pairs
