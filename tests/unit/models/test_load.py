"""Loading a base: every way in, every choice with its reason, every failure with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from constrained_adapters.config.run import BaseConfig
from constrained_adapters.errors import ConfigError, ModelError, UsageError
from constrained_adapters.models import load, placement
from constrained_adapters.models.load import load_base


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder as save_pretrained writes it, in bfloat16."""
    folder = tmp_path / "tiny-llama"
    tiny_llama.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_folder_is_loaded_and_described(checkpoint: Path) -> None:
    base = load_base(BaseConfig(model=str(checkpoint), dtype="float32", device="cpu"))
    assert base.model.dtype == torch.float32 and not base.model.training
    assert base.description["parameters"] == sum(p.numel() for p in base.model.parameters())
    assert base.description["architecture"] == "LlamaForCausalLM"
    assert base.description["dtype_reason"] == base.description["device_reason"] == "as asked"
    assert base.description["fingerprint"] == base.fingerprint
    assert json.loads(json.dumps(base.description)) == base.description, "it goes into the record of a run"
    again = load_base(BaseConfig(model=str(checkpoint), dtype="bfloat16", device="cpu"))
    assert again.model.dtype == torch.bfloat16
    assert again.fingerprint == base.fingerprint


def test_missing_pad_token_is_set(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", lambda settings: settings.pop("pad_token"))
    base = load_base(BaseConfig(model=str(checkpoint), device="cpu"))
    assert base.tokenizer.pad_token == base.tokenizer.eos_token == "<|im_end|>"
    assert "eos_token" in base.description["pad_token_reason"]


def test_wrong_folder_names_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_base(BaseConfig(model=str(checkpoint.parent / "tiny-lama")))
    assert caught.value.hint == str(checkpoint)
    with pytest.raises(UsageError, match="holds no model") as caught:
        load_base(BaseConfig(model=str(checkpoint.parent)))
    assert caught.value.hint == str(checkpoint)


def test_adapter_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="an adapter, not a base"):
        load_base(BaseConfig(model=str(tmp_path)))


def test_slip_in_embedded_is_told_without_asking_the_hub() -> None:
    with pytest.raises(UsageError) as caught:
        load_base(BaseConfig(model="embeded"))
    assert caught.value.hint == "embedded"


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nmore")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError, match="none from the hub") as caught:
        load_base(BaseConfig(model="acme/none-such"))
    assert caught.value.got == "We couldn't connect to the hub"
    assert "offline, give a folder" in (caught.value.hint or "")


def test_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="no model"):
        load_base(BaseConfig(model=str(tmp_path / "notes.txt")))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="GGUF file cannot be read"):
        load_base(BaseConfig(model=str(tmp_path / "broken.gguf")))


def test_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(architectures=["BertForMaskedLM"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not a causal language model") as caught:
        load_base(BaseConfig(model=str(tmp_path)))
    assert caught.value.got == "BertForMaskedLM"


def test_weights_that_would_start_at_random_are_refused(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda settings: settings.update(num_hidden_layers=3))
    with pytest.raises(ModelError, match="lacks 9 weights") as caught:
        load_base(BaseConfig(model=str(checkpoint)))
    assert "model.layers.2" in (caught.value.got or "")


def test_damaged_weights_and_settings(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(BaseConfig(model=str(checkpoint)))
    (checkpoint / "config.json").write_text('{"model_type": "no-such-architecture"}')
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        load_base(BaseConfig(model=str(checkpoint)))


def test_tokenizer_of_another_model(checkpoint: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.add_tokens([f"new{index}" for index in range(20)])
    tiny_tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ModelError, match="more tokens than"):
        load_base(BaseConfig(model=str(checkpoint)))


def test_quantisation_needs_a_device_that_bitsandbytes_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "choose_device", lambda asked: (torch.device("mps"), "as asked"))
    with pytest.raises(ConfigError, match="needs a CUDA GPU or a CPU"):
        load_base(BaseConfig(quantization="4bit"))


@pytest.mark.parametrize(("quantization", "likeness"), [("4bit", 0.5), ("8bit", 0.95)])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_base_is_quantised_on_a_cpu_too(checkpoint: Path, quantization: Any, likeness: float) -> None:
    pytest.importorskip("bitsandbytes")
    config = BaseConfig(model=str(checkpoint), device="cpu", dtype="float32")
    plain, packed = (
        load_base(config.model_copy(update={"quantization": kind})).model for kind in (None, quantization)
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        want, got = plain(ids).logits, packed(ids).logits
    assert packed.get_memory_footprint() < plain.get_memory_footprint()
    assert not torch.equal(got, want)
    assert float((got * want).sum() / (got.norm() * want.norm())) > likeness


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "nonsense"])
def test_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match="there is no device") as caught:
        placement.choose_device(device)
    assert "cpu" in (caught.value.expected or "")


def test_dtype_on_a_cpu_follows_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert placement.choose_dtype("auto", cpu, 1000)[0] == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    dtype, reason = placement.choose_dtype("auto", cpu, 1000)
    assert dtype == torch.bfloat16 and "amx_bf16" in reason
    monkeypatch.setattr(placement, "_memory_bytes", lambda: 8_000_000_000)
    dtype, reason = placement.choose_dtype("auto", cpu, 8_000_000_000)
    assert dtype == torch.bfloat16 and "32 of 8 GB" in reason
    assert placement.choose_dtype("float16", cpu, 0) == (torch.float16, "as asked")
