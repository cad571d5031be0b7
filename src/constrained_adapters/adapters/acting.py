"""Which adapters act in a forward pass, and by which way each adapted layer computes them.

Every adapted layer asks one shared record, so that a change of the active set costs the same for any size of
model: the layers follow at their next call. The ways:

* base only: the layer without adapters;
* mixed: each row its own adapters (:mod:`~constrained_adapters.adapters.mixed`);
* folded: the frozen active adapters in one weight (:mod:`~constrained_adapters.adapters.folding`), and those
  in training, the live ones, as PEFT computes them;
* PEFT's own: whatever the others do not cover, such as a set without frozen adapters, DoRA, or a layer whose
  state somebody changed through PEFT behind our back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention, _ConvNd
from torch import Tensor

from constrained_adapters.adapters.concatenate import is_plain
from constrained_adapters.adapters.folding import Fold
from constrained_adapters.adapters.mixed import MixedBatch
from constrained_adapters.adapters.row_pairs import RowPairs

NOT_MATRICES = (Embedding, MultiheadAttention, ParamWrapper, _ConvNd)
"""PEFT's layers that are no ``x → W x``; they stay PEFT's."""


class ActingAdapters:
    """The record that all adapted layers of one model share."""

    def __init__(self) -> None:
        self.layers: dict[str, AdaptedLayer] = {}
        self.all_covered = True
        """False where a layer is left to PEFT whatever the set."""
        self.active: list[str] = []
        """The very object that each layer of PEFT holds as its active adapters."""
        self.live: tuple[str, ...] = ()
        self.epoch = 0
        self.num_off = 0
        self.mixed: MixedBatch | None = None

    def adopt(self, layers: Mapping[str, LoraLayer]) -> None:
        """Take over the forward pass of ``layers``; those taken over before stay so."""
        known = {id(adapted.layer): adapted for adapted in self.layers.values()}
        covered = {name: layer for name, layer in layers.items() if not isinstance(layer, NOT_MATRICES)}
        self.all_covered = len(covered) == len(layers)
        self.layers = {
            name: known.get(id(layer)) or AdaptedLayer(layer, self) for name, layer in covered.items()
        }
        for number, adapted in enumerate(self.layers.values()):
            adapted.watches_adapters = number == 0
        self.epoch += 1

    def act(self, active: Sequence[str], live: Sequence[str]) -> None:
        """Make ``active`` the set; ``live`` ones are in training and are never folded. Takes microseconds."""
        self.active, self.live = list(active), tuple(live)
        self.epoch += 1
        for adapted in self.layers.values():
            adapted.layer._active_adapter = self.active

    def release(self) -> None:
        """Free all that was made of the adapters, such as before a move; it is made again when needed."""
        for adapted in self.layers.values():
            adapted.fold.release()
            adapted.pairs.release()
        self.epoch += 1

    def mixable(self, adapter: str) -> bool:
        """Whether ``adapter`` can act on single rows: it only adds ``s B A x`` to layers that are covered."""
        return self.all_covered and all(is_plain(each.layer, adapter) for each in self.layers.values())

    @contextmanager
    def off(self) -> Iterator[None]:
        """No adapter acts within."""
        self.num_off += 1
        try:
            yield
        finally:
            self.num_off -= 1

    @contextmanager
    def mixing(self, batch: MixedBatch) -> Iterator[None]:
        """Each row takes the adapters that ``batch`` says."""
        before, self.mixed = self.mixed, batch
        try:
            yield
        finally:
            self.mixed = before


class AdaptedLayer:
    """Stands in for the forward method of one of PEFT's layers; its hooks and parameters are as before."""

    def __init__(self, layer: Any, acting: ActingAdapters) -> None:
        self.layer = layer
        self.acting = acting
        self.fold = Fold(layer)
        self.pairs = RowPairs(layer)
        self.epoch = -1
        self.watches_adapters = False
        """Whether it looks for adapters that were written to from outside, for all layers."""
        self.layer.forward = self

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, by the way that the record says."""
        layer, acting, fold = self.layer, self.acting, self.fold
        result: Tensor
        if acting.num_off:
            result = layer.base_layer(x, *args, **kwargs)
            return result
        if acting.mixed is not None:
            return acting.mixed.output(self.pairs, x, *args, **kwargs)
        ours = layer._active_adapter is acting.active and not layer._disable_adapters
        ours = ours and not layer.merged_adapters
        if ours and not args and not kwargs:
            if self.watches_adapters and fold.adapters_have_changed():
                acting.epoch += 1
            if self.epoch != acting.epoch or fold.base_has_changed():
                fold.refresh(acting.active, acting.live)
                self.epoch = acting.epoch
            if fold.in_force:
                return self._add_live(x, fold.output(x))
        result = type(layer).forward(layer, x, *args, **kwargs)
        return result

    def _add_live(self, x: Tensor, result: Tensor) -> Tensor:
        """The adapters in training on top, by PEFT's own formula."""
        layer, dtype = self.layer, result.dtype
        for name in self.acting.live:
            if name in layer.lora_A:
                a, b = layer.lora_A[name], layer.lora_B[name]
                cast = layer._cast_input_dtype(x, a.weight.dtype)
                result = result + b(a(layer.lora_dropout[name](cast))) * layer.scaling[name]
        return result.to(dtype)
