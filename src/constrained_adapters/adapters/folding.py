"""The frozen active adapters of a layer folded into one weight, so that any number costs what none costs.

``W' = W + Σ w_i ΔW_i`` is computed once and used instead of W until the set, a weight or a matrix changes.
W itself is never written to or replaced: saving, fingerprints, moves and merges see the base as it is. Where
W is packed (4 or 8 bit) nothing is merged: the adapters act through one concatenated pair (A, B) instead.

Axis letters: R sum of the ranks, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from constrained_adapters.adapters.concatenate import concatenate, is_plain, own_arithmetic, state_of


class Fold:
    """One layer's folded adapters.

    Error: W' is summed in float32 (float64 on a float64 base) and rounded once to W's type, so each entry is
    off by at most half a unit in the last place, ``|W'| · 2⁻⁸`` in bfloat16 and ``|W'| · 2⁻¹¹`` in float16,
    however many adapters there are. Nothing accumulates: every change starts again from W.

    Memory: a second tensor of W's size and type, the same one for every later set.
    """

    def __init__(self, layer: LoraLayer) -> None:
        self.layer: Any = layer
        self.base: Any = layer.base_layer  # a look-up in a module costs as much as a small product
        self.in_force = False
        self.weight: Tensor | None = None
        """W', laid out as W."""
        self._pair: tuple[Tensor, Tensor] | None = None
        self._state: tuple[Any, ...] = ()
        self._sources: list[Tensor] = []

    def refresh(self, active: Sequence[str], live: Sequence[str]) -> None:
        """Make the fold that of the adapters in ``active`` that are not ``live``; nothing where it is so.

        Where no adapter is left, or one in ``active`` is more than ``s B A x``, it is not in force.
        """
        layer = self.layer
        here = [name for name in active if name in layer.lora_A]
        folded = [name for name in here if name not in live]
        if not folded or not all(is_plain(layer, name) for name in here):
            self.release()
            return
        state = self._state_for(folded)
        if self.in_force and state == self._state:
            return
        scalings = {name: layer.scaling[name] for name in folded}
        with own_arithmetic(layer.lora_A[folded[0]].weight.device):
            if _is_mergeable(layer):
                self._merge(scalings)
            else:
                self.weight, self._pair = None, concatenate(layer, scalings)
        self.in_force, self._state = True, state
        # Held, so that no other tensor can take the identity of a deleted one.
        self._sources = [part[name].weight for name in folded for part in (layer.lora_A, layer.lora_B)]

    def output(self, x: Tensor) -> Tensor:
        """``W' x + bias`` for inputs of shape (…, d_in)."""
        base = self.base
        if self.weight is not None:
            weight = self.weight.t() if isinstance(base, Conv1D) else self.weight
            return nn.functional.linear(x, weight, base.bias)
        assert self._pair is not None
        a, b = self._pair
        result: Tensor = base(x)
        added = nn.functional.linear(nn.functional.linear(x.to(a.dtype), a), b)
        return result + added.to(result.dtype)

    def base_has_changed(self) -> bool:
        """Whether the base's weight was moved, cast or written to since; two look-ups."""
        return self.in_force and self._state[0] != state_of(self.base.weight)

    def adapters_have_changed(self) -> bool:
        """Whether a folded matrix or its scaling was changed by somebody since."""
        if not self.in_force:
            return False
        names = [entry[0] for entry in self._state[1:]]
        return any(name not in self.layer.lora_A for name in names) or self._state_for(names) != self._state

    def release(self) -> None:
        """Free W'."""
        self.in_force, self.weight, self._pair, self._state, self._sources = False, None, None, (), []

    def _state_for(self, names: Sequence[str]) -> tuple[Any, ...]:
        layer = self.layer
        return (
            state_of(layer.base_layer.weight),
            *(
                (
                    name,
                    layer.scaling[name],
                    state_of(layer.lora_A[name].weight),
                    state_of(layer.lora_B[name].weight),
                )
                for name in names
            ),
        )

    def _merge(self, scalings: dict[str, float]) -> None:
        base = self.base
        w = base.weight.detach()
        exact = torch.promote_types(w.dtype, torch.float32)
        a, b = concatenate(self.layer, scalings, exact)
        left, right = (a.t(), b.t()) if isinstance(base, Conv1D) else (b, a)
        old = self.weight
        if old is None or (old.shape, old.dtype, old.device) != (w.shape, w.dtype, w.device):
            self.weight = torch.empty_like(w)
        assert self.weight is not None
        if w.dtype == exact:
            torch.addmm(w, left, right, out=self.weight)
        else:
            self.weight.copy_(torch.addmm(w.to(exact), left, right))


def _is_mergeable(layer: LoraLayer) -> bool:
    """Whether the base layer is nothing but a matrix of plain numbers that lies here as a whole."""
    base: Any = layer.base_layer
    return (
        isinstance(layer, LoraLinear)
        and type(base) in (nn.Linear, Conv1D)
        and type(base.weight) is nn.Parameter
        and type(base.weight.data) is Tensor
        and base.weight.is_floating_point()
        and not base.weight.requires_grad  # it is trained itself
        and base.weight.dim() == 2  # a sharded weight is flat
        and not hasattr(base, "_hf_hook")  # an offloaded weight is elsewhere between two passes
    )
