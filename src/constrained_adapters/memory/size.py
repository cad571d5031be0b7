"""How many bytes a domain's memory takes, from a model's shapes alone.

No weight is needed: a model on the meta device has all shapes. The formulas are those of the files
(:meth:`KFACMemory.to_bytes`, which holds a sketch too); a file adds a header of a few hundred bytes
per matrix. How many directions need 16 bits instead of 8 depends on how unequal they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from constrained_adapters.memory.kfac import INPUT_KINDS, OUTPUT_RANK
from constrained_adapters.memory.rounding import packed_bytes


@dataclass(frozen=True)
class MatrixShape:
    """One adapted matrix.

    Args:
        d_out: Its outputs.
        d_in: Its inputs.
        input_key: The first module that reads the same input; they share one memory of it.
    """

    d_out: int
    d_in: int
    input_key: str


USUAL_WIDE_SHARE = 0.03
"""Share of the directions that need 16 bits: of the packaged model's memories (docs/log.md)."""


def matrix_shapes(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, MatrixShape]:
    """Shapes and shared inputs of some linear layers, seen in one forward pass of one token.

    Args:
        model: A causal LM, on the meta device if it is large.
        modules: The adapted layers by name.
    """
    shapes: dict[str, MatrixShape] = {}
    last: list[tuple[Tensor, str]] = []

    def listen(name: str) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not last or last[0][0] is not args[0]:
                last[:] = [(args[0], name)]
            shapes[name] = MatrixShape(output.shape[-1], args[0].shape[-1], last[0][1])

        return modules[name].register_forward_hook(hook)

    handles = [listen(name) for name in modules]
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        # A mask that is made already: making one looks at values, which the meta device has not.
        with torch.no_grad():
            model(input_ids=ids, attention_mask=ids.bool()[None, None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def adapter_bytes(shapes: Sequence[MatrixShape], rank: int) -> int:
    """A LoRA's file in float32."""
    return 4 * rank * sum(shape.d_out + shape.d_in for shape in shapes)


def kfac_bytes(
    shapes: Sequence[MatrixShape],
    input_rank: int,
    output_rank: int = OUTPUT_RANK,
    *,
    wide_share: float = USUAL_WIDE_SHARE,
    num_turned: int = 1,
) -> int:
    """A :class:`~constrained_adapters.memory.kfac.KFACMemory` of ``input_rank`` directions.

    Args:
        shapes: The adapted matrices.
        input_rank: Kept directions of each input; stored once, with values and a diagonal for each kind.
        output_rank: Kept directions of each output.
        wide_share: How many of them are in 16 bits, 0 … 1; the others in 8.
        num_turned: Kinds that need a rotation: all but the one whose own directions are stored.
    """
    total = 0
    for d_in in {shape.input_key: shape.d_in for shape in shapes}.values():
        k = min(input_rank, d_in)
        total += _directions_bytes(d_in, k, wide_share) + len(INPUT_KINDS) * (4 * k + 2 * d_in)
        total += num_turned * _directions_bytes(k, k, wide_share)
    for shape in shapes:
        k = min(output_rank, shape.d_out)
        total += _directions_bytes(shape.d_out, k, wide_share) + 4 * k + 2 * shape.d_out
    return total


def sketch_bytes(shapes: Sequence[MatrixShape], num_examples: int, rank: int, mean_rank: int) -> int:
    """A :class:`~constrained_adapters.memory.gradient_sketch.GradientSketch`.

    Args:
        shapes: The adapted matrices.
        num_examples: Sequences remembered.
        rank: Singular pairs of each.
        mean_rank: Rank of the mean gradient.
    """
    total = 0
    for shape in shapes:
        columns = num_examples * rank + min(mean_rank, shape.d_out, shape.d_in)
        total += packed_bytes(shape.d_out, columns) + packed_bytes(shape.d_in, columns)
    return total


def _directions_bytes(width: int, count: int, wide_share: float) -> int:
    num_wide = round(wide_share * count)
    return packed_bytes(width, count - num_wide, num_wide)


def largest_input_rank(
    shapes: Sequence[MatrixShape], budget_bytes: int, output_rank: int = OUTPUT_RANK
) -> int:
    """The most input directions with which :func:`kfac_bytes` stays within a budget; 0 where none does.

    >>> shapes = [MatrixShape(4096, 4096, "q"), MatrixShape(1024, 4096, "q"), MatrixShape(4096, 4096, "o")]
    >>> largest_input_rank(shapes, 2 * adapter_bytes(shapes, 16))
    274
    """
    low, high = 0, max(shape.d_in for shape in shapes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if kfac_bytes(shapes, middle, output_rank) <= budget_bytes else (low, middle - 1)
        )
    return low
