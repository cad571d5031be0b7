"""The fingerprint changes with every weight and every essential setting, and with nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from constrained_adapters.models.fingerprint import _mix, fingerprint_model


def test_every_tensor_counts(tiny_llama: LlamaForCausalLM) -> None:
    seen = {fingerprint_model(tiny_llama)}
    for parameter in tiny_llama.parameters():
        with torch.no_grad():
            last = parameter.view(-1)[-1]
            last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))
        seen.add(fingerprint_model(tiny_llama))
    assert len(seen) == 1 + len(list(tiny_llama.parameters()))


@given(st.integers(1, 700), st.data())
def test_every_element_and_its_position_count(length: int, data: st.DataObject) -> None:
    tensor = torch.arange(length, dtype=torch.float32)
    index = data.draw(st.integers(0, length - 1))
    changed = tensor.clone()
    changed[index] += 1
    assert _mix(changed) != _mix(tensor)
    if length > 1:
        assert _mix(tensor.roll(1)) != _mix(tensor)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    whole = _mix(tensor)
    monkeypatch.setattr("constrained_adapters.models.fingerprint._CHUNK", 7)
    assert _mix(tensor) == whole


def test_integer_storage_is_hashed_as_it_is() -> None:
    packed = torch.arange(13, dtype=torch.uint8)
    other = packed.clone()
    other[12] = 99
    assert _mix(packed) != _mix(other)


def test_same_values_in_a_wider_type_are_the_same_model(tiny_llama: LlamaForCausalLM) -> None:
    rounded = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    assert fingerprint_model(rounded) != fingerprint_model(tiny_llama), "rounding changed the weights"
    assert fingerprint_model(copy.deepcopy(rounded).float()) == fingerprint_model(rounded)


def test_adapters_are_looked_through(tiny_llama: LlamaForCausalLM) -> None:
    bare = fingerprint_model(tiny_llama)
    wrapped = get_peft_model(tiny_llama, LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    assert fingerprint_model(wrapped) == bare
    with torch.no_grad():
        wrapped.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").base_layer.weight[0, 0] += 1
    assert fingerprint_model(wrapped) != bare


def test_longer_context_is_another_model_and_dropout_is_not(tiny_llama: LlamaForCausalLM) -> None:
    bare = fingerprint_model(tiny_llama)
    tiny_llama.config.attention_dropout = 0.2
    tiny_llama.config.use_cache = False
    assert fingerprint_model(tiny_llama) == bare
    tiny_llama.config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    assert fingerprint_model(tiny_llama) != bare


def test_plain_modules_have_one_too() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert len(fingerprint_model(nn.Linear(3, 5))) == 64
