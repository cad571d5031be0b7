"""Scoring through a tree of tokens against scoring each sequence by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from constrained_adapters.evaluation import likelihood
from constrained_adapters.evaluation.likelihood import TokenScores, score_groups
from constrained_adapters.models import token_tree
from constrained_adapters.models.token_tree import TokenSequence

VOCAB = 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
# A window far shorter than the prompts, and both kinds of layer where a model has both.
WINDOW = {"sliding_window": 6}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, **MIXED),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**SIZES, **MIXED),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
    ),
    "granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=2.0),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, **WINDOW),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, **WINDOW, num_local_experts=3),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, **WINDOW),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, **MIXED, use_sliding_window=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, **MIXED, use_sliding_window=True),
    "smollm3": lambda: transformers.SmolLM3Config(
        **SIZES, **MIXED, use_sliding_window=True, no_rope_layers=[1, 0]
    ),
    "starcoder2": lambda: transformers.Starcoder2Config(**SIZES, **WINDOW),
}


def build(kind: str, attention: str = "sdpa") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation=attention)
    return model.eval()


def make_groups(num_groups: int = 3, num_choices: int = 4) -> list[list[TokenSequence]]:
    """Questions that share their first tokens; choices of 1 to 5 tokens, some equal at the beginning."""
    draw = random.Random(0)
    shared = draw.choices(range(3, VOCAB), k=7)
    groups = []
    for _ in range(num_groups):
        prompt = shared + draw.choices(range(3, VOCAB), k=draw.randint(1, 20))
        choices = [[*draw.choices(range(3, 6), k=draw.randint(0, 4)), 2] for _ in range(num_choices)]
        spans = [range(len(prompt), len(prompt) + len(choice)) for choice in choices]
        groups.append(
            [TokenSequence(prompt + choice, list(span)) for choice, span in zip(choices, spans, strict=True)]
        )
    # Running text: every token but the first.
    groups.append([TokenSequence(draw.choices(range(3, VOCAB), k=30), list(range(1, 30)))])
    return groups


@torch.no_grad()
def score_plainly(model: Any, groups: list[list[TokenSequence]]) -> list[list[TokenScores]]:
    """One sequence a pass, all logits, no mask."""

    def score(sequence: TokenSequence) -> TokenScores:
        logits = model(input_ids=torch.tensor([sequence.input_ids])).logits[0].float()
        rows, targets = torch.tensor(sequence.scored) - 1, torch.tensor(sequence.input_ids)[sequence.scored]
        nats = torch.nn.functional.cross_entropy(logits[rows], targets, reduction="none")
        return TokenScores(nats.tolist(), (logits[rows].argmax(-1) == targets).tolist())

    return [[score(sequence) for sequence in group] for group in groups]


def assert_same(found: list[list[TokenScores]], expected: list[list[TokenScores]]) -> None:
    for found_group, expected_group in zip(found, expected, strict=True):
        for one, other in zip(found_group, expected_group, strict=True):
            assert one.nats == pytest.approx(other.nats, abs=1e-4)
            assert one.hits == other.hits


def test_every_listed_architecture_is_tested() -> None:
    assert set(CONFIGS) == set(token_tree.MASKS)


# Gemma 2 has no sdpa: its attention scores are capped.
@pytest.mark.parametrize(
    ("kind", "attention"),
    [(k, a) for k in sorted(CONFIGS) for a in ("sdpa", "eager") if (k, a) != ("gemma2", "sdpa")],
)
def test_tree_equals_one_by_one(kind: str, attention: str) -> None:
    model, groups = build(kind, attention), make_groups()
    assert token_tree.tree_masks(model) is not None
    assert_same(score_groups(model, groups, max_groups=4), score_plainly(model, groups))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_tree_through_adapters(kind: str) -> None:
    model, groups = build(kind), make_groups()
    plain = score_plainly(model, groups)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        ).eval()
    found = score_groups(adapted, groups, max_groups=4)
    assert_same(found, score_plainly(adapted, groups))
    assert found[0][0].nats != pytest.approx(plain[0][0].nats, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text"])
def test_models_without_a_tree_are_scored_flat(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_tree, "MASKS", {})
    model, groups = build(kind), make_groups()
    assert_same(score_groups(model, groups, max_groups=4), score_plainly(model, groups))


def test_attention_that_takes_no_mask_is_scored_flat(tiny_llama: Any) -> None:
    tiny_llama.config._attn_implementation_internal = "flash_attention_2"
    assert token_tree.tree_masks(tiny_llama) is None


@pytest.mark.parametrize("row_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("max_groups", [1, 2, 100])
def test_results_do_not_depend_on_the_packing(
    row_tokens: int, max_groups: int, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = make_groups()
    expected = score_plainly(tiny_llama, groups)
    monkeypatch.setattr(likelihood, "ROW_TOKENS", row_tokens)
    assert_same(score_groups(tiny_llama, groups, max_groups=max_groups), expected)


def test_rows_keep_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "ROW_TOKENS", 64)
    groups = make_groups(num_groups=9)
    trees = list(likelihood._pack(groups, 2))
    assert all(len(tree.tokens) <= 64 for tree in trees)
    assert all(len({group for group, _ in tree.members}) <= 2 for tree in trees)
    # One question longer than a row by itself is divided, twice its length at a time.
    prompt = list(range(3, 63)) * 2
    long = [TokenSequence([*prompt, *([choice] * 50), 2], list(range(120, 171))) for choice in range(40)]
    sizes = [len(tree.tokens) for tree in likelihood._pack([long], 2)]
    assert len(sizes) > 1
    assert max(sizes) <= 2 * 170


def test_shared_tokens_are_read_once_and_few_logits_are_made(tiny_llama: Any) -> None:
    prompt, choices = [5] * 40, [[7, 8, 2], [7, 9, 2], [6, 2]]
    group = [TokenSequence(prompt + c, list(range(40, 40 + len(c)))) for c in choices]
    shapes = []
    tiny_llama.model.embed_tokens.register_forward_hook(
        lambda _m, args, _o: shapes.append(tuple(args[0].shape))
    )
    tiny_llama.lm_head.register_forward_hook(lambda _m, args, _o: shapes.append(tuple(args[0].shape)))
    score_groups(tiny_llama, [group], max_groups=1)
    # Read: the prompt, 7, 7 8, 7 9, 6. Predicting: the prompt's last token and those four.
    assert shapes == [(1, 44), (1, 5, 32)]


def test_modes_and_gradients_are_left_alone(tiny_llama: Any) -> None:
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    modes = [module.training for module in tiny_llama.modules()]
    score_groups(tiny_llama, make_groups(), max_groups=4)
    assert [module.training for module in tiny_llama.modules()] == modes
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())


@pytest.mark.parametrize("masks", [token_tree.MASKS, {}])
def test_nothing_to_score(masks: dict[str, Any], tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_tree, "MASKS", masks)
    assert score_groups(tiny_llama, [], max_groups=1) == []
    assert score_groups(tiny_llama, [[], [TokenSequence([3, 4], [])]], max_groups=1) == [
        [],
        [TokenScores([], [])],
    ]
