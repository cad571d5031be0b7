"""CRMA's adapters are PEFT's LoRA layers; here they are described, started and listed.

``ΔW = residual_scaling · B · A`` with A: r × d_in and B: d_out × r (Hu et al. 2021, arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@dataclass(frozen=True)
class AdapterPair:
    """The two matrices of one adapter on one linear layer.

    Args:
        module: The layer's name in the base, such as ``model.layers.0.self_attn.q_proj``.
        a: Shape (r, d_in).
        b: Shape (d_out, r).
        scaling: ``residual_scaling``; ΔW = scaling · b · a.
    """

    module: str
    a: nn.Parameter
    b: nn.Parameter
    scaling: float


def lora_config(
    *,
    rank: int,
    residual_scaling: float,
    targets: list[str],
    layers_to_transform: list[int] | None,
    transposed: bool = False,
) -> LoraConfig:
    """PEFT's configuration of one CRMA adapter: a plain LoRA that every engine can read.

    ``lora_alpha`` is ``residual_scaling · rank``, so that PEFT's ``alpha / r`` is the scaling.
    ``transposed`` says that the layers keep W as d_in × d_out, as GPT-2's Conv1D does.
    """
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=residual_scaling * rank,  # type: ignore[arg-type]  # PEFT divides it, any number will do
        lora_dropout=0.0,
        target_modules=targets,
        layers_to_transform=layers_to_transform,
        init_lora_weights=True,
        fan_in_fan_out=transposed,
    )


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted layers by their name in the base (without PEFT's ``base_model.model.`` prefix)."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def adapter_pairs(model: nn.Module, adapter: str) -> Iterator[AdapterPair]:
    """Each (A, B) of ``adapter``, in the order of the layers."""
    for name, layer in lora_layers(model).items():
        if adapter in layer.lora_A:
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            assert isinstance(a, nn.Parameter) and isinstance(b, nn.Parameter)
            yield AdapterPair(name, a, b, own_scaling(layer, adapter))


def own_scaling(layer: LoraLayer, adapter: str) -> float:
    """The scaling that ``adapter`` was made with, whatever its weight in the active set is now."""
    rank: int = layer.r[adapter]
    alpha: float = layer.lora_alpha[adapter]
    return alpha / (math.sqrt(rank) if layer.use_rslora.get(adapter, False) else rank)


@torch.no_grad()
def start_small(model: nn.Module, adapter: str, init_std: float) -> None:
    """Draw start values: A ~ N(0, 1/d_in), B ~ N(0, init_std²), from the global random state.

    B is small but not zero, so A learns from the first step on; with the default of 1e-4 an
    untrained adapter changes the loss of the default model by far less than 1 %.
    """
    for pair in adapter_pairs(model, adapter):
        pair.a.normal_(0.0, pair.a.shape[1] ** -0.5)
        pair.b.normal_(0.0, init_std)


def delta_weight(pair: AdapterPair) -> Tensor:
    """``ΔW = scaling · B · A``, shape (d_out, d_in), float32, detached."""
    return (pair.scaling * (pair.b.detach().float() @ pair.a.detach().float())).contiguous()
