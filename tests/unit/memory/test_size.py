"""The stated bytes against files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from constrained_adapters.memory import factors
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.gradient_sketch import SketchAccumulator
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.memory.size import (
    MatrixShape,
    adapter_bytes,
    kfac_bytes,
    largest_input_rank,
    matrix_shapes,
    sketch_bytes,
)

NAMES = [f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in ("q_proj", "v_proj", "o_proj")]


def body(content: bytes) -> int:
    """Bytes of a safetensors file without its header."""
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def modules_of(model) -> dict[str, torch.nn.Module]:
    return {name: model.get_submodule(name) for name in NAMES}


@pytest.mark.parametrize(
    ("rounding_share", "wide_share", "num_turned"), [(1e9, 0.0, 0), (-1.0, 1.0, 2)], ids=["8 bits", "16 bits"]
)
def test_the_formulas_give_the_files_sizes(
    tiny_llama, rows, monkeypatch, rounding_share, wide_share, num_turned
):
    monkeypatch.setattr(factors, "ROUNDING_SHARE", rounding_share)
    monkeypatch.setattr(factors, "TURN_SHARE", rounding_share)
    listener = SketchAccumulator(rank=2, max_examples=5, mean_rank=4)
    stats = gather_statistics(
        tiny_llama,
        modules_of(tiny_llama),
        [pad_rows(rows, "cpu")],
        generator=torch.Generator().manual_seed(0),
        accumulators=[listener],
    )
    shapes = list(matrix_shapes(tiny_llama, modules_of(tiny_llama)).values())
    for input_rank, output_rank in ((5, 3), (12, 6)):
        made = KFACMemory.from_statistics(
            stats,
            domain="d",
            base_fingerprint="",
            shares={"sensitivity": 1.0, "energy": 1.0},
            input_rank=input_rank,
            output_rank=output_rank,
        )
        size = kfac_bytes(shapes, input_rank, output_rank, wide_share=wide_share, num_turned=num_turned)
        assert body(made.to_bytes()) == size
        both = replace(made, sketch=listener.finish()).to_bytes()
        assert body(both) == size + sketch_bytes(shapes, 5, 2, 4)
    assert adapter_bytes(shapes, 4) == 4 * 4 * 2 * (64 + 48 + 64)


def test_shapes_need_no_weights_and_know_which_inputs_are_shared(tiny_llama):
    on_meta = tiny_llama.to("meta")
    found = matrix_shapes(on_meta, modules_of(on_meta))
    assert list(found) == NAMES
    for index in (0, 1):
        layer = f"model.layers.{index}.self_attn."
        assert found[f"{layer}q_proj"] == MatrixShape(32, 32, f"{layer}q_proj")
        assert found[f"{layer}v_proj"] == MatrixShape(16, 32, f"{layer}q_proj")
        assert found[f"{layer}o_proj"] == MatrixShape(32, 32, f"{layer}o_proj")
    assert all(not module._forward_hooks for module in on_meta.modules())


def test_the_largest_rank_is_the_largest():
    shapes = [MatrixShape(48, 64, "q"), MatrixShape(16, 64, "q"), MatrixShape(64, 48, "o")]
    budget = 2 * adapter_bytes(shapes, 4)
    rank = largest_input_rank(shapes, budget, output_rank=4)
    assert kfac_bytes(shapes, rank, 4) <= budget < kfac_bytes(shapes, rank + 1, 4)
    assert largest_input_rank(shapes, 10, output_rank=4) == 0
