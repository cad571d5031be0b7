"""Where the decoder layers of a model are, and where in each of them attention and MLP begin and end."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from constrained_adapters.errors import ModelError

Place = Literal["attention", "mlp"]

_OTHER_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|image|speech|encoder)([._]|$)")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|feed_?forward|ffn|moe", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln", re.IGNORECASE)
# Where a norm stands between the end of attention or MLP and the residual stream, its name; the first that a
# layer has. Where there is no norm after the MLP, "post_attention_layernorm" is the one before the MLP.
_MLP_END = ("post_feedforward_layernorm", "post_mlp_layernorm")
_ATTENTION_END = ("post_self_attn_layernorm", "post_attention_layernorm")


@dataclass(frozen=True)
class Sublayer:
    """One of the two parts of a decoder layer that add to the residual stream.

    Args:
        begin: The module that reads the (normed) residual stream.
        end: The module whose output is added to it: the same one, or the norm after it.
    """

    begin: nn.Module
    end: nn.Module


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of the decoder.

    Args:
        name: Its name in the model, such as ``model.layers.0``.
        module: The layer.
        sublayers: Attention and MLP.
    """

    name: str
    module: nn.Module
    sublayers: dict[Place, Sublayer]


def decoder_layers(model: nn.Module) -> list[DecoderLayer]:
    """The decoder layers in their order: elements of a module list that hold an attention and an MLP.

    Args:
        model: A causal language model of transformers, such as Llama, Qwen2, Mistral, Gemma, Phi or GPT-2.

    Raises:
        ModelError: There are none, or they add the residual stream inside of attention or MLP (Bloom, MPT),
            where what they add cannot be told from the stream.
    """
    found = []
    for name, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList) and not _OTHER_TOWERS.search(name):
            layers = [_describe(f"{name}.{index}", module) for index, module in enumerate(stack)]
            found += [layer for layer in layers if layer is not None]
    if not found:
        raise ModelError(
            "the decoder layers of this model were not found",
            got=type(model).__name__,
            expected="a list of modules that each hold an attention and an MLP",
            hint="lora and crma adapt single linear layers, and need no decoder layers",
        )
    return found


def decoder_stack(model: nn.Module) -> nn.Module:
    """The module that owns the list of decoder layers and returns the final states.

    Raises:
        ModelError: There are no decoder layers, or more than one list of them.
    """
    owners = {layer.name.rpartition(".")[0].rpartition(".")[0] for layer in decoder_layers(model)}
    if len(owners) > 1:
        raise ModelError(
            "the model has more than one decoder",
            got=", ".join(sorted(owners)),
            expected="one list of layers",
        )
    return model.get_submodule(owners.pop())


def _describe(name: str, layer: nn.Module) -> DecoderLayer | None:
    attention, mlp = _child(layer, _ATTENTION), _child(layer, _MLP)
    if attention is None or mlp is None:
        return None
    for part in (attention, mlp):
        if "residual" in inspect.signature(part.forward).parameters:
            raise ModelError(
                "this architecture adds the residual stream inside of attention or MLP",
                got=f"{name}: {type(part).__name__}.forward(…, residual)",
                expected="parts that return what is added, as in Llama, Qwen2, Mistral, Gemma, GPT-2",
                hint="lora and crma fit this base",
            )
    mlp_end = _first(layer, _MLP_END)
    attention_end = _first(layer, _ATTENTION_END) if mlp_end is not None else None
    return DecoderLayer(
        name,
        layer,
        {"attention": Sublayer(attention, attention_end or attention), "mlp": Sublayer(mlp, mlp_end or mlp)},
    )


def _child(layer: nn.Module, pattern: re.Pattern[str]) -> nn.Module | None:
    return next(
        (child for name, child in layer.named_children() if pattern.search(name) and not _NORM.search(name)),
        None,
    )


def _first(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found: Iterator[nn.Module] = (getattr(layer, name) for name in names if hasattr(layer, name))
    return next(found, None)
