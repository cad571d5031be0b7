"""The plain LoRA folder: stock PEFT gives the same logits, and nothing else is in it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from constrained_adapters.errors import ConfigError, DataError, ModelError, WorkspaceError
from constrained_adapters.export.lora import export_lora, make_mix
from constrained_adapters.export.plain import read_plain_lora

IDS = torch.arange(3, 23)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def peft_logits(base, folder) -> torch.Tensor:
    model = PeftModel.from_pretrained(base, str(folder))
    try:
        return logits(model)
    finally:
        model.unload()


KINDS = {
    "alpha / r": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 11}},
    "some layers": {"layers_to_transform": [1]},
    "a regular expression": {"target_modules": r".*layers\.0.*\.(q|k)_proj"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_stock_peft_gives_the_same_logits(tiny_llama, save_lora, tmp_path, options):
    folder = save_lora("law", **options)
    expected, plain = peft_logits(tiny_llama, folder), logits(tiny_llama)
    exported = export_lora({folder: 1.0}, tmp_path / "out", pad_rank="auto")
    found = peft_logits(tiny_llama, exported.folder)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-2
    config = json.loads((exported.folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 8
    assert not (config["use_rslora"] or config["rank_pattern"] or config["alpha_pattern"])
    assert all(a.shape[0] == 8 for a, _ in read_plain_lora(exported.folder).pairs.values())


def test_a_mix_is_what_peft_makes_of_the_weighted_adapters(tiny_llama, save_lora, tmp_path):
    law, medicine = save_lora("law"), save_lora("medicine", seed=1, r=3, target_modules=["q_proj", "o_proj"])
    model = PeftModel.from_pretrained(tiny_llama, str(law), adapter_name="law")
    model.load_adapter(str(medicine), "medicine")
    model.base_model.set_adapter(["law", "medicine"])
    for module in model.modules():
        if hasattr(module, "set_scale"):
            for name, weight in {"law": 0.7, "medicine": -0.3}.items():
                module.set_scale(name, weight)
    expected = logits(model)
    model.unload()
    exported = export_lora({law: 0.7, medicine: -0.3}, tmp_path / "out")
    assert exported.mix.own_rank == exported.mix.rank == 7
    assert exported.mix.weights == {"law": 0.7, "medicine": -0.3}
    torch.testing.assert_close(peft_logits(tiny_llama, exported.folder), expected, rtol=1e-5, atol=1e-5)


def test_compression_states_what_it_lost(save_lora, tmp_path):
    law, medicine = save_lora("law"), save_lora("medicine", seed=1)
    exact = export_lora({law: 1.0, medicine: 1.0}, tmp_path / "exact")
    small = export_lora({law: 1.0, medicine: 1.0}, tmp_path / "small", rank=4, pad_rank=6)
    assert exact.mix.error_ratio == 0.0 and exact.mix.worst is None
    assert (small.mix.own_rank, small.mix.rank) == (4, 6)
    assert 0.0 < small.mix.error_ratio < 1.0 and small.mix.worst[1] >= small.mix.error_ratio
    record = json.loads((small.folder / "crma_export.json").read_text())
    assert record["compression_error_ratio"] == small.mix.error_ratio


def test_half_the_bytes_in_bfloat16(save_lora, tmp_path):
    folder = save_lora("law")
    sizes = {}
    for dtype in ("same", "bfloat16"):
        exported = export_lora({folder: 1.0}, tmp_path / dtype, dtype=dtype)
        sizes[exported.dtype] = sum(
            t.nbytes for t in load_file(exported.folder / "adapter_model.safetensors").values()
        )
    assert sizes["float32"] == 2 * sizes["bfloat16"]


REFUSED = {
    "DoRA": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
    "activated LoRA": {"alora_invocation_tokens": [1, 2]},
    "replicated layers": {"layer_replication": [[0, 2]]},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_engines_cannot_take_is_refused_before_anything_is_written(
    save_lora, edit_config, tmp_path, fields
):
    folder = save_lora("law")
    edit_config(folder, **fields)
    with pytest.raises(ModelError, match="engines cannot take") as error:
        export_lora({folder: 1.0}, tmp_path / "out")
    assert next(iter(fields)) in str(error.value) or "LoRA" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_the_embeddings_is_refused(save_lora, tmp_path):
    folder = save_lora("law", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ModelError, match="embeddings or the output head"):
        export_lora({folder: 1.0}, tmp_path / "out")


def test_real_dora_is_refused(save_lora, tmp_path):
    with pytest.raises(ModelError, match="DoRA"):
        export_lora({save_lora("law", use_dora=True): 1.0}, tmp_path / "out")


def spoil(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_nan_is_refused_with_its_place(save_lora, tmp_path):
    folder = save_lora("law")
    spoil(folder, lambda t: t[min(t)].view(-1)[3:5].fill_(float("nan")))
    with pytest.raises(
        DataError, match=r"2 NaN or infinite values in A of model\.layers\.0\.self_attn\.q_proj"
    ):
        export_lora({folder: 1.0}, tmp_path / "out")


def test_half_written_folders_are_told_apart(save_lora, tmp_path):
    whole = save_lora("law")
    spoil(whole, lambda t: t.pop(max(t)))
    with pytest.raises(DataError, match="has A and no B"):
        make_mix({whole: 1.0})
    weights = whole / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged or half-written"):
        make_mix({whole: 1.0})
    weights.unlink()
    with pytest.raises(DataError, match="no adapter is there"):
        make_mix({whole: 1.0})
    with pytest.raises(DataError, match="no such folder"):
        make_mix({tmp_path / "nowhere": 1.0})


def test_the_old_weight_file_of_peft_is_read_too(save_lora):
    folder = save_lora("law")
    expected = read_plain_lora(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    found = read_plain_lora(folder)
    assert all(torch.equal(found.pairs[m][1], expected.pairs[m][1]) for m in expected.pairs)


def test_nothing_is_replaced_unasked_and_only_exports_ever(save_lora, tmp_path):
    folder, out = save_lora("law"), tmp_path / "out"
    export_lora({folder: 1.0}, out)
    before = (out / "adapter_config.json").read_bytes()
    with pytest.raises(WorkspaceError, match="--force"):
        export_lora({folder: 1.0}, out, pad_rank=8)
    assert (out / "adapter_config.json").read_bytes() == before
    assert export_lora({folder: 1.0}, out, pad_rank=8, force=True).mix.rank == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(WorkspaceError, match="was not written by"):
        export_lora({folder: 1.0}, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_full_disk_leaves_nothing_behind(save_lora, tmp_path, monkeypatch):
    folder = save_lora("law")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("constrained_adapters.export.lora.save_file", full)
    with pytest.raises(WorkspaceError, match="no space left"):
        export_lora({folder: 1.0}, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_ranks_that_make_no_sense_are_refused(save_lora, tmp_path):
    folder = save_lora("law")
    with pytest.raises(ConfigError, match="padding adds ranks"):
        make_mix({folder: 1.0}, pad_rank=2)
    with pytest.raises(ConfigError, match="at least one rank"):
        make_mix({folder: 1.0}, rank=0)


def test_values_beyond_float16_are_refused(save_lora, tmp_path):
    folder = save_lora("law")
    spoil(folder, lambda t: t[min(t)].view(-1)[0].fill_(1e5))
    with pytest.raises(DataError, match="too large for"):
        export_lora({folder: 1.0}, tmp_path / "out", dtype="float16")
