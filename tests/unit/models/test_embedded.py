"""The default model: converted once, whole or not at all, then read from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from constrained_adapters.assets import cache_path
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import AssetError
from constrained_adapters.models import embedded
from constrained_adapters.models.embedded import embedded_model_path
from constrained_adapters.models.load import load_base


@pytest.fixture
def conversions(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> list[torch.dtype]:
    """Stands in for reading the GGUF; an empty cache. Returns the types asked for, one a conversion."""
    calls: list[torch.dtype] = []

    def read(_path: Path, dtype: torch.dtype) -> tuple[object, object]:
        calls.append(dtype)
        return tiny_llama.to(dtype), tiny_tokenizer

    monkeypatch.setenv("CRMA_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "asset_path", lambda _name, _progress: tmp_path)
    monkeypatch.setattr(embedded, "load_gguf", read)
    return calls


def test_converted_once_in_bfloat16(conversions: list[torch.dtype]) -> None:
    stages: list[str] = []
    folder = embedded_model_path(lambda _name, stage: stages.append(stage))
    assert embedded_model_path() == folder
    assert conversions == [torch.bfloat16] and len(stages) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no temporary folder stays"
    assert load_base(BaseConfig(device="cpu")).description["model"] == "SmolLM2-135M-Instruct"


def test_failed_conversion_leaves_nothing(
    conversions: list[torch.dtype], tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny_tokenizer, "save_pretrained", full)
    with pytest.raises(AssetError, match="No space left"):
        embedded_model_path()
    assert list((cache_path() / "models").iterdir()) == []


@pytest.mark.slow
def test_the_real_one_writes_english() -> None:
    try:
        base = load_base(BaseConfig())
    except AssetError as error:
        pytest.skip(str(error))
    ids = base.tokenizer("The capital of France is", return_tensors="pt")
    written = base.model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in base.tokenizer.decode(written[0])
