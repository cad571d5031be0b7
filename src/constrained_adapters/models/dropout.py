"""Dropout for a while, on models that have none of their own: Llama, Qwen, Mistral, Gemma and their like.

Attention weights are dropped by the attention function itself (eager, sdpa, flash), which reads the rate from
its module at each call; what attention and MLP add to the residual stream, and the MLP's inner activations,
are dropped by hooks. Nothing of it acts in evaluation mode or within ``generate``, in whatever mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

from torch import Tensor, nn
from transformers import PreTrainedModel

from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.decoder import decoder_layers
from constrained_adapters.models.modes import evaluating

_RATE = "attention_dropout"
_LAST_OF_MLP = ("down_proj", "c_proj", "fc2", "w2", "dense_4h_to_h", "fc_out")
_NO_DROPOUT = ("flex_attention",)


@final
class TrainingDropout:
    """Dropout in force; :meth:`remove` takes it off and leaves the model as it was.

    Args:
        model: A causal language model of transformers, adapters included.
        attention: Rate of attention weights, 0 … 1 (1 excluded).
        residual: Rate of the outputs of attention and MLP, before they are added to the residual stream.
        mlp: Rate of the MLP's activations before its last linear layer.

    Raises:
        ConfigError: A rate is out of range, or the attention in force cannot drop.
        ModelError: The model's layers, attention or MLP are not of a kind that is known.
    """

    def __init__(
        self, model: nn.Module, *, attention: float = 0.2, residual: float = 0.1, mlp: float = 0.1
    ) -> None:
        for name, rate in (("attention", attention), ("residual", residual), ("mlp", mlp)):
            if not 0.0 <= rate < 1.0:
                raise ConfigError(
                    f"the {name} dropout is out of range",
                    got=repr(rate),
                    expected="0 or more, and under 1",
                    hint="0.1",
                )
        self._undo: list[Callable[[], None]] = []
        # Around it there may be adapters whose parts are named like those of a decoder.
        inner = next((each for each in model.modules() if isinstance(each, PreTrainedModel)), None)
        if inner is None:
            raise ModelError(
                "dropout fits models of transformers only",
                got=type(model).__name__,
                hint="attention_dropout: 0, residual_dropout: 0, mlp_dropout: 0",
            )
        layers = decoder_layers(inner)
        attentions = [layer.sublayers["attention"].begin for layer in layers]
        lasts = [_last_linear(layer.sublayers["mlp"].begin) for layer in layers] if mlp else []
        if attention:
            _check_attention(inner, attentions)
            self._set_rates(inner, attentions, attention)
        if residual:
            for layer in layers:
                for part in layer.sublayers.values():
                    self._add(part.end.register_forward_hook(_after(residual)))
        for last in lasts:
            self._add(last.register_forward_pre_hook(_before(mlp)))
        self._hold_generation(inner)

    def remove(self) -> None:
        """Take it off; calling it again does nothing."""
        while self._undo:
            self._undo.pop()()

    def _add(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def _set_rates(self, model: nn.Module, attentions: list[nn.Module], rate: float) -> None:
        """In the modules, which read it at each call, and in the config, where others look."""
        configs = {id(module.config): module.config for module in model.modules() if _has_rate(module)}
        for owner in [*attentions, *configs.values()]:
            before = getattr(owner, _RATE)
            setattr(owner, _RATE, rate)
            self._undo.append(partial(setattr, owner, _RATE, before))

    def _hold_generation(self, inner: PreTrainedModel) -> None:
        """Generate in evaluation mode, also where the model is in training mode."""
        generate: Any = getattr(inner, "generate", None)
        if generate is None:
            return

        def held(*args: Any, **kwargs: Any) -> Any:
            with evaluating(inner):
                return generate(*args, **kwargs)

        had = inner.__dict__.get("generate")
        inner.__dict__["generate"] = held

        def undo() -> None:
            if had is None:
                inner.__dict__.pop("generate", None)
            else:
                inner.__dict__["generate"] = had

        self._undo.append(undo)


def _has_rate(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), _RATE)


def _check_attention(model: nn.Module, attentions: list[nn.Module]) -> None:
    for module in attentions:
        if not isinstance(getattr(module, _RATE, None), float | int):
            raise ModelError(
                "attention dropout does not act on this architecture",
                got=f"{type(module).__name__} has no rate that it reads at each call",
                expected="attention as in Llama, Qwen, Mistral, Gemma",
                hint="attention_dropout: 0",
            )
    for module in model.modules():
        chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if chosen in _NO_DROPOUT:
            raise ConfigError(
                "this attention cannot drop",
                got=f"attn_implementation={chosen!r}",
                expected="sdpa, eager or flash_attention_2",
                hint="model.set_attn_implementation('sdpa'), or attention_dropout: 0",
            )


def _last_linear(mlp: nn.Module) -> nn.Module:
    for name in _LAST_OF_MLP:
        found = getattr(mlp, name, None)
        if isinstance(found, nn.Module):
            return found
    raise ModelError(
        "the last linear layer of this MLP was not found",
        got=f"{type(mlp).__name__} with {', '.join(name for name, _ in mlp.named_children())}",
        expected=" or ".join(_LAST_OF_MLP),
        hint="mlp_dropout: 0",
    )


def _after(rate: float) -> Callable[[nn.Module, Any, Any], Any]:
    """Drop the first tensor of what a module returns."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not module.training:
            return None
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], rate), *output[1:])
        return nn.functional.dropout(output, rate)

    return hook


def _before(rate: float) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
    """Drop the tensor that a module reads."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        return (nn.functional.dropout(args[0], rate), *args[1:]) if module.training else None

    return hook
