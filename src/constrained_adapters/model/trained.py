"""What is trained of somebody's own model, and which of it a memory of inputs can bind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from constrained_adapters.adapters.lora import AdapterPair, lora_layers, own_scaling
from constrained_adapters.errors import ModelError, UnknownNameError
from constrained_adapters.models.targets import is_linear


@dataclass(frozen=True)
class Trained:
    """The trained parameters of a model, by what can be done with them.

    Args:
        kind: ``lora`` where the A of LoRA layers are bound, ``full`` where weight matrices themselves are.
        name: Of the adapters in training, for messages.
        layers: The layers whose inputs matter, by their name in the base.
        matrices: What is bound, by a name that starts with its layer's.
        layer_of: The layer of each of ``matrices``.
        transposed: Those of ``matrices`` that are kept as d_in × d_out.
        paired: The B that belong to bound A: free, and harmless as ``A a = 0``.
        unbound: Names and parameters that are trained and that no memory of inputs can bind.
        pairs: Of ``lora``: the (A, B) of ``matrices``.
    """

    kind: Literal["lora", "full"]
    name: str
    layers: dict[str, nn.Module]
    matrices: dict[str, nn.Parameter]
    layer_of: dict[str, str]
    transposed: list[str]
    paired: list[nn.Parameter]
    unbound: dict[str, nn.Parameter]
    pairs: list[AdapterPair] = field(default_factory=list)


def find_trained(model: nn.Module, layers: Sequence[str] | None) -> Trained:
    """Sort the trained parameters of ``model``.

    Args:
        model: As it is trained, PEFT's wrapper included.
        layers: Names or ends of names of the layers to bind; None binds every one that can be.

    Raises:
        ModelError: Nothing is trained, or nothing of it can be bound.
        UnknownNameError: A name of ``layers`` is no trained linear layer.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ModelError(
            "nothing of this model is trained",
            got=f"{type(model).__name__}: no parameter requires a gradient",
            hint="get_peft_model(model, LoraConfig(…)) first; a loaded adapter wants is_trainable=True",
        )
    pairs = list(_lora_pairs(model))
    found = _of_lora(pairs) if pairs else _of_weights(model)
    if layers is not None:
        found = _only(found, layers, type(model).__name__)
    if not found.matrices:
        kinds = sorted({name.rpartition(".")[2] for name in trained})
        raise ModelError(
            "nothing that is trained can be bound by a memory of inputs",
            got=f"{len(trained)} trained parameters, such as {min(trained)} ({', '.join(kinds)})",
            expected="LoRA on linear layers, or their weights themselves",
        )
    bound = {id(p) for p in (*found.matrices.values(), *found.paired)}
    found.unbound.update({name: p for name, p in trained.items() if id(p) not in bound})
    return found


def base_of(model: nn.Module) -> Any:
    """The causal language model inside PEFT's wrapper, adapters in its layers.

    Raises:
        ModelError: It has no head that predicts tokens, so it cannot write text of its own.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    head = getattr(base, "get_output_embeddings", None)
    if head is None or head() is None or not base.can_generate():
        raise ModelError(
            "this model has no language-model head, so it cannot write the text that its memory is made from",
            got=type(base).__name__,
            expected="a causal language model (AutoModelForCausalLM)",
        )
    return base


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without what several processes or a compiler put around it."""
    inner: nn.Module = extract_model_from_parallel(model)
    return inner


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within this context every PEFT layer of ``model`` computes what the base computes.

    It looks at layers, not at the wrapper, so that ``get_peft_model``, ``model.add_adapter`` and
    SFTTrainer's own wrapping are served alike. What is trained is left as it was.
    """
    switched = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not module.disable_adapters
    ]
    required = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for module in switched:
            module.enable_adapters(False)
        yield
    finally:
        for module in switched:
            module.enable_adapters(True)
        for parameter, was in required:
            parameter.requires_grad_(was)


def _lora_pairs(model: nn.Module) -> Iterator[tuple[str, str, LoraLayer, nn.Parameter, list[nn.Parameter]]]:
    """(layer, adapter, module, A, B) of each LoRA in training on a linear layer."""
    for layer, module in lora_layers(model).items():
        for adapter, part in module.lora_A.items():
            a: Any = getattr(part, "weight", None)
            # A LoRA of expert tensors keeps several matrices in one A; those of a convolution are no matrix.
            if isinstance(module, ParamWrapper) or a is None or a.ndim != 2 or not a.requires_grad:
                continue
            yield layer, adapter, module, a, [module.lora_B[adapter].weight]  # type: ignore[list-item]


def _of_lora(pairs: Sequence[tuple[str, str, LoraLayer, nn.Parameter, list[nn.Parameter]]]) -> Trained:
    found = Trained("lora", ", ".join(dict.fromkeys(pair[1] for pair in pairs)), {}, {}, {}, [], [], {})
    for layer, adapter, module, a, b in pairs:
        key = f"{layer} {adapter}"
        found.layers[layer] = module  # type: ignore[assignment]  # LoraLayer is the mixin of a module
        found.matrices[key], found.layer_of[key] = a, layer
        found.paired.extend(b)
        found.pairs.append(AdapterPair(layer, a, b[0], own_scaling(module, adapter)))
    return found


def _of_weights(model: nn.Module) -> Trained:
    found = Trained("full", "full fine-tuning", {}, {}, {}, [], [], {})
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    seen: set[int] = set()
    for name, module in model.named_modules():
        # The head's outputs are the whole vocabulary: no memory of them fits.
        weight: Any = getattr(module, "weight", None)
        if not is_linear(module) or module is head or not weight.requires_grad or id(weight) in seen:
            continue
        seen.add(id(weight))
        found.layers[name] = module
        found.matrices[name], found.layer_of[name] = weight, name
        if type(module).__name__ == "Conv1D":
            found.transposed.append(name)
    return found


def _only(found: Trained, wanted: Sequence[str], kind: str) -> Trained:
    def chosen(layer: str) -> bool:
        return any(layer == name or layer.endswith(f".{name}") for name in wanted)

    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in found.layers):
            ends = {layer.rpartition(".")[2] for layer in found.layers}
            raise UnknownNameError.of("trained linear layer", name, ends, where=f"layers, {kind}")
    matrices = {key: p for key, p in found.matrices.items() if chosen(found.layer_of[key])}
    kept = [b for (key, _), b in zip(found.matrices.items(), found.paired, strict=False) if key in matrices]
    return Trained(
        kind=found.kind,
        name=found.name,
        layers={layer: module for layer, module in found.layers.items() if chosen(layer)},
        matrices=matrices,
        layer_of={key: found.layer_of[key] for key in matrices},
        transposed=[key for key in found.transposed if key in matrices],
        paired=kept,
        unbound={},
        pairs=[pair for pair in found.pairs if chosen(pair.module)],
    )
