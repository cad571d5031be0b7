"""Covariances of inputs from forward passes."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.memory import inputs
from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.reservoir import pad_rows

NAMES = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"]
LAYERS = [f"model.layers.{index}.{name}" for index in (0, 1) for name in NAMES]


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(3, 90, (length,), generator=generator),) * 2 for length in (5, 9, 3, 7)]


def gathered(model, rows, batch_size):
    modules = {name: model.get_submodule(name) for name in LAYERS}
    batches = (pad_rows(rows[i : i + batch_size], "cpu") for i in range(0, len(rows), batch_size))
    return inputs.input_covariances(model, modules, batches)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_they_are_the_sums_over_single_tokens_without_padding(tiny_llama, rows, batch_size):
    seen = {name: [] for name in LAYERS}
    handles = [
        tiny_llama.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0][0].double())
        )
        for name in LAYERS
    ]
    with torch.no_grad():
        for ids, _ in rows:
            tiny_llama(input_ids=ids[None])
    for handle in handles:
        handle.remove()
    found = gathered(tiny_llama, rows, batch_size)
    for name in LAYERS:
        tokens = torch.cat(seen[name])
        torch.testing.assert_close(found[name].double(), tokens.T @ tokens, rtol=1e-4, atol=1e-4)


def test_modules_that_read_one_input_share_it_and_the_model_is_left_alone(tiny_llama, rows):
    tiny_llama.train()
    found = gathered(tiny_llama, rows, 2)
    assert found[LAYERS[0]] is found[LAYERS[1]] and found[LAYERS[0]] is not found[LAYERS[2]]
    assert tiny_llama.training and not tiny_llama.get_submodule(LAYERS[0])._forward_pre_hooks


def test_wide_inputs_are_sketched(tiny_llama, rows, monkeypatch):
    monkeypatch.setattr(inputs, "WIDE", 20)
    exact = gathered(tiny_llama, rows, 2)
    monkeypatch.setattr(inputs, "WIDE", 4)
    found = gathered(tiny_llama, rows, 2)[LAYERS[0]]
    assert isinstance(found, FrequentDirections)
    if isinstance(exact[LAYERS[0]], torch.Tensor):
        torch.testing.assert_close(found.diagonal, exact[LAYERS[0]].diagonal(), rtol=1e-4, atol=1e-4)
