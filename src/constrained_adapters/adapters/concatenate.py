"""Several adapters of one layer as one: ``Σ s_i B_i A_i = [s₁B₁, s₂B₂, …] · [A₁; A₂; …]``, exact.

Axis letters: R sum of the ranks, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

TensorState = tuple[int, int, int]


@torch.no_grad()
def concatenate(
    layer: LoraLayer, scalings: Mapping[str, float], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Stack the adapters of ``layer`` along their ranks, each with its factor inside B.

    Args:
        layer: Has all of the adapters.
        scalings: The factor s_i of each, weight included; at least one.
        dtype: Of the result; default: the type that all the adapters' types promote to.

    Returns:
        A of shape (R, d_in) and B of shape (d_out, R), detached copies.
    """
    modules_a: Any = layer.lora_A
    modules_b: Any = layer.lora_B
    a = torch.cat([modules_a[name].weight.to(dtype) for name in scalings])
    b = torch.cat([modules_b[name].weight.to(dtype) * factor for name, factor in scalings.items()], dim=1)
    return a, b


def is_plain(layer: LoraLayer, adapter: str) -> bool:
    """Whether ``adapter`` only adds ``s B A x`` here: no DoRA or other variant, no bias."""
    return adapter not in layer.lora_variant and not layer.lora_bias.get(adapter, False)


def state_of(tensor: Tensor) -> TensorState:
    """Changes when the tensor is replaced, moved, cast or written to in place."""
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


@contextmanager
def own_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute what outlives a forward pass: no autocast, no graph, and no inference tensors."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
