"""Which of the base's own weights are trained: all, the biases, or those of some decoder layers.

* ``biases``: every bias and nothing else (BitFit, Ben Zaken et al. 2022, arXiv 2106.10199, section 3; a
  causal language model has no new classification layer, which the paper trains too).
* ``freeze_first k``: the token embeddings and the first k decoder layers stay as they are.
* ``freeze_last k``: the last k decoder layers, the final norm and the output head do.
* ``train_last k`` of L: ``freeze_first`` of L − k.

Embeddings tied to the head belong to both ends, and are trained by ``all`` only. What is frozen is the same
at any step, so it costs neither gradient nor optimizer state; freezing single weights by their importance is
a constraint (:mod:`constrained_adapters.constraints.frozen`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from constrained_adapters.errors import ConfigError
from constrained_adapters.models.decoder import decoder_layers

Which = Literal["all", "biases", "freeze_first", "freeze_last", "train_last"]


@dataclass(frozen=True)
class Part:
    """What of the weights is trained.

    Args:
        which: See the module.
        num_layers: k, for those that count layers.
    """

    which: Which = "all"
    num_layers: int = 0


EVERYTHING = Part()


def train_only(model: Any, part: Part = EVERYTHING) -> dict[str, nn.Parameter]:
    """Make the parameters of ``part`` require a gradient, and no others.

    Args:
        model: A causal language model without adapters.
        part: What is trained.

    Returns:
        The trained parameters by name; tied ones once.

    Raises:
        ConfigError: The model has no such part: no biases, or not that many layers.
        ModelError: Layers are counted, and the model's decoder layers cannot be found.
    """
    named: dict[str, nn.Parameter] = dict(model.named_parameters())
    if part.which == "all":
        chosen = set(named)
    elif part.which == "biases":
        chosen = _biases(model, named)
    else:
        chosen = set(named) - _frozen(model, named, part)
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameter for name, parameter in named.items() if name in chosen}


def _biases(model: Any, named: dict[str, nn.Parameter]) -> set[str]:
    found = {name for name in named if name.rpartition(".")[2] == "bias"}
    if not found:
        raise ConfigError(
            "this base has no biases, so there is nothing that bitfit could train",
            got=f"{type(model).__name__}: {len(named)} parameters, none of them a bias",
            expected="a base with biases, such as Qwen2 (query, key, value) or GPT-2 (all layers)",
            hint="lora, or bottleneck adapters, are as small and fit any base",
        )
    return found


def _frozen(model: Any, named: dict[str, nn.Parameter], part: Part) -> set[str]:
    layers = [layer.name for layer in decoder_layers(model)]
    from_bottom = part.which != "freeze_last"
    least = 1 if part.which == "train_last" else 0
    if not least <= part.num_layers < len(layers) + least:
        raise ConfigError(
            f"{part.which} of {part.num_layers} decoder layers",
            got=f"a base with {len(layers)}",
            expected=f"{least} to {len(layers) - 1 + least}",
        )
    count = len(layers) - part.num_layers if part.which == "train_last" else part.num_layers
    held = layers[:count] if from_bottom else layers[len(layers) - count :]
    head = model.get_output_embeddings()
    below = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    tied = {id(p) for p in head.parameters()} & below if head is not None else set()
    in_held = tuple(f"{name}." for name in held)
    in_layers = tuple(f"{name}." for name in layers)

    def stays(name: str, parameter: nn.Parameter) -> bool:
        if name.startswith(in_layers):
            return name.startswith(in_held)
        return id(parameter) in tied or (id(parameter) in below) == from_bottom

    return {name for name, parameter in named.items() if stays(name, parameter)}
