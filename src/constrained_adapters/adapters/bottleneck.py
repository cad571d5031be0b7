"""Bottleneck adapters: a narrow layer after, or beside, the attention and the MLP of each decoder layer.

With y what a part adds to the residual stream, x what the part reads (after its norm), W_down: w × d and
W_up: d × w,

* in sequence: y ← y + s·(W_up f(W_down y + b_down) + b_up);
* ``parallel``: y ← y + s·(W_up f(W_down x + b_down) + b_up).

``houlsby`` stands after attention and after the MLP (Houlsby et al. 2019, arXiv 1902.00751, figure 2);
``pfeiffer`` after the MLP only (the adapters of Pfeiffer et al. 2021, arXiv 2005.00247); ``parallel`` beside
the MLP, scaled by 4 (He et al. 2022, arXiv 2110.04366, table 1). Several sets act one after another, or side
by side where they are parallel.

Start: in sequence all matrices are drawn from a Gaussian of 10⁻², cut at two deviations, so that an adapter
is near the identity (1902.00751, section 3.6); parallel ones start as LoRA does, W_up at zero. Biases are
zero.

Deviations: decoders put their norm *before* a part, so there is none behind the adapter, and the norms are
not trained (1902.00751 trains them too). Where a norm follows a part (Gemma 2 and 3, OLMo 2), the adapter
comes after that norm, next to the residual stream. The library of the field, ``adapters`` 1.3, wants
transformers 4.57 and no later, so these few lines are ours.

Cost per token and place: 2·w·d multiply-adds and 2·w·d + w + d parameters, float32; hidden states keep their
type.

Axis letters: d width of the model, w of the bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from constrained_adapters.adapters.inserted import Family
from constrained_adapters.errors import ConfigError
from constrained_adapters.models.decoder import Place, decoder_layers

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


@final
@dataclass(frozen=True)
class Bottlenecks(Family):
    """Bottleneck adapters of one shape.

    Args:
        width: w.
        places: Where in each decoder layer.
        parallel: Whether they read what the part reads, instead of what it returns.
        activation: f.
        scaling: s.

    Raises:
        ConfigError: A setting is out of range.
    """

    kind: ClassVar[str] = "bottleneck"
    reads_earlier: ClassVar[bool] = False

    width: int = 64
    places: tuple[Place, ...] = ("attention", "mlp")
    parallel: bool = False
    activation: Literal["gelu", "relu"] = "gelu"
    scaling: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "width": (self.width >= 1, "1 or more"),
            "places": (
                bool(self.places) and set(self.places) <= {"attention", "mlp"},
                "attention, mlp, or both",
            ),
            "activation": (self.activation in ACTIVATIONS, ", ".join(ACTIVATIONS)),
            "scaling": (self.scaling > 0.0, "above 0"),
        }
        for name, (right, expected) in checks.items():
            if not right:
                raise ConfigError(
                    f"bottleneck adapters cannot have this {name}",
                    got=repr(getattr(self, name)),
                    expected=expected,
                )

    def new_set(self, base: Any, position: int) -> nn.Module:
        """One bottleneck for each layer and place."""
        made = nn.ModuleDict()
        for index, layer in enumerate(decoder_layers(base)):
            device = next(layer.module.parameters()).device
            for place in self.places:
                made[_key(index, place)] = Bottleneck(base.config.get_text_config().hidden_size, self).to(
                    device
                )
        return made

    def hang(self, base: Any, acting: list[nn.Module]) -> list[RemovableHandle]:
        """Behind each part; and before it, to see what it reads, where they are parallel."""
        handles = []
        for index, layer in enumerate(decoder_layers(base)):
            for place in self.places:
                junction, part = _Junction(_key(index, place), acting, self.parallel), layer.sublayers[place]
                if self.parallel:
                    handles.append(part.begin.register_forward_pre_hook(junction.read, with_kwargs=True))
                handles.append(part.end.register_forward_hook(junction.add))
        return handles


NAMED: Mapping[str, Bottlenecks] = {
    "houlsby": Bottlenecks(),
    "pfeiffer": Bottlenecks(places=("mlp",), activation="relu"),
    "parallel": Bottlenecks(places=("mlp",), activation="relu", parallel=True, scaling=4.0),
}
"""The shapes of the three papers, at width 64."""


@final
class Bottleneck(nn.Module):
    """s·(W_up f(W_down x + b_down) + b_up), computed in float32 and returned in the type of x.

    Args:
        hidden_size: d.
        family: The settings.
    """

    def __init__(self, hidden_size: int, family: Bottlenecks) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, family.width)
        self.up = nn.Linear(family.width, hidden_size)
        self.activation, self.scaling = ACTIVATIONS[family.activation](), family.scaling
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
            nn.init.trunc_normal_(linear.weight, std=1e-2, a=-2e-2, b=2e-2)
        if family.parallel:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (…, d) in and out."""
        inner = self.activation(self.down(x.to(self.down.weight.dtype)))
        result: Tensor = self.scaling * self.up(inner)
        return result.to(x.dtype)


class _Junction:
    """One place in one layer, where the sets that act come in."""

    def __init__(self, key: str, acting: list[nn.Module], parallel: bool) -> None:
        self._key, self._acting, self._parallel = key, acting, parallel
        self._read: Tensor | None = None

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._read = args[0] if args else kwargs["hidden_states"]

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        read, self._read = self._read, None
        for each in self._acting:
            bottleneck = each.get_submodule(self._key)
            hidden = hidden + bottleneck(hidden if read is None else read)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _key(index: int, place: Place) -> str:
    return f"{index}_{place}"
