"""A base's tensors, one at a time, as its folder keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from constrained_adapters.errors import ModelError
from constrained_adapters.export.bases import BaseName
from constrained_adapters.models.embedded import embedded_model_path

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_WEIGHT_ENDS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# What else a folder of the hub may hold and a model does not need.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*"]


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """A folder with safetensors and the files that belong to them.

    Args:
        folder: As ``save_pretrained`` leaves it.

    Raises:
        ModelError: It has no safetensors, a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.entries = {entry.name: entry for entry in self._list()}

    def read(self, name: str) -> Tensor:
        """One tensor, in main memory."""
        with safe_open(self.folder / self.entries[name].file, framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def other_files(self) -> list[Path]:
        """Configuration, tokenizer, chat template, licence: all that holds no weights."""
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_file()
            and not path.name.endswith((*_WEIGHT_ENDS, ".index.json"))
            and not path.name.startswith(".")
        ]

    def name_of_weight(self, module: str) -> str:
        """The tensor of an adapted layer: some checkpoints leave out, or have, the decoder's own prefix.

        Raises:
            ModelError: There is none.
        """
        parts = module.split(".")
        for candidate in (module, ".".join(parts[1:]), *(f"{p}.{module}" for p in ("model", "transformer"))):
            if f"{candidate}.weight" in self.entries:
                return f"{candidate}.weight"
        raise ModelError(
            "the base has no such layer",
            got=f"{module} ({self.folder})",
            expected=f"layers such as {next(iter(self.entries))}",
            hint="--base NAME, where the adapter belongs to another base",
        )

    def _list(self) -> Iterator[Entry]:
        for file in self._files():
            path = self.folder / file
            try:
                with safe_open(path, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 - it is no dict
                        part = opened.get_slice(name)
                        yield Entry(name, file, tuple(part.get_shape()), _dtype(part.get_dtype()))
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    "a weight file of the base is missing or damaged",
                    got=f"{str(error).splitlines()[0]} ({path})",
                ) from None

    def _files(self) -> list[str]:
        index = self.folder / INDEX_FILE
        if index.is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return sorted(set(weight_map.values()))
        if (self.folder / SINGLE_FILE).is_file():
            return [SINGLE_FILE]
        raise ModelError(
            "the base has no safetensors",
            got=f"{self.folder}: {sorted(path.name for path in self.folder.iterdir())[:8]}",
            expected=f"{SINGLE_FILE} or {INDEX_FILE}",
        )


def find_checkpoint(base: BaseName) -> Checkpoint | None:
    """The base's folder with plain safetensors; None where it has none, and must be loaded to be read.

    That is so with a GGUF file, an old checkpoint, and one that was quantised before it was published.

    Raises:
        ModelError: The hub has no such model and there is no copy of it here.
    """
    path = embedded_model_path() if base.name == "embedded" else Path(base.name).expanduser()
    if path.is_file():
        return None
    if not path.is_dir():
        path = _from_hub(base)
    if not ((path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()):
        return None
    checkpoint = Checkpoint(path)
    return None if checkpoint.config.get("quantization_config") else checkpoint


def _from_hub(base: BaseName) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(base.name, revision=base.revision, allow_patterns=_HUB_PATTERNS)
    except Exception as error:  # offline, forbidden or unknown: the hub has many words for it
        raise ModelError(
            f"the base {base.name!r} is neither in a folder nor to be had from the hub",
            got=str(error).splitlines()[0],
            hint="--base FOLDER",
        ) from error
    return Path(found)


def _dtype(name: str) -> torch.dtype:
    return _DTYPES.get(name, torch.uint8)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}
