"""Bytes of a domain's memory beside its adapter's, from models' shapes alone.

Run:   python benchmarks/memory_size.py
Makes: benchmarks/results/memory-size.json

No weight is made or loaded: the models stand on the meta device. Adapted are q, v and o. The adapter's file
is in float32, as PEFT writes it. A memory holds K-FAC factors, whose input directions are as many as the
shares ask for and at most ``INPUT_RANK``, and a gradient sketch.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from constrained_adapters.memory.gradient_sketch import MAX_EXAMPLES, MEAN_RANK
from constrained_adapters.memory.kfac import INPUT_RANK, OUTPUT_RANK
from constrained_adapters.memory.size import (
    USUAL_WIDE_SHARE,
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
DIRECTIONS = (64, 128, INPUT_RANK)
"""Of each input; what a memory keeps depends on its share of what matters (docs/log.md)."""
CONFIGS: dict[str, PretrainedConfig] = {
    "SmolLM2-135M": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
    ),
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
        sketch = sketch_bytes(shapes, MAX_EXAMPLES, 1, MEAN_RANK)
        for rank in RANKS:
            adapter = adapter_bytes(shapes, rank)
            within = largest_input_rank(shapes, 2 * adapter - sketch)
            sizes = {
                "gradient sketch": sketch,
                **{f"kfac, {count} directions": kfac_bytes(shapes, count) for count in DIRECTIONS},
                **{f"both, {count} directions": kfac_bytes(shapes, count) + sketch for count in DIRECTIONS},
            }
            rows.append(
                {
                    "model": name,
                    "rank": rank,
                    "adapter_bytes": adapter,
                    "most_directions_within_two_adapters": within,
                    "bytes": sizes,
                }
            )
            print(f"{name}, rank {rank}: adapter {adapter / 1e6:.1f} MB; two: {within} directions, sketch")
            for what, size in sizes.items():
                print(f"  {what:<25} {size / 1e6:8.1f} MB  {size / adapter:5.2f} adapters")
    settings = {
        "layers": LAYERS,
        "output_rank": OUTPUT_RANK,
        "input_rank": INPUT_RANK,
        "wide_share": USUAL_WIDE_SHARE,
        "sketch": {"examples": MAX_EXAMPLES, "pairs": 1, "mean_rank": MEAN_RANK},
        "adapter_dtype": "float32",
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
