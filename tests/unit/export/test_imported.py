"""A foreign LoRA as a domain: the same adapter, and a memory that later domains obey."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.errors import AdapterStateError, ModelError, WorkspaceError
from constrained_adapters.export.bases import BaseName
from constrained_adapters.export.bases import open_base as load
from constrained_adapters.export.imported import import_adapter
from constrained_adapters.model import CRMAModel
from constrained_adapters.workspace import Workspace

IDS = torch.arange(3, 23)[None]


@pytest.fixture
def known(base_folder) -> BaseName:
    return BaseName(str(base_folder))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_the_adapter_is_the_same_and_its_memory_protects_it(save_lora, known, tiny_llama, tmp_path):
    stock = save_lora("stock", use_rslora=True, target_modules=["q_proj", "k_proj"])
    done = import_adapter(stock, tmp_path / "law", load(known), known, domain="law", num_texts=4)
    assert 1 <= done.num_texts <= 4 and done.rank == 4
    config = CRMAConfig(base_model_name=known.name, adapter_dim=2, dtype="float32", protect_base=False)
    model = CRMAModel.from_pretrained(config)
    model.load_adapter(done.folder)
    model.set_active_adapter("law")
    expected = logits(PeftModel.from_pretrained(tiny_llama, str(stock)))
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    memory = model.gradient_memory("law")
    assert memory is not None and "model.layers.0.self_attn.v_proj" in memory.groups
    model.create_adapter("tax")  # on other layers than the imported one
    model.set_active_adapters(["law", "tax"])
    model.enable_constrained_training()
    assert model.constraint_facts()["closed_ratio"] > 0


def test_a_run_goes_on_from_it(save_lora, known, tmp_path):
    workspace = Workspace(tmp_path / "run" / "crma")
    base = load(known)
    done = import_adapter(save_lora("stock"), workspace, base, known, domain="law", num_texts=2)
    assert done.folder == workspace.adapter("law")
    assert json.loads((done.folder / "training.json").read_text())["seconds"] == 0.0
    with pytest.raises(AdapterStateError, match="has a domain named 'law' already"):
        import_adapter(save_lora("stock"), workspace, base, known, domain="law", num_texts=0)
    workspace.remember_base("another", {"model": "x"})
    with pytest.raises(WorkspaceError, match="on another base"):
        import_adapter(save_lora("stock"), workspace, base, known, domain="tax", num_texts=0)


def test_without_a_memory_and_never_over_something(save_lora, known, tmp_path):
    base, stock = load(known), save_lora("stock")
    done = import_adapter(stock, tmp_path / "law", base, known, domain="law", num_texts=0)
    assert done.num_texts == 0 and not (done.folder / "gradient_memory.safetensors").exists()
    with pytest.raises(WorkspaceError, match="--force"):
        import_adapter(stock, tmp_path / "law", base, known, domain="law", num_texts=0)
    import_adapter(stock, tmp_path / "law", base, known, domain="law", num_texts=0, force=True)


def test_what_does_not_belong_here(save_lora, edit_config, known, tmp_path, monkeypatch):
    base, stock = load(known), save_lora("stock")
    facts = stock / "crma.json"
    facts.write_text(json.dumps({"base_fingerprint": "f" * 64}))
    with pytest.raises(ModelError, match="another base"):
        import_adapter(stock, tmp_path / "law", base, known, domain="law")
    facts.unlink()
    wide = save_lora("wide")
    module = "model.layers.0.self_attn.q_proj"
    from constrained_adapters.export import imported

    real = imported.make_mix
    wrong = {module: (torch.zeros(2, 40), torch.zeros(32, 2))}
    monkeypatch.setattr(imported, "make_mix", lambda adapters: replace(real(adapters), pairs=wrong))
    with pytest.raises(ModelError, match=r"ΔW of shape \[32, 40\], the base has a layer of shape \[32, 32\]"):
        import_adapter(wide, tmp_path / "law", base, known, domain="law")
    monkeypatch.undo()
    edit_config(stock, use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        import_adapter(stock, tmp_path / "law", base, known, domain="law")
    assert not (tmp_path / "law").exists()


def test_a_model_that_writes_nothing_gives_no_memory(save_lora, known, tmp_path, monkeypatch):
    monkeypatch.setattr("constrained_adapters.export.imported.write_examples", lambda *a, **k: [])
    with pytest.raises(AdapterStateError, match="writes no text"):
        import_adapter(save_lora("stock"), tmp_path / "law", load(known), known, domain="law")
