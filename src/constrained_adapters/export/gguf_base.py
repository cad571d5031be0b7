"""A whole model as one GGUF file for llama.cpp, written tensor by tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import quants
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from constrained_adapters.errors import ModelError
from constrained_adapters.export.checkpoint import Checkpoint, Entry
from constrained_adapters.export.folder import require_room
from constrained_adapters.export.gguf_names import Names
from constrained_adapters.export.gguf_vocab import write_vocabulary

GGUFType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: Mapping[GGUFType, tuple[gguf.GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
RECORD_KEY = "constrained_adapters.record"
_F32, _Q8 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0


def write_gguf(
    checkpoint: Checkpoint,
    file: Path,
    kind: GGUFType,
    *,
    name: str,
    read: Callable[[str], Tensor] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a model; one tensor is held at a time.

    Args:
        checkpoint: The model.
        file: To write.
        kind: Of the matrices; vectors and norms stay in float32, as llama.cpp wants them.
        name: In the file's metadata.
        read: Reads a tensor otherwise, such as merged; default: as the checkpoint has it.
        record: Kept in the file's metadata.

    Raises:
        ModelError: The architecture, the tokenizer or a kind of positions is not known here.
        WorkspaceError: The disk has not the room.
    """
    config = AutoConfig.from_pretrained(checkpoint.folder)
    names = Names(config)
    writer = gguf.GGUFWriter(file, names.arch_name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    factors = _add_settings(writer, config, names)
    embeddings = checkpoint.entries[checkpoint.name_of_weight("model.embed_tokens")]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    write_vocabulary(writer, tokenizer, embeddings.shape[0])
    if record is not None:
        writer.add_string(RECORD_KEY, json.dumps(record, ensure_ascii=False))
    tied = config.get_text_config().tie_word_embeddings
    entries = [e for e in checkpoint.entries.values() if not _left_out(e, tied)]
    planned: list[tuple[str, gguf.GGMLQuantizationType, tuple[int, ...], Callable[[], Tensor]]] = []
    if factors is not None:
        planned.append(("rope_freqs.weight", _F32, tuple(factors.shape), lambda: factors))
    for entry in entries:
        source = read or checkpoint.read
        planned.append(
            (names.name(entry.name), _type(entry, kind), entry.shape, _reader(source, entry, names))
        )
    total = 0
    for title, qtype, shape, _ in planned:
        block, width = gguf.GGML_QUANT_SIZES[qtype]
        num_bytes = math.prod(shape) // block * width
        writer.add_tensor_info(title, shape, np.dtype(np.float32), num_bytes, qtype)
        total += num_bytes
    require_room(file.parent, total)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, qtype, _, load in planned:
            values = load().float().contiguous().numpy()
            writer.write_tensor_data(quants.quantize(values, qtype))
    finally:
        writer.close()


def _reader(source: Callable[[str], Tensor], entry: Entry, names: Names) -> Callable[[], Tensor]:
    return lambda: names.convert(entry.name, source(entry.name))


def _left_out(entry: Entry, tied: bool) -> bool:
    """Tied heads are the embeddings; inverse frequencies are computed."""
    return (tied and entry.name == "lm_head.weight") or entry.name.endswith(".rotary_emb.inv_freq")


def _type(entry: Entry, kind: GGUFType) -> gguf.GGMLQuantizationType:
    if len(entry.shape) <= 1 or entry.name.endswith("norm.weight"):
        return _F32
    wanted = TYPES[kind][0]
    if wanted == _Q8 and entry.shape[-1] % gguf.GGML_QUANT_SIZES[_Q8][0]:
        return gguf.GGMLQuantizationType.F16  # rows that blocks of 32 do not fill
    return wanted


def _add_settings(writer: gguf.GGUFWriter, config: Any, names: Names) -> Tensor | None:
    """The hyperparameters; returns the factors of Llama 3's frequencies, where it has some."""
    heads = names.heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    if window and names.arch_name == "llama":  # llama.cpp attends to all of Mistral's context
        context = min(context, window)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(names.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if names.family.key_length or width != config.hidden_size // heads:
        writer.add_key_length(width)
        writer.add_value_length(width)
    if names.arch_name == "llama":
        writer.add_rope_dimension_count(width)
    if names.arch_name in {"gemma2", "gemma3"} and window:
        writer.add_sliding_window(window)
    for cap, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, cap, None):
            add(getattr(config, cap))
    return _add_positions(writer, config, width)


def _add_positions(writer: gguf.GGUFWriter, config: Any, width: int) -> Tensor | None:
    rules = config.rope_parameters
    nested = "full_attention" in rules
    rule = rules["full_attention"] if nested else rules
    writer.add_rope_freq_base(rule["rope_theta"])
    if nested and "sliding_attention" in rules:
        writer.add_rope_freq_base_swa(rules["sliding_attention"]["rope_theta"])
    kind = rule.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rule["factor"])
    elif kind == "llama3":
        return _llama3_factors(rule, width)
    elif kind != "default":
        raise ModelError(
            "this way to stretch positions is not mapped to GGUF here",
            got=f"rope_type {kind!r}",
            expected="default, linear, llama3",
            hint="llama.cpp's own convert_hf_to_gguf.py on a folder of 'crma export merged'",
        )
    return None


def _llama3_factors(rule: Mapping[str, float], width: int) -> Tensor:
    """By what each frequency is divided: by nothing above one bound, by ``factor`` below another."""
    frequencies = rule["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    lengths = 2 * math.pi / frequencies
    low, high = rule.get("low_freq_factor", 1.0), rule.get("high_freq_factor", 4.0)
    old, factor = rule.get("original_max_position_embeddings", 8192), rule.get("factor", 8.0)
    smooth = (old / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    far = torch.where(lengths > old / low, torch.full_like(lengths, factor), between)
    return torch.where(lengths < old / high, torch.ones_like(lengths), far)
