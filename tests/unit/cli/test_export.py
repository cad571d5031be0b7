"""``crma export``, ``verify`` and ``import``: what they print, write and refuse."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model


@pytest.fixture
def adapter(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """A stock adapter and its base in folders; the test runs beside them."""
    monkeypatch.chdir(tmp_path)
    tiny_llama.save_pretrained("base")
    tiny_tokenizer.save_pretrained("base")
    model = get_peft_model(tiny_llama, LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.05)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("law")
    model.unload()
    return "law"


def test_a_folder_goes_out_is_verified_and_comes_back(crma, adapter, tmp_path):
    done = crma("export", "lora", adapter, "-o", "out", "--pad-rank", "auto")
    assert done.exit_code == 0, done.output
    assert "LoRA of rank 8 (of them 5 zeros), float32" in done.stdout
    assert "same greedy text 4 of 4" in done.stdout
    done = crma("verify", "out/law")
    assert done.exit_code == 0 and "vLLM:      yes, --max-lora-rank 8" in done.stdout
    done = crma("verify", "out/law", "--base", "base")
    assert done.exit_code == 0 and "loaded back by stock PEFT" in done.stdout
    done = crma("import", "out/law", "--base", "base", "--name", "Право", "--texts", "2")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "adapters" / "Право" / "gradient_memory.safetensors").is_file()
    done = crma("export", "merged", "adapters/Право", "-o", "out", "--dtype", "bfloat16")
    assert done.exit_code == 0 and "merged model, bfloat16" in done.stdout
    assert json.loads((tmp_path / "out" / "Право" / "config.json").read_text())["dtype"] == "bfloat16"


WRONG = {
    "an export that is there": (["export", "lora", "law", "-o", "."], 1, ["WorkspaceError", "--force"]),
    "a domain without a run": (["export", "lora", "tax"], 1, ["WorkspaceError", "there is no run here"]),
    "no mix": (["export", "lora", "--mix", "law"], 2, ["ConfigError", "law=0.7,medicine=0.3"]),
    "no rank": (["export", "lora", "law", "--pad-rank", "big"], 2, ["ConfigError", "'big'"]),
    "no type": (["export", "lora", "law", "--dtype", "int8"], 2, ["UnknownNameError", "bfloat16"]),
    "no GGUF type": (["export", "gguf", "law", "--type", "q4"], 2, ["UnknownNameError", "f16"]),
    "nothing to verify": (["verify", "nowhere"], 2, ["UsageError", "no such folder"]),
    "nothing to import": (["import", "nowhere"], 2, ["UsageError", "nowhere"]),
    "two places": (["import", "law", "--run", "a", "-o", "b"], 2, ["UsageError", "one of them"]),
}


@pytest.mark.parametrize("words, code, parts", WRONG.values(), ids=WRONG)
def test_what_a_user_gets_wrong(crma, adapter, words, code, parts):
    done = crma(*words)
    assert done.exit_code == code, done.output
    for part in parts:
        assert part in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4 and "Traceback" not in done.output


def test_help_shows_the_routes(crma):
    said = crma("export", "--help").stdout
    assert all(route in said for route in ("lora", "merged", "gguf"))


def test_a_run_goes_on_from_an_imported_domain(crma, adapter, tmp_path):
    for name in ("law", "tax"):
        rows = [{"prompt": f"{name} {i}?", "answer": "abcd"[i % 4]} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "crma.yaml").write_text(
        "output: out\nbase: {model: base, dtype: float32}\nmethods: [crma]\nadapter: {rank: 2}\n"
        "training: {steps: 1, max_length_tokens: 32}\n"
        "evaluation: {max_items: 2, general: null, num_samples: 0}\n"
        "domains: [{name: law, data: law.jsonl}, {name: tax, data: tax.jsonl}]\n"
    )
    done = crma("import", "law", "--run", "out", "--method", "crma", "--texts", "2")
    assert done.exit_code == 0, done.output
    before = (tmp_path / "out/crma/adapters/law/adapter_model.safetensors").read_bytes()
    done = crma("run", "crma.yaml", "--quiet")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/crma/adapters/law/adapter_model.safetensors").read_bytes() == before
    done = crma("export", "lora", "--run", "out", "-o", "served")
    assert done.exit_code == 0, done.output
    assert "served/tax: LoRA of rank 5" in done.stdout  # 3 of the imported, 2 of its own
