"""CRMA's adapters are PEFT's LoRA layers: shapes, start values, scaling."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from constrained_adapters.adapters.lora import (
    adapter_pairs,
    delta_weight,
    lora_config,
    lora_layers,
    start_small,
)

TARGETS = ["q_proj", "v_proj"]


def adapted(model, **changes):
    settings = {
        "rank": 4,
        "residual_scaling": 0.3,
        "targets": TARGETS,
        "layers_to_transform": None,
        **changes,
    }
    return get_peft_model(model, lora_config(**settings))


def test_names_are_those_of_the_base_in_the_order_of_the_layers(tiny_llama):
    model = adapted(tiny_llama)
    expected = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in TARGETS]
    assert list(lora_layers(model)) == expected
    assert [pair.module for pair in adapter_pairs(model, "default")] == expected
    assert list(adapter_pairs(model, "unknown")) == []


def test_layers_to_transform_leaves_the_others_alone(tiny_llama):
    model = adapted(tiny_llama, layers_to_transform=[1])
    assert {pair.module.split(".")[2] for pair in adapter_pairs(model, "default")} == {"1"}


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_the_scaling_is_the_one_asked_for_at_any_rank(tiny_llama, rank):
    pairs = list(adapter_pairs(adapted(tiny_llama, rank=rank), "default"))
    assert all(pair.scaling == pytest.approx(0.3, rel=1e-12) for pair in pairs)
    assert pairs[1].a.shape == (rank, 32) and pairs[1].b.shape == (16, rank)


@pytest.mark.parametrize("rslora", [False, True])
def test_delta_weight_is_what_merging_adds(tiny_llama, rslora):
    weight = tiny_llama.model.layers[0].self_attn.v_proj.weight.detach().clone()
    model = get_peft_model(
        tiny_llama, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, use_rslora=rslora)
    )
    torch.manual_seed(0)
    start_small(model, "default", 0.1)
    delta = {pair.module: delta_weight(pair) for pair in adapter_pairs(model, "default")}
    merged = model.merge_and_unload().model.layers[0].self_attn.v_proj.weight
    found = delta["model.layers.0.self_attn.v_proj"]
    assert found.dtype == torch.float32 and not found.requires_grad and found.abs().max() > 0.01
    torch.testing.assert_close(merged.detach() - weight, found, rtol=1e-4, atol=1e-6)


def test_an_untrained_adapter_starts_small_but_lets_a_learn(tiny_llama):
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = tiny_llama(input_ids=ids, labels=ids).loss
    model = adapted(tiny_llama, rank=16)
    torch.manual_seed(1)
    start_small(model, "default", 1e-4)
    for pair in adapter_pairs(model, "default"):
        assert float(pair.a.detach().std()) == pytest.approx(pair.a.shape[1] ** -0.5, rel=0.15)
        assert float(pair.b.detach().std()) == pytest.approx(1e-4, rel=0.2)
    loss = model(input_ids=ids, labels=ids).loss
    assert abs(float(loss.detach() - before)) < 0.01 * float(before)
    loss.backward()
    assert all(float(pair.a.grad.norm()) > 0.0 for pair in adapter_pairs(model, "default"))


def test_start_values_follow_the_global_seed_alone(tiny_llama):
    model = adapted(tiny_llama)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        start_small(model, "default", 1e-2)
        drawn.append([pair.a.detach().clone() for pair in adapter_pairs(model, "default")])
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])


def test_layers_that_keep_their_weight_transposed_are_adapted_without_a_warning():
    """Warnings are errors here; PEFT warns where it must correct the setting itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 2}
    base = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))
    layer = base.transformer.h[0].attn.c_attn
    weight = layer.weight.detach().clone()
    model = adapted(base, targets=["c_attn"], transposed=True)
    torch.manual_seed(0)
    start_small(model, "default", 0.1)
    (pair,) = adapter_pairs(model, "default")
    assert pair.a.shape == (4, 12) and pair.b.shape == (36, 4)
    delta = delta_weight(pair)
    merged = model.merge_and_unload().transformer.h[0].attn.c_attn.weight
    torch.testing.assert_close(merged.detach() - weight, delta.T, rtol=1e-4, atol=1e-6)
