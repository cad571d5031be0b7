"""Routing by an embedding model from a folder."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from constrained_adapters.errors import DataError, MissingExtraError
from constrained_adapters.routing.embedding import load_embedding


@pytest.fixture
def static_folder(tmp_path):
    """A model2vec model whose words are axes."""
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "court", "theorem"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = model2vec.StaticModel(torch.eye(4).numpy(), backend, normalize=False)
    model.save_pretrained(str(tmp_path / "static"))
    return tmp_path / "static"


def test_a_model2vec_folder_gives_vectors(static_folder):
    vectors = load_embedding(static_folder)
    made, lengths = vectors(["court court", "theorem"])
    torch.testing.assert_close(made, torch.eye(4, dtype=torch.float64)[[2, 3]])
    assert lengths.tolist() == [1.0, 1.0] and vectors.name == "static"


@pytest.mark.parametrize(
    "library, extra", [("model2vec", "model2vec"), ("sentence_transformers", "sentence")]
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, library, extra):
    if library == "model2vec":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "model2vec"}))
    else:
        (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=extra) as caught:
        load_embedding(tmp_path)
    assert caught.value.hint == "pip install 'constrained-adapters[embed]'"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "llama"}'])
def test_a_folder_without_an_embedding_model_is_refused(tmp_path, content):
    folder = tmp_path / "none"
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match="no embedding model"):
        load_embedding(folder)
