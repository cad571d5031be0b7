"""The walk-through that the project began with: its calls in its order, with its names and arguments.

Only the base (a tiny random Mistral), the data (small, so that three epochs are a few steps) and its
dots (the Trainer between two snippets) are ours. ``fp16`` runs on a CPU since torch has a gradient scaler
for it, and ``adamw_8bit`` since bitsandbytes has CPU kernels; where bitsandbytes is not installed
``optim`` alone is replaced.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "walkthrough.py"

pytestmark = [
    # The printed arguments use a name that transformers will rename, and pin memory without a GPU.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]


def rows(domain: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(domain)
    ids = torch.randint(3, 259, (40, 16), generator=generator).tolist()
    return [{"input_ids": row, "attention_mask": [1] * 16, "labels": row} for row in ids]


def weights(model, name: str) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters() if f".{name}." in key}


def test_walkthrough(tmp_path, monkeypatch, tiny_mistral, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    base = str(tmp_path / "mistral")
    tiny_mistral.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    torch.manual_seed(0)

    from constrained_adapters import CRMAConfig

    crama_config = CRMAConfig(
        base_model_name=base,
        adapter_dim=64,
        constraint_strength=0.8,
        gradient_memory_size=1000,
        residual_scaling=0.2,
        domain_specific_layers=["q_proj", "v_proj", "o_proj"],
        use_gradient_constraint=True,
        constraint_type="fisher",
    )

    from transformers import AutoTokenizer, Trainer, TrainingArguments

    from constrained_adapters import CRMAModel

    model = CRMAModel.from_pretrained(crama_config)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token

    adapter_name = "legal_domain_v1"
    model.create_adapter(adapter_name, domain_id=0)
    model.set_active_adapter(adapter_name)

    training_args = TrainingArguments(
        output_dir="./legal_adapter",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        learning_rate=2e-4,
        num_train_epochs=3,
        logging_steps=50,
        save_steps=500,
        fp16=True,
        gradient_checkpointing=True,
        optim="adamw_8bit" if find_spec("bitsandbytes") else "adamw_torch",
        report_to="none",
    )
    start = weights(model, adapter_name)
    trainer = Trainer(model=model, args=training_args, train_dataset=rows(0))
    trainer.train()
    assert trainer.state.global_step == 6  # 3 epochs of 40 rows in steps of 4 · 8, the last one smaller
    legal = weights(model, adapter_name)
    assert all(not torch.equal(value, start[key]) for key, value in legal.items())

    model.freeze_adapter(adapter_name)
    model.save_adapter("./legal_adapter", adapter_name)

    model.update_gradient_memory(adapter_name)

    medical_adapter = "medical_domain_v1"
    model.create_adapter(medical_adapter, domain_id=1)

    model.set_active_adapters(["legal_domain_v1", "medical_domain_v1"])

    model.enable_constrained_training(True)

    start = weights(model, medical_adapter)
    Trainer(model=model, args=training_args, train_dataset=rows(1)).train()
    medical = weights(model, medical_adapter)
    assert any(not torch.equal(value, start[key]) for key, value in medical.items())
    assert all(torch.equal(value, legal[key]) for key, value in weights(model, adapter_name).items())
    assert model.last_measurements["removed_ratio"] > 0
    model.freeze_adapter(medical_adapter)
    model.save_adapter("./medical_adapter", medical_adapter)
    model.update_gradient_memory(medical_adapter)

    model.eval()
    input_ids = tokenizer("Какие последствия?", return_tensors="pt").input_ids
    model.set_active_adapters(["legal_domain_v1"])
    legal_response = model.generate(input_ids, max_length=500)

    model.set_active_adapters(["medical_domain_v1"])
    medical_response = model.generate(input_ids, max_length=500)

    model.set_active_adapters(["legal_domain_v1", "medical_domain_v1"])
    model.set_adapter_weights({"legal_domain_v1": 0.7, "medical_domain_v1": 0.3})
    mixed_response = model.generate(input_ids, max_length=500)
    for response in (legal_response, medical_response, mixed_response):
        assert input_ids.shape[1] < response.shape[1] <= 500
        assert torch.equal(response[:, : input_ids.shape[1]], input_ids)

    model = CRMAModel.from_pretrained(base, adapters=["legal_adapter", "medical_adapter"])
    assert model.active_names == ["legal_domain_v1", "medical_domain_v1"]
    assert all(torch.equal(value, legal[key]) for key, value in weights(model, adapter_name).items())
    assert all(torch.equal(value, medical[key]) for key, value in weights(model, medical_adapter).items())
    with torch.no_grad():
        wanted = model(input_ids=input_ids).logits

    model.merge_and_unload()
    model.save_pretrained("./merged_model")

    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained("./merged_model")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=input_ids).logits, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_runs_on_the_packaged_model(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, cwd=tmp_path, timeout=850, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "with both adapters" in done.stdout
    assert (tmp_path / "merged_model" / "model.safetensors").is_file()
