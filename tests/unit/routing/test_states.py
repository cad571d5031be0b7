"""Prompts as vectors: one decoder layer of the base, and nothing of any adapter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from constrained_adapters import CRMAConfig, CRMAModel
from constrained_adapters.routing import states as module
from constrained_adapters.routing.states import PromptStates

TEXTS = ["What follows from this?", "数学", "", "Право " * 9]


def brute_force(model, tokenizer, text: str) -> torch.Tensor:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] or [tokenizer.pad_token_id]
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1]
    return hidden[0].mean(0).double()


def test_a_vector_is_the_mean_of_the_states_after_the_first_layer(tiny_llama, tiny_tokenizer):
    vectors, lengths = PromptStates(tiny_llama, tiny_tokenizer)(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        torch.testing.assert_close(
            vector, brute_force(tiny_llama, tiny_tokenizer, text), rtol=1e-5, atol=1e-6
        )
    assert lengths.tolist() == [len(text.encode()) or 1 for text in TEXTS]


def test_later_layers_are_not_run(tiny_llama, tiny_tokenizer):
    calls = []
    for layer in tiny_llama.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: calls.append(module))
    PromptStates(tiny_llama, tiny_tokenizer)(["abc"])
    assert calls == [tiny_llama.model.layers[0]]


def test_batches_do_not_change_a_vector(tiny_llama, tiny_tokenizer, monkeypatch):
    made = PromptStates(tiny_llama, tiny_tokenizer)
    whole, _ = made(TEXTS)
    monkeypatch.setattr(module, "BATCH_TOKENS", 1)
    alone, _ = made(TEXTS)
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-6)


def test_adapters_do_not_act_and_act_again_afterwards(tiny_llama, tiny_tokenizer):
    plain, _ = PromptStates(tiny_llama, tiny_tokenizer)(TEXTS)
    model = CRMAModel(tiny_llama, CRMAConfig(base_model_name="tiny", adapter_dim=2, residual_scaling=50.0))
    model.create_adapter("law")
    model.freeze_adapter("law")
    model.set_active_adapter("law")
    model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        before = model.eval()(torch.tensor([[5, 6, 7]])).logits
    found, _ = PromptStates(model, tiny_tokenizer)(TEXTS)
    assert torch.equal(found, plain)
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)
        with model.base_only():
            assert not torch.equal(model(torch.tensor([[5, 6, 7]])).logits, before)


def test_a_long_prompt_loses_its_middle(tiny_llama, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "MAX_TOKENS", 6)
    made = PromptStates(tiny_llama, tiny_tokenizer)
    vectors, lengths = made(["abcdefghij", "abchij"])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert lengths.tolist() == [6.0, 6.0]


def test_the_mode_of_the_model_stays_and_no_hook_is_left(tiny_llama, tiny_tokenizer):
    tiny_llama.train()
    PromptStates(tiny_llama, tiny_tokenizer)(["abc"])
    assert tiny_llama.training
    assert not tiny_llama.model.layers[0]._forward_hooks


def test_where_layers_cannot_be_told_apart_embeddings_do(tiny_llama, tiny_tokenizer, monkeypatch):
    def none(model):
        raise module.ModelError("none")

    monkeypatch.setattr(module, "decoder_layers", none)
    made = PromptStates(tiny_llama, tiny_tokenizer)
    vectors, _ = made(["ab"])
    ids = tiny_tokenizer("ab")["input_ids"]
    wanted = tiny_llama.get_input_embeddings().weight[ids].mean(0).double()
    torch.testing.assert_close(vectors[0], wanted)
    assert made.name == "embeddings"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
def test_the_parts_of_words_add_up_to_the_vector(tiny_llama, tiny_tokenizer, text):
    made = PromptStates(tiny_llama, tiny_tokenizer)
    words, parts = made.words(text)
    assert len(words) == len(parts)
    torch.testing.assert_close(parts.sum(0), made([text])[0][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text, wanted", [("a court, a court", ["a", "court", ",", "a", "court"])])
def test_words_are_put_together(tiny_llama, tiny_tokenizer, text, wanted):
    words, _ = PromptStates(tiny_llama, tiny_tokenizer).words(text)
    assert [word for word in words if word] == wanted


def test_a_token_that_begins_with_the_space_before_it_belongs_to_its_word(tiny_llama):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "Ġo"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PromptStates(tiny_llama, PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [word for word in made.words("an opec 数")[0] if word.isascii() and word] == ["an", "opec"]
