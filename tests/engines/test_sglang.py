"""SGLang's own code judges and reads our adapters: files from its wheel, without the engine around them."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import types
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from constrained_adapters.errors import ModelError
from constrained_adapters.export.lora import export_lora

from .conftest import ENGINES

pytestmark = pytest.mark.engines

SOURCES = ENGINES / "sglang"
# What these files import of the rest of the engine, which they do not need for this.
OUTSIDE = [
    "sglang.srt.configs.load_config",
    "sglang.srt.layers.utils",
    "sglang.srt.lora.backend.base_backend",
    "sglang.srt.lora.utils",
    "sglang.srt.model_loader.loader",
    "sglang.srt.utils.hf_transformers_utils",
]


@pytest.fixture
def sglang(monkeypatch):
    """The modules lora_config and lora of SGLang, and its check of a new adapter."""
    home = SOURCES / "sglang" / "srt" / "lora"
    if not home.is_dir():
        pytest.skip("SGLang's sources are not here: make test-engines")
    monkeypatch.syspath_prepend(str(SOURCES))
    for name in OUTSIDE:
        for at in range(1, name.count(".") + 1):
            package = ".".join(name.split(".")[:at])
            if package not in {"sglang", "sglang.srt", "sglang.srt.lora"}:
                monkeypatch.setitem(sys.modules, package, MagicMock())
        monkeypatch.setitem(sys.modules, name, MagicMock())
    layer_of = re.compile(r"\.layers\.(\d+)\.")
    sys.modules["sglang.srt.layers.utils"].get_layer_id = lambda name: (
        int(found[1]) if (found := layer_of.search(name)) else None
    )
    normal = function_of(home / "utils.py", "get_normalized_target_modules")
    sys.modules["sglang.srt.lora.utils"].get_normalized_target_modules = normal
    config, lora = (importlib.import_module(f"sglang.srt.lora.{name}") for name in ("lora_config", "lora"))
    validate = function_of(home / "lora_manager.py", "validate_new_adapter", logger=MagicMock())
    yield SimpleNamespace(config=config, lora=lora, validate=validate, normal=normal)
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
        del sys.modules[name]


def function_of(path, name, **names):
    """One function out of a file whose other imports are not here."""
    (node,) = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    module = types.ModuleType(name)
    vars(module).update(names)
    prelude = "from __future__ import annotations\nfrom typing import *\n"
    exec(compile(prelude + ast.unparse(node), str(path), "exec"), vars(module))
    return getattr(module, name)


@pytest.fixture
def adapter(tiny_llama, tmp_path):
    """rsLoRA with patterns: what SGLang by itself would read with another scale."""
    settings = {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 11}}
    targets = ["q_proj", "v_proj", "o_proj"]
    model = get_peft_model(tiny_llama, LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(str(tmp_path / "law"))
    return model, tmp_path / "law"


def judge(sglang, config):
    """Its check of a new adapter, in an engine that is empty."""
    engine = SimpleNamespace(
        attn_dp_enabled=False, lora_refs={}, num_pinned_loras=0, max_loras_per_batch=8, memory_pool=None
    )
    sglang.validate(engine, config, SimpleNamespace(lora_name="law", lora_path="law", pinned=False))


def test_it_takes_our_configuration_and_computes_the_same_update(sglang, adapter, tmp_path):
    model, folder = adapter
    exported = export_lora({folder: 1.0}, tmp_path / "out", pad_rank="auto").folder
    config = sglang.config.LoRAConfig(str(exported))
    judge(sglang, config)
    assert sglang.normal(config.target_modules) == {"qkv_proj", "o_proj"}
    base = SimpleNamespace(num_hidden_layers=2)
    read = sglang.lora.LoRAAdapter("law", config, base, None, SimpleNamespace())
    read.initialize_weights_from_tensors(load_file(exported / "adapter_model.safetensors"))
    assert read.scaling == 1.0
    for number, layer in enumerate(read.layers):
        prefix = f"base_model.model.model.layers.{number}.self_attn"
        a = layer.weights[f"{prefix}.qkv_proj.lora_A.weight"].chunk(3)
        b = layer.weights[f"{prefix}.qkv_proj.lora_B.weight"].split([32, 16, 16])
        attention = model.get_submodule(prefix)
        for letter, place in (("q", 0), ("v", 2)):
            expected = getattr(attention, f"{letter}_proj").get_delta_weight("default")
            torch.testing.assert_close(read.scaling * b[place] @ a[place], expected, rtol=1e-5, atol=1e-6)


def test_it_would_read_the_first_adapter_with_another_scale(sglang, adapter):
    """Why the scale is baked in: this is what the export guards against."""
    _, folder = adapter
    config = sglang.config.LoRAConfig(str(folder))
    judge(sglang, config)
    assert config.lora_alpha / config.r == 1.5  # PEFT: 6 / √4 = 3 and 11 / √4 = 5.5


def test_what_it_refuses_we_refuse(sglang, adapter, tmp_path):
    _, folder = adapter
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    with pytest.raises(ValueError, match="DoRA"):
        judge(sglang, sglang.config.LoRAConfig(str(folder)))
    with pytest.raises(ModelError, match="DoRA"):
        export_lora({folder: 1.0}, tmp_path / "out")
