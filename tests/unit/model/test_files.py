"""What is written and read back: adapters, the whole set, the merged model; and what never is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.adapters.lora import adapter_pairs
from constrained_adapters.errors import AdapterStateError, DataError, ModelError
from constrained_adapters.model.crma import MODEL_FILE
from constrained_adapters.model.remembering import MEMORY_FILE
from constrained_adapters.models.fingerprint import fingerprint_model


@pytest.fixture
def two(make_model, rows, finish):
    """Two finished domains with names in two scripts."""

    def make(**settings):
        model = make_model(**settings)
        finish(model, "数学", rows(0))
        finish(model, "Право", rows(1))
        return model

    return make


def test_an_adapter_comes_back_and_stock_peft_reads_it(two, base_folder, tmp_path, logits):
    model = two()
    model.set_active_adapter("Право")
    wanted = logits(model)
    model.save_adapter(tmp_path / "право", "Право")
    loaded = CRMAModel.from_pretrained(str(base_folder), adapters=[tmp_path / "право"])
    assert loaded.adapter_names == loaded.active_names == ["Право"]
    assert torch.equal(logits(loaded), wanted)
    assert loaded.gradient_memory("Право").to_bytes() == model.gradient_memory("Право").to_bytes()
    assert loaded.crma_config == model.crma_config
    assert not [p for p in loaded.parameters() if p.requires_grad]
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "право")
    torch.testing.assert_close(logits(stock), wanted, rtol=1e-4, atol=1e-5)  # ours is folded: other rounding


def test_a_stock_lora_is_loaded_too(base_folder, tmp_path, logits):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], init_lora_weights=False)
    stock = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), config)
    stock.save_pretrained(tmp_path / "theirs")
    loaded = CRMAModel.from_pretrained(base_folder, adapters=[tmp_path / "theirs"])
    assert loaded.active_names == ["theirs"]
    torch.testing.assert_close(logits(loaded), logits(stock), rtol=1e-4, atol=1e-5)


def test_a_memory_made_after_saving_is_written_beside_the_adapter(make_model, rows, train, tmp_path):
    model = make_model()
    model.create_adapter("law")
    model.set_active_adapter("law")
    train(model, rows(0), max_steps=1)
    model.save_adapter(tmp_path / "law", "law")
    assert not (tmp_path / "law" / "gradient_memory.safetensors").exists()
    memory = model.update_gradient_memory("law")
    assert (tmp_path / "law" / "gradient_memory.safetensors").read_bytes() == memory.to_bytes()

    (tmp_path / "law").rename(tmp_path / "moved")
    model.update_gradient_memory("law")
    assert not (tmp_path / "law").exists()


def test_the_whole_set_comes_back(two, rows, train, tmp_path, logits):
    model = two(protect_base=True, constraint_strength=0.9)
    model.create_adapter("finance")
    model.set_active_adapters(["Право", "数学", "finance"])
    model.enable_constrained_training(True)
    train(model, rows(2), max_steps=1)
    model.freeze_adapter("finance")
    model.set_active_adapters(["Право", "数学"])
    model.set_adapter_weights({"Право": 0.25, "数学": 1.5})
    wanted = logits(model)
    model.save_pretrained(tmp_path / "set")
    loaded = CRMAModel.from_pretrained(tmp_path / "set")
    assert loaded.adapter_names == ["数学", "Право", "finance"]
    assert loaded.active_names == ["Право", "数学"]
    assert torch.equal(logits(loaded), wanted)
    assert loaded.base_memory.to_bytes() == model.base_memory.to_bytes()
    assert loaded.gradient_memory("finance") is None
    assert loaded.gradient_memory("数学").to_bytes() == model.gradient_memory("数学").to_bytes()
    assert loaded.crma_config == model.crma_config


def test_merge_and_unload_then_save_on_the_same_object(two, tmp_path, logits):
    model = two()
    model.set_active_adapters(["数学", "Право"])
    model.set_adapter_weights({"数学": 0.7, "Право": 0.3})
    wanted = logits(model)
    merged = model.merge_and_unload()
    assert model.adapter_names == model.active_names == []
    assert torch.equal(logits(model), logits(merged))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, torch.zeros_like(wanted))
    model.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(reloaded), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("право").input_ids
    assert not list((tmp_path / "merged").glob("**/adapter_*"))


def test_token_rows_and_text_never_reach_the_disk(two, rows, train, tmp_path):
    model = two()
    folder = tmp_path / "written"
    model.save_adapter(folder / "one", "数学")
    model.update_gradient_memory("Право")
    model.save_pretrained(folder / "set")
    model.create_adapter("finance")
    model.set_active_adapters(["数学", "Право", "finance"])
    model.enable_constrained_training(True)
    train(
        model,
        rows(2),
        "trainer",
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        output_dir=str(folder / "t"),
    )
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"gradient_memory.safetensors", "adapter_model.safetensors", "optimizer.pt"} <= {
        p.name for p in files
    }
    contents = {path: path.read_bytes() for path in files}
    for domain in range(3):
        for row in rows(domain):
            ids = np.array(row["input_ids"])[:6]
            # Byte-level tokens of an ASCII-like vocabulary: their text is searched for as numbers only.
            needles = [ids.astype(kind).tobytes() for kind in ("<i2", "<i4", "<i8", "<f4", "<f8")]
            needles += [json.dumps(ids.tolist()).strip("[]").encode(), ",".join(map(str, ids)).encode()]
            found = [path for path, content in contents.items() if any(n in content for n in needles)]
            assert not found


def test_an_adapter_or_memory_of_another_base_is_refused(two, base_folder, tmp_path, tiny_tokenizer):
    two().save_adapter(tmp_path / "adapter", "数学")
    other = AutoModelForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="another base model"):
        CRMAModel.from_pretrained(str(tmp_path / "other"), adapters=[tmp_path / "adapter"])
    model = CRMAModel.from_pretrained(CRMAConfig(base_model_name=str(tmp_path / "other"), adapter_dim=4))
    model.create_adapter("law")
    with pytest.raises(ModelError, match="another base model"):
        model.restore_memory("law", tmp_path / "adapter" / "gradient_memory.safetensors")


def test_extending_the_context_after_training_is_another_base(two, base_folder, tmp_path):
    two().save_adapter(tmp_path / "adapter", "数学")
    path = base_folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="another base model"):
        CRMAModel.from_pretrained(str(base_folder), adapters=[tmp_path / "adapter"])


def test_a_folder_without_an_adapter_is_told(base_folder, tmp_path):
    for folder in (tmp_path / "nothing", base_folder):
        with pytest.raises(DataError, match="no adapter is there"):
            CRMAModel.from_pretrained(str(base_folder), adapters=[folder])


def test_two_adapters_of_one_name_are_not_mixed_up(two, base_folder, tmp_path):
    model = two()
    model.save_adapter(tmp_path / "a", "数学")
    with pytest.raises(AdapterStateError, match="already"):
        CRMAModel.from_pretrained(str(base_folder), adapters=[tmp_path / "a", tmp_path / "a"])
    loaded = CRMAModel.from_pretrained(str(base_folder), adapters=[tmp_path / "a"])
    loaded.load_adapter(tmp_path / "a", "again")
    assert loaded.adapter_names == ["数学", "again"]


def test_a_damaged_memory_is_told(two, base_folder, tmp_path):
    from constrained_adapters.errors import WorkspaceError

    two().save_adapter(tmp_path / "a", "数学")
    Path(tmp_path / "a" / "gradient_memory.safetensors").write_bytes(b"torn")
    with pytest.raises(WorkspaceError, match="gradient memory cannot be read"):
        CRMAModel.from_pretrained(str(base_folder), adapters=[tmp_path / "a"])


def test_the_base_s_memory_of_a_set_must_be_of_this_base(two, tmp_path):
    model = two()
    model.base_memory = model.make_base_memory(num_texts=4, length_tokens=8)
    model.save_pretrained(tmp_path / "set")
    other = replace(model.base_memory, base_fingerprint="0" * 64)
    (tmp_path / "set" / MEMORY_FILE).write_bytes(other.to_bytes())
    with pytest.raises(ModelError, match=f"base fingerprint {'0' * 64}(?s:.*){model.base_fingerprint}"):
        CRMAModel.from_pretrained(str(tmp_path / "set"))
    (tmp_path / "set" / MODEL_FILE).write_text("{")
    with pytest.raises(DataError, match=r"damaged\n.*crma_model.json"):
        CRMAModel.from_pretrained(str(tmp_path / "set"))


def test_a_merged_model_is_another_base(two, make_model, tmp_path):
    model, fresh = two(), make_model()
    model.base_memory = model.make_base_memory(num_texts=4, length_tokens=8)
    model.set_active_adapter("数学")
    merged = model.merge_and_unload()
    assert model.base_fingerprint == fingerprint_model(merged) != fresh.base_fingerprint
    assert model.base_memory is None
    model.create_adapter("history")
    model.save_adapter(tmp_path / "history", "history")
    with pytest.raises(ModelError, match="another base model"):
        fresh.load_adapter(tmp_path / "history")


def test_an_adapter_loaded_again_acts_as_it_is_now_and_must_be_of_this_base(make_model, tmp_path, logits):
    model = make_model()
    last = list(model._targets)[-1]
    model.create_adapter("law", layers=[last])
    model.create_adapter("wide")
    for pair in (*adapter_pairs(model, "law"), *adapter_pairs(model, "wide")):
        torch.nn.init.normal_(pair.b, std=0.3)
    model.save_adapter(tmp_path / "law", "law")
    for name in model.adapter_names:
        model.freeze_adapter(name)
    model.set_active_adapters(["wide", "law"])
    wanted = logits(model)
    with torch.no_grad():
        next(iter(adapter_pairs(model, "law"))).b.zero_()
    model.set_active_adapters(["wide", "law"])
    assert not torch.equal(logits(model), wanted)
    model.load_adapter(tmp_path / "law", "law")
    assert torch.equal(logits(model), wanted)
    facts = json.loads((tmp_path / "law" / "crma.json").read_text())
    (tmp_path / "law" / "crma.json").write_text(json.dumps({**facts, "base_fingerprint": "0" * 64}))
    with pytest.raises(ModelError, match="another base model"):
        model.load_adapter(tmp_path / "law", "law")
