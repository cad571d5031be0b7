"""Progressive networks: a narrow transformer a domain, beside the frozen base and the frozen earlier columns.

Rusu et al. 2016, arXiv 1606.04671, equation 2 with the non-linear lateral adapters of its section 2. Column 0
is the base. Column k has one decoder layer F_i of width w for each of the base's L, of the base's own
architecture (attention and MLP, with the base's masks and position embeddings):

* before layer i it reads what is there, z_i = [α_0 n(h_i); α_1 n(c_i^1); …; α_{k−1} n(c_i^{k−1})],
  with h_i the state that the base's layer i reads and n(x) = x / rms(x);
* c_{i+1}^k = F_i(c_i^k + U_i relu(V_i z_i)), with c_0^k = 0;
* the output head reads h + W n(c_L^k + U_L relu(V_L z_L)), h = h_L being the base's own final state.

Only the last column that acts is heard, and neither the base nor an earlier column reads a later one. So a
finished domain's column computes what it computed when it was learnt, bit for bit, whatever is learnt later:
zero drift where the domain is known. No gradient passes through the base.

Deviations: the laterals enter the residual stream before a layer instead of the sum inside a non-linearity;
each source is divided by its rms first, since a residual stream grows over the layers, so α starts at 1 and
not small; the base's final state reaches the head as it is, through no lateral, and W starts at zero, so that
an untrained column says what the base says.

Cost of column k: per token L·w·(d + k·w) multiply-adds for the laterals, and a transformer of width w; all
columns up to k run, so time grows with the number of domains, for the laterals with its square. A cache holds
the keys and values of the columns behind those of the base.

Axis letters: b batch, s sequence, d width of the base, w width of a column.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, rms_norm
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache

from constrained_adapters.adapters.inserted import Family
from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.models.decoder import decoder_layers, decoder_stack
from constrained_adapters.models.targets import is_linear

_INNER_WIDTHS = ("intermediate_size", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size")


@final
@dataclass(frozen=True)
class Columns(Family):
    """Columns of one width.

    Args:
        width: w; heads are as wide as the base's, and at least one.

    Raises:
        ConfigError: The width is not 1 or more.
    """

    kind: ClassVar[str] = "progressive"
    reads_earlier: ClassVar[bool] = True

    width: int = 64

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(
                "a column cannot have this width", got=f"width={self.width}", expected="1 or more"
            )

    def new_set(self, base: Any, position: int) -> nn.Module:
        """A column that reads the base and ``position`` earlier columns."""
        device = next(base.parameters()).device
        return Column(base, self.width, position).to(device, torch.float32)

    def hang(self, base: Any, acting: list[nn.Module]) -> list[RemovableHandle]:
        """Before each decoder layer, and behind the last state."""
        if base.config._attn_implementation not in {"sdpa", "eager"}:
            raise ModelError(
                "columns compute in float32, which this attention cannot",
                got=f"attn_implementation={base.config._attn_implementation!r}",
                expected="sdpa or eager",
            )
        layers = decoder_layers(base)
        walk = _Walk(acting, base.config.get_text_config(), len(layers))
        return [
            *(
                layer.module.register_forward_pre_hook(walk.before(index), with_kwargs=True)
                for index, layer in enumerate(layers)
            ),
            decoder_stack(base).register_forward_hook(walk.behind),
        ]


@final
class Column(nn.Module):
    """One domain's column.

    Args:
        base: Gives the architecture.
        width: w.
        position: How many columns there are before it.

    Raises:
        ModelError: The base's decoder layer cannot be made narrow.
    """

    def __init__(self, base: Any, width: int, position: int) -> None:
        super().__init__()
        self.width = width
        layers = decoder_layers(base)
        hidden_size = base.config.get_text_config().hidden_size
        config = narrow_config(base.config.get_text_config(), width)
        self.laterals = nn.ModuleList(Lateral(hidden_size, width, position) for _ in range(len(layers) + 1))
        self.layers = nn.ModuleList(
            _narrow_layer(base, type(layer.module), config, index) for index, layer in enumerate(layers)
        )
        for index, layer in enumerate(self.layers):
            for module in layer.modules():
                if hasattr(module, "layer_idx"):  # its place in the cache
                    module.layer_idx = len(layers) * (position + 1) + index  # type: ignore[assignment]
        self.out = nn.Linear(width, hidden_size, bias=False)
        nn.init.zeros_(self.out.weight)


@final
class Lateral(nn.Module):
    """U relu(V [α_0 n(h); α_1 n(c¹); …]), read into one column before one layer.

    Args:
        hidden_size: d.
        width: w.
        position: How many columns are read beside the base.
    """

    def __init__(self, hidden_size: int, width: int, position: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(position + 1))
        self.down = nn.Linear(hidden_size + position * width, width, bias=False)
        self.up = nn.Linear(width, width, bias=False)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """From states (b, s, d) of the base and (b, s, w) of earlier columns to (b, s, w)."""
        scaled = [alpha * normed(source) for alpha, source in zip(self.alpha, sources, strict=True)]
        result: Tensor = self.up(relu(self.down(torch.cat(scaled, dim=-1))))
        return result


def normed(x: Tensor) -> Tensor:
    """Divide by the root of the mean square over the last axis; float32 at least."""
    return rms_norm(x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[-1:], eps=1e-6)


def narrow_config(config: Any, width: int) -> Any:
    """The settings of a base's architecture at width ``width``; heads stay as wide as they are."""
    narrow = copy.deepcopy(config)
    wide = config.hidden_size
    head = getattr(config, "head_dim", None) or wide // config.num_attention_heads
    narrow.hidden_size = width
    narrow.num_attention_heads = narrow.num_key_value_heads = max(1, width // head)
    narrow.head_dim = head
    for name in _INNER_WIDTHS:
        if isinstance(getattr(config, name, None), int):
            setattr(narrow, name, max(1, round(getattr(config, name) * width / wide)))
    return narrow


def _narrow_layer(base: Any, kind: type[nn.Module], config: Any, index: int) -> nn.Module:
    try:
        layer = kind(config, index)
        for module in layer.modules():
            base._init_weights(module)  # whatever the architecture wants to start otherwise than drawn
    except Exception as error:
        raise ModelError(
            "a narrow column of this architecture cannot be made",
            got=f"{kind.__name__} of width {config.hidden_size}: {type(error).__name__}: {error}",
            hint="another width, a multiple of the base's heads; or separate LoRA adapters",
        ) from None
    for module in layer.modules():
        if is_linear(module):
            assert isinstance(module.weight, Tensor)
            fan_in = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            nn.init.normal_(module.weight, std=fan_in**-0.5)
    return layer


class _Walk:
    """The states of the columns while a pass goes up the base's layers."""

    def __init__(self, acting: list[nn.Module], config: Any, num_layers: int) -> None:
        self._acting, self._config, self._num_layers = acting, config, num_layers
        self._states: list[Tensor] = []

    def before(self, index: int) -> Any:
        """The hook before the base's layer ``index``: each column's layer of this index."""

        def step(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._acting:
                return
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                self._begin(hidden, [*args, *kwargs.values()])
            rest = {key: _in_float32(value) for key, value in kwargs.items() if key != "hidden_states"}
            sources, after = [hidden], []
            for column, state in zip(self._acting, self._states, strict=True):
                assert isinstance(column, Column)
                read = state + column.laterals[index](sources)
                output = column.layers[index](read, *map(_in_float32, args[1:]), **rest)
                after.append(output[0] if isinstance(output, tuple) else output)
                sources.append(state)
            self._states = after

        return step

    def behind(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The hook behind the decoder: add what the last column says to the final state."""
        if not self._acting:
            return output
        hidden: Tensor = output[0]
        states, self._states = self._states, []
        last = self._acting[-1]
        assert isinstance(last, Column)
        read = states[-1] + last.laterals[-1]([hidden, *states[:-1]])
        result = (hidden + last.out(normed(read))).to(hidden.dtype)
        if isinstance(output, tuple):
            return (result, *output[1:])
        output.last_hidden_state = result
        return output

    def _begin(self, hidden: Tensor, given: list[Any]) -> None:
        self._states = []
        for column in self._acting:
            assert isinstance(column, Column)
            self._states.append(hidden.new_zeros(*hidden.shape[:-1], column.width, dtype=torch.float32))
        for cache in given:
            if isinstance(cache, Cache):
                self._make_room(cache)

    def _make_room(self, cache: Cache) -> None:
        """Layers of the cache for the columns, behind those of the base; it reorders and cuts them alike."""
        if not isinstance(cache, DynamicCache):
            raise ModelError(
                "columns can keep their keys and values in a growing cache only",
                got=type(cache).__name__,
                expected="DynamicCache, which generate() makes by itself",
            )
        while len(cache.layers) < self._num_layers * (len(self._acting) + 1):
            cache.layers.extend(DynamicCache(config=self._config).layers)


def _in_float32(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_in_float32, value))
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
