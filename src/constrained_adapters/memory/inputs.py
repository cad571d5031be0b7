"""Which inputs a domain brings: covariances from forward passes alone.

Axis letters: n tokens of a batch without padding, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.memory.statistics import WIDE, Covariance, add_rows
from constrained_adapters.models.modes import evaluating


@torch.no_grad()
def input_covariances(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Covariance]:
    """``Σ_t a_t a_tᵀ`` over all tokens but padding, by module; modules that read one input share one object.

    Args:
        model: A causal LM; its modules' training modes are left as they were.
        modules: Linear layers by name.
        batches: Each with ``input_ids`` and ``attention_mask`` (b, s).

    Returns:
        A matrix (d, d) per input, or a sketch where d is above ``WIDE``.

    Cost: one forward pass per batch.
    """
    found: dict[str, Covariance] = {}
    mask: list[Tensor] = []
    last: list[tuple[Tensor, Covariance]] = []

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            source = args[0]
            if last and last[0][0] is source:
                found[name] = last[0][1]
                return
            rows = source.reshape(-1, source.shape[-1])[mask[0]].float()
            add_rows(found, name, rows, WIDE)
            last[:] = [(source, found[name])]

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    short = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    try:
        with evaluating(model):
            for batch in batches:
                mask[:] = [batch["attention_mask"].bool().reshape(-1)]
                inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
                model(**inputs, use_cache=False, **short)
    finally:
        for handle in handles:
            handle.remove()
    return found
