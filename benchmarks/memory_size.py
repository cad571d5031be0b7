"""Bytes of a domain's memory beside its adapter's, for models of 7 and 8 B, from their shapes alone.

Run:   python benchmarks/memory_size.py
Makes: benchmarks/results/memory-size.json

No weight is made or loaded: the models stand on the meta device. Adapted are q, v and o. The adapter's file
is in float32, as PEFT writes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from constrained_adapters.memory.kfac import INPUT_RANK, OUTPUT_RANK
from constrained_adapters.memory.size import (
    MatrixShape,
    adapter_bytes,
    kfac_bytes,
    largest_input_rank,
    matrix_shapes,
    sketch_bytes,
)

RESULT = Path(__file__).parent / "results" / "memory-size.json"
LAYERS = ("q_proj", "v_proj", "o_proj")
RANKS = (16, 64)
SKETCHES = ((48, 1), (24, 2))
MEAN_RANK = 16
CONFIGS: dict[str, PretrainedConfig] = {
    "Mistral-7B-v0.1": MistralConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=32000,
    ),
    "Llama-3.1-8B": LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
    ),
    "Qwen2.5-7B": Qwen2Config(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    ),
}


def shapes_of(config: PretrainedConfig) -> list[MatrixShape]:
    """Of the adapted layers."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    modules = {name: module for name, module in model.named_modules() if name.endswith(LAYERS)}
    return list(matrix_shapes(model, modules).values())


def main() -> None:
    """Compute, print and write."""
    rows = []
    for name, config in CONFIGS.items():
        shapes = shapes_of(config)
        for rank in RANKS:
            adapter = adapter_bytes(shapes, rank)
            within = largest_input_rank(shapes, 2 * adapter)
            sizes = {
                f"kfac, input rank {within} (largest within 2 adapters)": kfac_bytes(shapes, within),
                f"kfac, input rank {INPUT_RANK} (default)": kfac_bytes(shapes, INPUT_RANK),
                **{
                    f"sketch, {count} sequences, {pairs} pairs": sketch_bytes(shapes, count, pairs, MEAN_RANK)
                    for count, pairs in SKETCHES
                },
            }
            rows.append(
                {"model": name, "rank": rank, "adapter_bytes": adapter, "input_rank": within, "bytes": sizes}
            )
            print(f"{name}, rank {rank}: adapter {adapter / 1e6:.1f} MB")
            for what, size in sizes.items():
                print(f"  {what:<55} {size / 1e6:8.1f} MB  {size / adapter:5.2f} adapters")
    settings = {
        "layers": LAYERS,
        "output_rank": OUTPUT_RANK,
        "mean_rank": MEAN_RANK,
        "adapter_dtype": "float32",
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
