"""An embedding model in the place of the base's hidden states: what a prompt means, in one vector."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained_adapters.errors import DataError, MissingExtraError
from constrained_adapters.models.gguf import quiet

EMBEDDING_FILE = "routing_embedding.safetensors"


class EmbeddingVectors:
    """Vectors of texts by an embedding model.

    Args:
        encode: From texts to an array (b, d).
        name: Of the model; statistics made by another one do not go with it.
    """

    file = EMBEDDING_FILE

    def __init__(self, encode: Callable[[list[str]], Any], name: str) -> None:
        self._encode, self.name = encode, name

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One vector a text, (b, d), float64; each counts as one part, however long the text is."""
        made = torch.as_tensor(self._encode(list(texts)), dtype=torch.float64)
        return made, torch.ones(len(made), dtype=torch.float64)


def load_embedding(folder: str | Path) -> EmbeddingVectors:
    """Load an embedding model from a folder: one of sentence-transformers, or of model2vec.

    Raises:
        DataError: There is no embedding model in the folder.
        MissingExtraError: The library that it was made with is not installed.
    """
    folder = Path(folder).expanduser()
    if (folder / "modules.json").is_file():
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError.of("sentence-transformers", "embed", "to route by this model") from None
        with quiet():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return EmbeddingVectors(
            lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True), folder.name
        )
    if _is_model2vec(folder):
        try:
            from model2vec import StaticModel
        except ImportError:
            raise MissingExtraError.of("model2vec", "embed", "to route by this model") from None
        static = StaticModel.from_pretrained(str(folder))
        return EmbeddingVectors(static.encode, folder.name)
    raise DataError(
        "there is no embedding model in this folder",
        got=f"{folder} {'has no modules.json' if folder.is_dir() else 'does not exist'}",
        expected="a folder that sentence-transformers or model2vec wrote",
    )


def _is_model2vec(folder: Path) -> bool:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == "model2vec"
