"""One adapter's folder: what PEFT loads, and what is said of a folder that is none."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from constrained_adapters.adapters.files import (
    CONFIG_FILE,
    FACTS_FILE,
    WEIGHTS_FILE,
    read_adapter_config,
    read_facts,
    write_adapter,
)
from constrained_adapters.adapters.lora import adapter_pairs, lora_config, start_small
from constrained_adapters.errors import DataError, ModelError

FACTS = {"name": "law", "base_model_name": "some/base", "domain_id": 2}


@pytest.fixture
def written(tiny_llama, tmp_path):
    """A model with an adapter, and the folder it was written to."""
    config = lora_config(rank=4, residual_scaling=0.5, targets=["v_proj", "q_proj"], layers_to_transform=None)
    model = get_peft_model(tiny_llama, config, adapter_name="law")
    torch.manual_seed(0)
    start_small(model, "law", 0.1)
    folder = tmp_path / "deep" / "law"
    write_adapter(model, "law", folder, FACTS)
    return model, folder


def test_plain_peft_loads_it_and_gives_the_same_logits(written):
    model, folder = written
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        base = model.unload()
        plain = base(input_ids=ids).logits
        found = PeftModel.from_pretrained(base, str(folder))(input_ids=ids).logits
    assert torch.equal(found, expected)
    assert (found - plain).abs().max() > 1e-3


def test_the_folder_holds_three_readable_files(written):
    model, folder = written
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE])
    settings = json.loads((folder / CONFIG_FILE).read_text())
    assert settings["target_modules"] == ["q_proj", "v_proj"]
    assert settings["inference_mode"] is True
    assert (settings["r"], settings["lora_alpha"]) == (4, 2.0)
    assert settings["base_model_name_or_path"]
    weights = load_file(folder / WEIGHTS_FILE)
    pairs = list(adapter_pairs(model, "law"))
    assert len(weights) == 2 * len(pairs)
    assert torch.equal(weights[f"base_model.model.{pairs[0].module}.lora_A.weight"], pairs[0].a)
    assert read_facts(folder) == FACTS
    config = read_adapter_config(folder)
    assert config.r == 4 and set(config.target_modules) == {"q_proj", "v_proj"}


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    model, folder = written
    write_adapter(model, "law", tmp_path / "again", FACTS)
    for name in (CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_lora_made_elsewhere_has_no_facts(written):
    _, folder = written
    (folder / FACTS_FILE).unlink()
    assert read_facts(folder) == {}


def test_a_folder_without_an_adapter_is_an_error_that_says_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no adapter is there(.|\n)*notes\.txt"):
        read_adapter_config(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_adapter_config(tmp_path / "none")


def test_an_adapter_of_another_kind_is_refused(written):
    _, folder = written
    (folder / CONFIG_FILE).write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match="only LoRA adapters"):
        read_adapter_config(folder)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}"])
def test_damaged_settings_are_a_data_error_that_names_the_file(written, content):
    _, folder = written
    (folder / CONFIG_FILE).write_bytes(content)
    (folder / FACTS_FILE).write_bytes(content)
    with pytest.raises(DataError, match=CONFIG_FILE):
        read_adapter_config(folder)
    with pytest.raises(DataError, match=FACTS_FILE):
        read_facts(folder)
