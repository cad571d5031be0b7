"""Merging into bases of other forms: quantised, GGUF, GPT-2's transposed layers, other names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from constrained_adapters.errors import DataError, ModelError, WorkspaceError
from constrained_adapters.export.bases import BaseName
from constrained_adapters.export.checkpoint import Checkpoint, find_checkpoint
from constrained_adapters.export.gguf_base import write_gguf
from constrained_adapters.export.lora import make_mix
from constrained_adapters.export.merged import write_merged
from constrained_adapters.export.merged_loaded import load_plain, write_merged_loaded
from constrained_adapters.export.quantised import rounding_of

IDS = torch.arange(3, 23)[None]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def test_the_transposed_layers_of_gpt2_and_names_without_prefix(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=4)).eval()
    base.save_pretrained(tmp_path / "base")
    settings = LoraConfig(r=3, lora_alpha=6, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True)
    model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(str(tmp_path / "law"))
    expected = logits(model)
    merged = tmp_path / "merged"
    merged.mkdir()
    write_merged(Checkpoint(tmp_path / "base"), make_mix({tmp_path / "law": 1.0}), merged)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected)
    assert (logits(model.unload()) - expected).abs().max() > 0.1


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_is_what_the_adapters_saw(
    tiny_llama, save_lora, base_folder, tmp_path, quantization
):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    checkpoint = Checkpoint(base_folder)
    rounding = rounding_of(checkpoint, BaseName(str(base_folder), quantization=quantization, dtype="float32"))
    assert len(rounding.names) == 14 and "lm_head.weight" not in rounding.names
    folder, law = tmp_path / "merged", save_lora("law")
    folder.mkdir()
    write_merged(checkpoint, make_mix({law: 1.0}), folder, rounding=rounding)
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"  # no adapter is on it
    weight = tiny_llama.state_dict()[name]
    if quantization == "4bit":
        layer = bitsandbytes.nn.Linear4bit(32, 64, bias=False, quant_type="nf4", compress_statistics=True)
        layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
        layer = layer.to("cpu")
        expected = layer(torch.eye(32)).T  # what a linear layer of bitsandbytes computes
    else:
        scale = weight.half().float().abs().amax(1, keepdim=True) / 127
        expected = (weight.half().float() / scale).round() * scale
    assert (expected - weight).abs().max() > 1e-4
    torch.testing.assert_close(found[name], expected, atol=2e-3 * float(weight.abs().max()), rtol=0)
    rounding.apply(tiny_llama)
    adapted = PeftModel.from_pretrained(tiny_llama, str(law))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(adapted))


def test_a_base_in_a_gguf_file(save_lora, base_folder, merging_tokenizer, tmp_path, tiny_llama):
    law = save_lora("law")
    expected = logits(PeftModel.from_pretrained(tiny_llama, str(law)))
    merging_tokenizer.save_pretrained(base_folder)
    write_gguf(Checkpoint(base_folder), tmp_path / "base.gguf", "f32", name="base")
    base = BaseName(str(tmp_path / "base.gguf"), dtype="float32")
    assert find_checkpoint(base) is None
    folder = tmp_path / "merged"
    merge = write_merged_loaded(load_plain(base), make_mix({law: 1.0}), folder, dtype="float32")
    assert merge.num_merged == 4 and (folder / "tokenizer.json").is_file()
    found = logits(AutoModelForCausalLM.from_pretrained(folder))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_base_is_refused(save_lora, base_folder, tmp_path):
    mix = make_mix({save_lora("law"): 1.0})
    a, b = mix.pairs["model.layers.0.self_attn.q_proj"]
    for name, matrix in {
        "model.layers.7.self_attn.q_proj": a,
        "model.layers.0.self_attn.q_proj": a[:, 1:],
    }.items():
        mix = replace(mix, pairs={name: (matrix, b)})
        with pytest.raises(ModelError, match=r"no such layer|another base"):
            write_merged(Checkpoint(base_folder), mix, tmp_path)
        with pytest.raises(ModelError, match=r"no such layer|another base"):
            write_merged_loaded(load_plain(BaseName(str(base_folder))), mix, tmp_path)


def test_no_room_is_told_before_anything_is_written(
    save_lora, base_folder, merging_tokenizer, tmp_path, monkeypatch
):
    merging_tokenizer.save_pretrained(base_folder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    folder = tmp_path / "merged"
    folder.mkdir()
    with pytest.raises(WorkspaceError, match="no space left"):
        write_merged(Checkpoint(base_folder), make_mix({save_lora("law"): 1.0}), folder)
    with pytest.raises(WorkspaceError, match="no space left"):
        write_gguf(Checkpoint(base_folder), folder / "x.gguf", "f32", name="x")
    assert not list(folder.iterdir())


def test_values_beyond_float16_are_refused(save_lora, base_folder, tmp_path):
    with pytest.raises(DataError, match="too large for float16"):
        write_merged(Checkpoint(base_folder), make_mix({save_lora("law"): 1e6}), tmp_path, dtype="float16")
