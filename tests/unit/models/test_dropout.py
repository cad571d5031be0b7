"""Dropout on models that have none of their own: while training and nowhere else, on four architectures."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.dropout import TrainingDropout

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 8}),
}
ROW = torch.arange(3, 23).unsqueeze(0)
PARTS = ["attention", "residual", "mlp"]


@pytest.fixture(params=[(kind, path) for kind in KINDS for path in ("sdpa", "eager")], ids="-".join)
def model(request):
    kind, path = request.param
    config, build, extra = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(config(**SIZES, **extra, attn_implementation=path))


def only(part: str, rate: float = 0.3) -> dict[str, float]:
    return {name: rate if name == part else 0.0 for name in PARTS}


@torch.no_grad()
def outputs(model, count: int = 3) -> torch.Tensor:
    """Logits of the same row, again and again: (count, s, v)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return torch.cat([model(ROW).logits for _ in range(count)])


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_makes_outputs_vary_while_training_and_only_then(model, part):
    still = outputs(model.eval())
    assert still.var(0).max() == 0.0
    dropout = TrainingDropout(model, **only(part))
    assert outputs(model.train()).var(0).mean() > 1e-4
    assert torch.equal(outputs(model.eval()), still)
    dropout.remove()
    assert torch.equal(outputs(model.train()), still)


@pytest.mark.parametrize("part", PARTS)
def test_generation_is_as_without_it_also_in_training_mode(model, part):
    def written() -> torch.Tensor:
        return model.generate(ROW, max_new_tokens=12, do_sample=False, eos_token_id=None)

    model.eval()
    expected = written()
    dropout = TrainingDropout(model, **only(part, 0.9))
    model.train()
    assert torch.equal(written(), expected)
    assert model.training  # and the mode is given back
    dropout.remove()
    assert "generate" not in vars(model)


def test_gradients_are_of_the_model_that_dropped(model):
    """The backward pass uses the masks of its forward pass: a finite difference along the gradient agrees."""
    model.double().train()
    dropout = TrainingDropout(model, attention=0.2, residual=0.1, mlp=0.1)
    weight = model.model.layers[0].mlp.up_proj.weight

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model(ROW, labels=ROW).loss

    loss().backward()
    step = 1e-3 * weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += step
        after = float(loss())
        weight -= 2 * step
        slope = (after - float(loss())) / 2e-3
    assert slope == pytest.approx(float(weight.grad.norm()), rel=1e-2)  # the loss is float32
    dropout.remove()


def test_it_reaches_the_base_of_an_adapted_model(tiny_llama):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_llama, LoraConfig(target_modules=["q_proj", "down_proj"]))
    dropout = TrainingDropout(adapted, attention=0.2, residual=0.1, mlp=0.1)
    assert outputs(adapted.train()).var(0).mean() > 0.0
    assert tiny_llama.config.attention_dropout == 0.2
    dropout.remove()
    assert tiny_llama.config.attention_dropout == 0.0
    assert outputs(adapted.train()).var(0).max() == 0.0


def test_removing_twice_does_nothing(tiny_llama):
    dropout = TrainingDropout(tiny_llama)
    dropout.remove()
    dropout.remove()
    assert outputs(tiny_llama.train()).var(0).max() == 0.0


def test_a_rate_of_its_own_comes_back(tiny_llama):
    tiny_llama.model.layers[0].self_attn.attention_dropout = 0.05
    TrainingDropout(tiny_llama, attention=0.2).remove()
    assert tiny_llama.model.layers[0].self_attn.attention_dropout == 0.05


def test_a_rate_out_of_range_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="the mlp dropout is out of range"):
        TrainingDropout(tiny_llama, mlp=1.0)


def test_attention_that_cannot_drop_is_refused(tiny_llama):
    tiny_llama.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigError, match="cannot drop"):
        TrainingDropout(tiny_llama)
    TrainingDropout(tiny_llama, attention=0.0).remove()


def test_an_architecture_with_dropout_modules_of_its_own_says_so():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(ModelError, match="attention dropout does not act"):
        TrainingDropout(model)
