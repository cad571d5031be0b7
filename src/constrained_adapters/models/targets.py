"""Which linear layers of a model get an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from torch import nn

from constrained_adapters.errors import ConfigError, UnknownNameError, UsageError

# Keys are left out of "auto": query and key act only through their product, so adapting one is enough,
# and value and output carry what is attended to.
_KEY_ONLY = frozenset({"k_proj", "key", "k", "wk", "to_k", "k_lin"})
_OTHER_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|image|speech)")
_LAYER_INDEX = re.compile(r"\.(\d+)\.")


def resolve_targets(
    model: nn.Module,
    layers: Sequence[str] | Literal["auto"] = "auto",
    layers_to_transform: Sequence[int] | None = None,
) -> list[str]:
    """Return the full names of the linear layers to adapt, in the model's order.

    ``"auto"`` takes the linear layers directly inside each attention module, without those that only make
    keys: q_proj, v_proj, o_proj in Llama, Qwen, Mistral and Gemma; qkv_proj, o_proj in Phi-3; c_attn,
    c_proj (of the attention, not of the MLP) in GPT-2; query_key_value, dense in Falcon, GPT-NeoX and
    Bloom. Embeddings and the output head are never adapted: engines refuse such adapters, and where
    the two are tied, one adapter would change both.

    Args:
        model: A causal language model without adapters.
        layers: Names of layers: last parts (``"q_proj"``), longer ends (``"self_attn.q_proj"``) or whole.
        layers_to_transform: Indices of the decoder layers that are adapted; None adapts all.

    Raises:
        UnknownNameError: A name matches no linear layer; the error lists what there is.
        ConfigError: An embedding or the output head is named, a layer index is out of range, or nothing
            is left.
        UsageError: ``"auto"`` finds no attention.
    """
    available = _adaptable(model)
    chosen = (
        _attention_layers(model, available) if layers == "auto" else _named_layers(model, available, layers)
    )
    if layers_to_transform is None:
        return chosen
    return _of_layers(chosen, layers_to_transform)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, a quantised subclass of it, or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _adaptable(model: nn.Module) -> list[str]:
    head = _output_head(model)
    return [name for name, module in model.named_modules() if is_linear(module) and module is not head]


def _output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _attention_layers(model: nn.Module, available: list[str]) -> list[str]:
    found = []
    for name in available:
        parent, _, last = name.rpartition(".")
        kind = type(model.get_submodule(parent)).__name__
        attends = "attention" in kind.lower() or parent.endswith("attn")
        if attends and last not in _KEY_ONLY and not _OTHER_TOWERS.search(name):
            found.append(name)
    if not found:
        raise UsageError(
            "no attention layers were found in this model, so 'auto' cannot choose what to adapt",
            got=type(model).__name__,
            expected=f"names of linear layers: {_listed(available)}",
            hint="name the layers (domain_specific_layers, or adapter.layers in crma.yaml)",
        )
    return found


def _named_layers(model: nn.Module, available: list[str], layers: Sequence[str]) -> list[str]:
    if not layers:
        raise ConfigError("no layers are named", got="[]", expected=f"'auto' or some of {_listed(available)}")
    found: set[str] = set()
    for wanted in layers:
        matches = [name for name in available if name == wanted or name.endswith(f".{wanted}")]
        if not matches:
            _refuse_embeddings(model, wanted, available)
            raise UnknownNameError.of(
                "linear layer", wanted, _last_parts(available), where=type(model).__name__
            )
        found.update(matches)
    return [name for name in available if name in found]


def _refuse_embeddings(model: nn.Module, wanted: str, available: list[str]) -> None:
    head = _output_head(model)
    for name, module in model.named_modules():
        if (name == wanted or name.endswith(f".{wanted}")) and (
            module is head or isinstance(module, nn.Embedding)
        ):
            raise ConfigError(
                "embeddings and the output head are never adapted: engines refuse such adapters",
                got=wanted,
                expected=f"some of {_listed(available)}",
            )


def _of_layers(names: list[str], indices: Sequence[int]) -> list[str]:
    located = [(name, _layer_index(name)) for name in names]
    there = sorted({index for _, index in located if index is not None})
    for index in indices:
        if index not in there:
            raise ConfigError(
                f"there is no decoder layer {index}",
                got=f"layers_to_transform={list(indices)}",
                expected=f"indices from {there[0]} to {there[-1]}"
                if there
                else "None: no layer has an index",
            )
    kept = [name for name, index in located if index in set(indices)]
    if not kept:
        raise ConfigError(
            "no decoder layer is chosen", got="layers_to_transform=[]", expected="indices, or None"
        )
    return kept


def _layer_index(name: str) -> int | None:
    found = _LAYER_INDEX.search(name)
    return int(found.group(1)) if found else None


def _last_parts(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _listed(names: list[str]) -> str:
    return ", ".join(_last_parts(names)) or "(there are none)"
