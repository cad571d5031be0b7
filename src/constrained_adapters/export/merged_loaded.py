"""Merging into a base that must be loaded as a whole to be read: GGUF files, old or quantised checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import ModelError
from constrained_adapters.export.bases import BaseName
from constrained_adapters.export.lora import DTYPES, DType, Mix
from constrained_adapters.export.merged import SHARD_BYTES, Merge
from constrained_adapters.models.gguf import quiet
from constrained_adapters.models.load import LoadedBase, load_base


def load_plain(base: BaseName, device: str = "cpu") -> LoadedBase:
    """Load a base in the type that its adapters were trained on, and undo its quantisation if it has one.

    Raises:
        ModelError: It cannot be loaded, or nothing undoes its quantisation.
        ConstrainedAdaptersError: As :func:`~constrained_adapters.models.load.load_base`.
    """
    settings = {"model": base.name, "revision": base.revision, "device": device}
    loaded = load_base(BaseConfig(**settings, dtype=base.dtype or "bfloat16"))
    model: Any = loaded.model
    if getattr(model, "hf_quantizer", None) is not None:
        try:
            model.dequantize()
        except (NotImplementedError, ValueError, ImportError) as error:
            raise ModelError(
                "the base's quantisation cannot be undone",
                got=f"{str(error).splitlines()[0]} ({base.name})",
                hint="--base NAME with the weights that it was quantised from",
            ) from error
    return loaded


@torch.no_grad()
def write_merged_loaded(
    loaded: LoadedBase,
    mix: Mix,
    folder: Path,
    *,
    dtype: DType = "same",
    shard_bytes: int = SHARD_BYTES,
) -> Merge:
    """Merge in memory and write; the loaded base is changed.

    Args:
        loaded: Of :func:`load_plain`.
        mix: The adapters.
        folder: Empty; gets all files of the model.
        dtype: Of the weights; ``"same"``: as they are loaded.
        shard_bytes: Most bytes of one weight file.

    Raises:
        ModelError: An adapted layer is not in the base, or has another shape there.
    """
    model: Any = loaded.model
    for module, (a, b) in mix.pairs.items():
        layer = _layer(model, module)
        weight = layer.weight
        left, right = (a.T, b.T) if isinstance(layer, Conv1D) else (b, a)
        if weight.shape != (left.shape[0], right.shape[1]):
            raise ModelError(
                "the adapter belongs to another base",
                got=f"{module}: the base has {list(weight.shape)}, ΔW is {[left.shape[0], right.shape[1]]}",
            )
        left, right = left.to(weight.device), right.to(weight.device)
        weight.copy_(torch.addmm(weight.float(), left, right))
    if dtype != "same":
        model.to(DTYPES[dtype])
    with quiet():
        model.save_pretrained(folder, max_shard_size=shard_bytes)
        loaded.tokenizer.save_pretrained(folder)
    shards = len(list(folder.glob("model*.safetensors")))
    return Merge(str(model.dtype).removeprefix("torch."), shards, len(mix.pairs))


def _layer(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ModelError(
            "the base has no such layer",
            got=f"{name} ({type(model).__name__})",
            hint="--base NAME, where the adapter belongs to another base",
        ) from None
