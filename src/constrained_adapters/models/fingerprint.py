"""What identifies a base model: its weights and the settings that change what the weights compute.

Axis letters: n elements of one tensor.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

# Only settings that change the function computed, by an explicit list: a new release of transformers
# adds settings with neutral values, and those must not change the fingerprint. Dropout is left out
# on purpose, it is changed while training.
CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "sliding_window",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
)

_CHUNK = 1 << 16  # int64 words mixed at a time: 512 KB, which stays in a core's cache
_ADAPTER_MARKS = (".lora_", ".modules_to_save.")


def fingerprint_model(model: nn.Module) -> str:
    """Return a SHA-256 (hexadecimal) that changes when any weight or essential setting changes.

    Each tensor is reduced, on its own device, to a 64-bit sum of its elements' float32 bits mixed with
    their positions (as SplitMix64 does), and the sums are hashed with the tensors' names and shapes. One
    changed element always changes the sum, as the mixing is a bijection; several cancel with a chance of
    2⁻⁶⁴. The sum of integers has no rounding, so order, threads and device do not matter. It is no
    defence against somebody who looks for a collision.

    The dtype is left out: bfloat16 weights loaded as float32 are the same model. float32 weights loaded
    as bfloat16 are rounded, hence another. Quantised weights are hashed as stored. PEFT's wrappers and
    adapters are looked through, so a base has one fingerprint with and without adapters on it.

    Cost: one pass over the weights, O(n); 0.7 s for 135 M parameters on one core.

    Args:
        model: A model with ``config``; on any device but ``meta``.
    """
    settings = getattr(model, "config", None)
    digest = hashlib.sha256(json.dumps(_essentials(settings), sort_keys=True).encode())
    for name, parameter in sorted(_base_parameters(model).items()):
        line = f"\n{name} {list(parameter.shape)} {_mix(parameter.detach()):016x}"
        digest.update(line.encode())
    return digest.hexdigest()


def _essentials(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = {field: getattr(text, field, None) for field in CONFIG_FIELDS}
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


def _base_parameters(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():  # tied weights come once
        if any(mark in name for mark in _ADAPTER_MARKS):
            continue
        plain = (
            name.removeprefix("base_model.model.")
            .replace(".base_layer.", ".")
            .replace(".original_module.", ".")
        )
        found[plain] = parameter
    return found


def _mix(tensor: Tensor) -> int:
    """Return the 64-bit sum over all elements of ``tensor``, each mixed with its position."""
    flat = tensor.contiguous().reshape(-1)
    per_word = 8 // (4 if flat.is_floating_point() else flat.element_size())
    num_words = min(_CHUNK, -(-flat.numel() // per_word))
    offsets = torch.arange(1, num_words + 1, device=flat.device) * _GOLDEN
    total = 0
    for start in range(0, flat.numel(), _CHUNK * per_word):
        part = flat[start : start + _CHUNK * per_word]
        if part.is_floating_point():
            part = part.float()
        if part.numel() % per_word:
            part = nn.functional.pad(part, (0, -part.numel() % per_word))
        words = part.view(torch.int64)
        words = words + offsets[: words.numel()]
        words += _signed(start // per_word * _GOLDEN)
        words ^= _shift(words, 32)
        words *= _MULTIPLIER
        words ^= _shift(words, 29)
        total += int(words.sum())
    return total & (2**64 - 1)


def _shift(words: Tensor, bits: int) -> Tensor:
    """Shift right without copying the sign, as on unsigned words; otherwise the mixing is no bijection."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER = _signed(0xBF58476D1CE4E5B9)
