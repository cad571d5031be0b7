"""Tiny random bases of the architectures that are mapped to GGUF, wide enough for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SIZES = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}),
}


def save_base(kind: str, folder: Path, tokenizer: Any, **changes: Any) -> Any:
    """A seeded random model of the kind, saved with the tokenizer; returned in evaluation mode."""
    family, more = KINDS[kind]
    config_class = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    model_class = getattr(transformers, f"{family}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = model_class(config_class(**{**SIZES, **more, **changes})).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:  # as they start they are all alike, which would hide a mistake
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                if name.endswith(".bias"):
                    parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def byte_tokenizer(splitting: Any = None) -> Any:
    """Byte-level BPE with a few merges, as SmolLM and Qwen have; ``splitting`` comes before it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("i", "n")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|pad|>", "<|start|>", "<|end|>", *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    steps = [] if splitting is None else [splitting]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not _is_regex(splitting))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|start|>", eos_token="<|end|>"
    )


def character_tokenizer() -> Any:
    """BPE over characters with bytes to fall back to, as Llama 2, Mistral and Gemma have."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "t"), ("▁t", "he"), ("i", "n"), ("▁", "in")]
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789.,?"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *characters]
    words += list(dict.fromkeys(word for pair in merges if (word := "".join(pair)) not in words))
    backend = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[pair for pair in merges if all(part in words for part in pair)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _is_regex(splitting: Any) -> bool:
    return type(splitting).__name__ == "Split"
