"""One short pass over a domain's examples that yields its K-FAC statistics.

For each adapted matrix W (d_out × d_in) with input a_t and output gradient g_t at token t,
of the loss on labels drawn from the model itself (so the true Fisher, not the squared gradient
of the data's labels):

* ``energy``   Σ_t a_t a_tᵀ / tokens            (GPM: which inputs occur)
* ``weighted`` Σ_t ‖g_t‖² a_t a_tᵀ / loss tokens  (partial trace of the Fisher over the outputs)
* ``output``   Σ_t g_t g_tᵀ / loss tokens       (K-FAC's other factor)

so that none depends on the batch size, and ``output ⊗ energy`` is K-FAC's Fisher per loss token.
Padding does not count. Modules that read the same input (q, k, v) share ``energy`` and ``weighted``, the
latter summed over them. Terms between different tokens are left out, as in K-FAC-expand
(Eschenhagen et al. 2023, arXiv 2311.00636).

Axis letters: b batch, s sequence, d width, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.errors import TrainingError


@dataclass
class Statistics:
    """Sums over tokens, float32; ``groups`` maps each module to the key of its shared input."""

    groups: dict[str, str] = field(default_factory=dict)
    energy: dict[str, Tensor] = field(default_factory=dict)
    weighted: dict[str, Tensor] = field(default_factory=dict)
    output: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: int = 0
    num_loss_tokens: int = 0
    num_examples: int = 0
    loss_nats: float = 0.0
    mask: Tensor | None = None
    """Which tokens of the present batch are no padding, shape (b · s,)."""

    def normalised(self) -> Statistics:
        """Sums turned into means: ``energy`` per token, the others per loss token."""
        tokens, loss_tokens = self.num_tokens, self.num_loss_tokens
        return replace(
            self,
            energy={key: value / tokens for key, value in self.energy.items()},
            weighted={key: value / loss_tokens for key, value in self.weighted.items()},
            output={key: value / loss_tokens for key, value in self.output.items()},
            loss_nats=self.loss_nats / loss_tokens,
            mask=None,
        )


def gather_statistics(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    generator: torch.Generator,
    domain: str = "",
) -> Statistics:
    """Run the pass.

    Args:
        model: A causal LM; called with ``input_ids`` and ``attention_mask``, gives ``logits``.
            Its parameters, their gradients and its modules' training modes are left as they were.
        modules: The adapted linear layers by name.
        batches: Each with ``input_ids``, ``attention_mask`` and ``labels`` (b, s); tokens whose
            label is −100 carry no loss, and rows of only such tokens are left out.
        generator: CPU source of the drawn labels; the global random state is not touched.
        domain: Named in errors.

    Returns:
        Their means.

    Raises:
        TrainingError: No loss token in any batch, or a statistic is not finite.

    Cost: one forward and one backward pass per batch, no weight gradients.
    """
    stats = Statistics()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    takes_columns = "logits_to_keep" in inspect.signature(model.forward).parameters
    sparse = takes_columns and all(module is not head for module in modules.values())
    with _recording(model, modules, stats):
        for batch in batches:
            _one_batch(model, batch, stats, generator, sparse)
    of_domain = f" of domain {domain!r}" if domain else ""
    if stats.num_loss_tokens == 0:
        raise TrainingError(
            f"no token of these examples{of_domain} carries loss", expected="at least one answer token"
        )
    for kind in ("energy", "weighted", "output"):
        for name, value in getattr(stats, kind).items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"the gradient memory{of_domain} is not finite",
                    got=f"{kind} of layer {name}",
                    hint="look for broken weights or examples; float16 overflows where bfloat16 does not",
                )
    return stats.normalised()


def _one_batch(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    stats: Statistics,
    generator: torch.Generator,
    sparse: bool,
) -> None:
    # Row by row, so that it does not matter which rows share a batch.
    counts = (batch["labels"][:, 1:] != -100).any(dim=1)
    if not bool(counts.any()):
        return
    batch = {key: batch[key][counts] for key in ("input_ids", "attention_mask", "labels")}
    labels = batch["labels"][:, 1:]
    place = labels != -100
    stats.mask = batch["attention_mask"].bool().reshape(-1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if sparse:
        # Logits over the vocabulary are a good part of a small model's work: only where a label is.
        columns = place.any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, logits_to_keep=columns).logits[place[:, columns]].float()
    else:
        logits = model(**inputs).logits[:, :-1][place].float()
    log_probs = torch.log_softmax(logits, dim=-1)
    drawn = _draw(log_probs.detach(), generator)
    loss = -log_probs.gather(1, drawn[:, None]).sum()
    loss.backward()
    stats.num_tokens += int(stats.mask.sum())
    stats.num_loss_tokens += int(place.sum())
    stats.num_examples += labels.shape[0]
    stats.loss_nats += float(-log_probs.detach().gather(1, labels[place][:, None]).sum())


def _draw(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One label per row by inverting the cumulative distribution at a uniform number from the CPU."""
    uniform = torch.rand(log_probs.shape[0], 1, generator=generator).to(log_probs.device)
    cumulative = log_probs.exp().cumsum(-1)
    return (
        torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
        .squeeze(1)
        .clamp_max(log_probs.shape[1] - 1)
    )


@contextmanager
def _recording(model: nn.Module, modules: Mapping[str, nn.Module], stats: Statistics) -> Iterator[None]:
    """Hooks that add each batch's terms; parameters are frozen meanwhile, so no weight gradient is made."""
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    modes, handles = {module: module.training for module in model.modules()}, []
    last_input: list[tuple[Tensor | None, str]] = [(None, "")]

    def forward_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # a pass of somebody else's, such as generating the next batch
                return
            source = args[0]
            key = last_input[0][1] if last_input[0][0] is source else name
            last_input[0] = (source, key)
            stats.groups[name] = key
            mask = stats.mask
            rows = source.detach().reshape(-1, source.shape[-1])[mask].float()
            if key == name:
                _add(stats.energy, key, rows.T @ rows)

            def backward(grad: Tensor) -> None:
                g = grad.detach().reshape(-1, grad.shape[-1])[mask].float()
                scaled = rows * g.pow(2).sum(1, keepdim=True)
                _add(stats.weighted, key, rows.T @ scaled)
                _add(stats.output, name, g.T @ g)

            output.register_hook(backward)

        return hook

    def open_graph(module: nn.Module, args: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    try:
        model.eval()
        for p in model.parameters():
            p.requires_grad_(False)
        handles.append(model.get_input_embeddings().register_forward_hook(open_graph))  # type: ignore[operator]
        handles += [module.register_forward_hook(forward_hook(name)) for name, module in modules.items()]
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, p in model.named_parameters():
            p.requires_grad_(required[name])
        for module, training in modes.items():
            module.training = training


def _add(table: dict[str, Tensor], key: str, term: Tensor) -> None:
    if key in table:
        table[key] += term
    else:
        table[key] = term
