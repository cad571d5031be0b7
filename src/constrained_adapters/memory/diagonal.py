"""The diagonal of the Fisher: how much each weight by itself matters to the finished domains.

F_i = E over loss tokens of the squared derivative of log p(y|x) by weight i, y drawn from the model itself
(the true Fisher, Kunstner et al. 2019, arXiv 1905.12558), dropout off. The gradient is squared *per
example*, summed over the example's tokens: F = Σ_n (Σ_t ∇ log p(y_nt))² / Σ_n (loss tokens of n). Terms
between tokens vanish in expectation, since each label is drawn given the same prefix, so this estimates the
Fisher per loss token; neither the batch size nor the length of the examples changes what it estimates.

Two ways to it: of any parameters, one backward pass per example; and of the full-size weight of
adapted layers, from their inputs and output gradients, without the weights having gradients.

Axis letters: n tokens of a batch, s tokens of an example, d width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from constrained_adapters.errors import ConfigError, TrainingError, WorkspaceError
from constrained_adapters.models.modes import evaluating

FORMAT_VERSION = 1
IGNORED = -100


def parameter_fisher(
    model: Any,
    parameters: Mapping[str, nn.Parameter],
    rows: Sequence[tuple[Tensor, Tensor]],
    *,
    generator: torch.Generator,
    domain: str = "",
) -> dict[str, Tensor]:
    """F of each parameter, shaped as it.

    Args:
        model: A causal LM; its modes, gradients and the global random state are left as they were.
        parameters: By name; they must require gradients.
        rows: (token ids, labels) of examples, each of shape (s,); tokens with label −100 carry no loss.
        generator: CPU source of the drawn labels.
        domain: Named in errors.

    Raises:
        TrainingError: No token carries loss, or F is not finite.

    Cost: one forward and one backward pass per example; two numbers per parameter in memory.
    """
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    device, num_tokens = model.get_input_embeddings().weight.device, 0
    with evaluating(model):
        for ids, labels in rows:
            place = labels[1:] != IGNORED
            if not bool(place.any()):
                continue
            num_tokens += int(place.sum())
            logits = model(input_ids=ids.long()[None].to(device), use_cache=False).logits[0, :-1]
            log_probs = torch.log_softmax(logits[place.to(device)].double(), dim=-1)
            drawn = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(device)
            gradients = torch.autograd.grad(
                log_probs.gather(1, drawn).sum(), list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name].addcmul_(gradient, gradient)
    return _per_token(total, num_tokens, domain)


class LayerFisher:
    """F of the full-size weight of each adapted layer: an accumulator of ``gather_statistics``.

    With input a_t and output gradient g_t the gradient of one example is Σ_t g_t a_tᵀ (d_out × d_in).
    """

    wants_drawn_labels = True
    wants_true_labels = False

    def __init__(self) -> None:
        self._total: dict[str, Tensor] = {}
        self._lengths: list[int] = []
        self._num_tokens = 0

    def start_batch(self, lengths: list[int], loss_lengths: list[int]) -> None:
        """Note where each example ends."""
        self._lengths = lengths
        self._num_tokens += sum(loss_lengths)

    def add_inputs(self, name: str, key: str, rows: Tensor) -> None:
        """Nothing: inputs come again with their gradients."""

    def add_gradients(self, name: str, key: str, rows: Tensor, gradients: Tensor, source: str) -> None:
        """Square each example's gradient of the loss on drawn labels."""
        if source != "drawn":
            return
        for a, g in zip(rows.split(self._lengths), gradients.split(self._lengths), strict=True):
            gradient = g.T @ a
            if name not in self._total:
                self._total[name] = torch.zeros_like(gradient)
            self._total[name].addcmul_(gradient, gradient)

    def end_batch(self) -> None:
        """Nothing."""

    def fisher(self, domain: str = "") -> dict[str, Tensor]:
        """F by layer, each (d_out, d_in).

        Raises:
            TrainingError: No token carried loss, or F is not finite.
        """
        return _per_token(self._total, self._num_tokens, domain)


def _per_token(total: Mapping[str, Tensor], num_tokens: int, domain: str) -> dict[str, Tensor]:
    of_domain = f" of domain {domain!r}" if domain else ""
    if num_tokens == 0:
        raise TrainingError(
            f"no token of these examples{of_domain} carries loss", expected="at least one answer token"
        )
    broken = [name for name, value in total.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise TrainingError(
            f"the Fisher{of_domain} is not finite",
            got=broken[0],
            hint="look for broken weights or examples; lower the learning rate",
        )
    return {name: value / num_tokens for name, value in total.items()}


@dataclass(frozen=True)
class DiagonalMemory:
    """The importance of weights to all finished domains together.

    Args:
        domains: In order.
        importance: S = Σ_k F^k by name; with decay γ, S = Σ_k γ^(T−k) F^k.
        anchor: m = Σ_k F^k θ*^k / S by name, where weights were given; with decay the last domain's θ*; see
            :mod:`constrained_adapters.constraints.ewc`.
        constant: c ≥ 0 with Σ_k F^k (θ − θ*^k)² = S (θ − m)² + c, summed over all weights; with decay 0.
    """

    domains: tuple[str, ...] = ()
    importance: dict[str, Tensor] = field(default_factory=dict)
    anchor: dict[str, Tensor] = field(default_factory=dict)
    constant: float = 0.0

    def with_domain(
        self,
        domain: str,
        fisher: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        *,
        decay: float | None = None,
    ) -> DiagonalMemory:
        """The memory with one more finished domain.

        Args:
            domain: Its name.
            fisher: Its F by name.
            weights: θ* by name, where the anchor is wanted.
            decay: γ of online EWC, 0 … 1: S ← γ S + F around these weights alone. Default: every domain's
                parabola around its own.

        Raises:
            ConfigError: ``decay`` is outside 0 … 1.
        """
        if decay is not None:
            return self._decayed(domain, fisher, weights, decay)
        importance, anchor, constant = {}, {}, self.constant
        for name, value in fisher.items():
            own = value.cpu()
            before = self.importance.get(name)
            importance[name] = own if before is None else before + own
            if weights is None:
                continue
            now = weights[name].detach().cpu()
            if before is None:
                anchor[name] = now.clone()
                continue
            # Two parabolas make one: its middle lies between theirs, weighted by their curvatures.
            share = own / importance[name].clamp_min(torch.finfo(own.dtype).tiny)
            apart = now - self.anchor[name]
            anchor[name] = self.anchor[name] + share * apart
            constant += float((before * share * apart.square()).double().sum())
        return DiagonalMemory((*self.domains, domain), importance, anchor, constant)

    def _decayed(
        self,
        domain: str,
        fisher: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None,
        decay: float,
    ) -> DiagonalMemory:
        if not 0.0 <= decay <= 1.0:
            raise ConfigError(
                "the decay of online EWC is out of range", got=f"{decay}", expected="0 … 1", hint="0.95"
            )
        importance = {
            name: decay * self.importance[name] + own.cpu() if name in self.importance else own.cpu()
            for name, own in fisher.items()
        }
        anchor = {name: w.detach().cpu().clone() for name, w in (weights or {}).items()}
        return DiagonalMemory((*self.domains, domain), importance, anchor)

    def write(self, path: Path) -> None:
        """Write one safetensors file, in the weights' own precision; not atomic by itself."""
        facts = {
            "format_version": FORMAT_VERSION,
            "domains": self.domains,
            "constant": self.constant,
        }
        tensors = {f"importance:{name}": value.contiguous() for name, value in self.importance.items()}
        tensors |= {f"anchor:{name}": value.contiguous() for name, value in self.anchor.items()}
        save_file(tensors, path, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> DiagonalMemory:
        """Read what :meth:`write` wrote.

        Raises:
            WorkspaceError: The file is damaged or is no such memory of this version.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["constrained_adapters"])
                assert facts["format_version"] == FORMAT_VERSION, facts["format_version"]
                tables: dict[str, dict[str, Tensor]] = {"importance": {}, "anchor": {}}
                for key in file.keys():  # noqa: SIM118
                    kind, _, name = key.partition(":")
                    tables[kind][name] = file.get_tensor(key)
            return cls(tuple(facts["domains"]), tables["importance"], tables["anchor"], facts["constant"])
        except Exception as error:
            raise WorkspaceError(
                "the importance of the weights cannot be read",
                got=f"{path}: {type(error).__name__}: {error}",
                hint="begin anew with --fresh",
            ) from None
