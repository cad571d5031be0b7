"""``"auto"``: a domain's ``constraint_strength`` and ``adapter_dim``, chosen from its own first gradient.

One pass over a few examples of the domain, at the present weights and before any step, sums up for each
adapted matrix the gradient of the domain's loss, G = Σ_t g_t a_tᵀ (g_t at the output, a_t at the input). A
first step can gain what of ‖G‖² lies in open directions: that weighs strength against plasticity. And of the
open part the best step of rank r gains the r largest squared singular values: that says which rank is enough.
Both are first-order: what later steps find is not seen.

Axis letters: b batch, s sequence, n tokens of a batch, m rows kept of a gradient, k closed directions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.reservoir import pad_rows

AUTO_STRENGTHS = (0.99, 0.97, 0.95, 0.9, 0.8, 0.7)
"""What ``constraint_strength="auto"`` chooses from, strictest first."""
AUTO_RANKS = (4, 8, 16, 32, 64, 128)
"""What ``adapter_dim="auto"`` chooses from."""
LEAST_OPEN_SHARE = 0.1
"""Share of the gradient's squared norm that the chosen strength leaves open: a third of the norm, so that a
first step of given length still gains a third of what it would without a constraint (docs/methods.md)."""
RANK_SHARE = 0.9
"""Share of the gain at the largest rank that the chosen rank reaches."""
PROBE_ROWS = 32
"""Examples that are measured at most."""
MOST_ROWS = 1024
"""A gradient of more rows (d_out) is kept as so many random combinations of them."""

Rows = Sequence[tuple[Tensor, Tensor]]
"""Token ids and labels of examples, each of shape (s,)."""
Bases = Mapping[str, Tensor]


@dataclass(frozen=True)
class ProbeGradients:
    """The gradient of a domain's loss with respect to each adapted matrix.

    Args:
        matrices: By module, shape (min(d_out, ``MOST_ROWS``), d_in), float32.
        max_rank: Smallest of all modules' d_in and d_out: no update has a higher rank everywhere.
        num_examples: Rows with loss that were measured.
    """

    matrices: dict[str, Tensor]
    max_rank: int
    num_examples: int


@dataclass(frozen=True)
class Chosen:
    """What an adapter is made with.

    Args:
        rank: r.
        facts: What was chosen and measured, for the record: ``chosen_strength``, ``gradient_conflict`` (share
            of the gradient in closed directions), ``chosen_rank``, ``rank_share`` (of the gain at the
            largest rank); empty where nothing is automatic.
        reason: The same in words.
    """

    rank: int
    facts: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def choose(
    gradients: ProbeGradients,
    bases_at: Callable[[float], Bases] | None,
    *,
    strength: float | Literal["auto"],
    rank: int | Literal["auto"],
    default_strength: float,
) -> Chosen:
    """Choose what is ``"auto"`` and say why.

    Args:
        gradients: Of the new domain.
        bases_at: Closed directions U by module at a strength; None where no memory closes any.
        strength: ``constraint_strength``.
        rank: ``adapter_dim``.
        default_strength: Taken where there is nothing to choose by.

    Warns:
        UserWarning: Even the lowest strength leaves less than ``LEAST_OPEN_SHARE`` of the gradient open.
    """
    facts: dict[str, float] = {}
    reasons: list[str] = []
    if strength == "auto":
        conflicts = {default_strength: 0.0}
        if bases_at is None:
            reasons.append(f"strength {default_strength}, the default: no memory closes anything yet")
        else:
            conflicts = choose_strength(lambda each: closed_share(gradients.matrices, bases_at(each)))
            reasons.append(_why_strength(conflicts))
        strength, conflict = list(conflicts.items())[-1]
        facts |= {"chosen_strength": strength, "gradient_conflict": conflict}
        if 1.0 - conflict < LEAST_OPEN_SHARE:
            warnings.warn(
                f"even strength {strength} closes {conflict:.1%} of this domain's gradient: "
                "expect it to learn little, or set constraint_strength lower by hand",
                stacklevel=4,
            )
    if rank == "auto":
        bases = bases_at(strength) if bases_at is not None else {}
        spectra = [open_spectrum(g, bases.get(name)) for name, g in gradients.matrices.items()]
        shares = choose_rank(spectra, gradients.max_rank)
        rank, share = list(shares.items())[-1]
        facts |= {"chosen_rank": float(rank), "rank_share": share}
        reasons.append(_why_rank(shares))
    return Chosen(rank, facts, "; ".join(reasons))


def probe_gradients(
    model: Any,
    modules: Mapping[str, nn.Module],
    rows: Rows,
    *,
    domain: str = "",
    batch_size: int = 8,
    most_rows: int = MOST_ROWS,
) -> ProbeGradients:
    """Measure the gradients G of the summed loss on the data's own labels.

    Args:
        model: A causal LM without PEFT's outer wrapper; adapters on its layers act if they are on. Nothing
            of it is changed, and no parameter's ``grad``.
        modules: The layers to adapt by their name in the base; packed weights are no hindrance.
        rows: (token ids, labels), each of shape (s,); labels of −100 carry no loss.
        domain: Named in errors.
        batch_size: Rows per pass; the result does not depend on it.
        most_rows: A matrix of more rows is replaced by Ω G with Ω (``most_rows``, d_out), Gaussian and of
            mean square 1/``most_rows``: ‖ΩGx‖² is ‖Gx‖² on average (a Johnson-Lindenstrauss projection),
            and at most ``most_rows`` · d_in numbers are kept per matrix.

    Raises:
        TrainingError: No row carries loss, or a gradient is not finite.

    Cost: one forward and one backward pass, without weight gradients.
    """
    device = model.get_input_embeddings().weight.device
    useful = [row for row in rows if bool((row[1][1:] != -100).any())]
    of_domain = f" of domain {domain!r}" if domain else ""
    if not useful:
        raise TrainingError(
            f"no token of these examples{of_domain} carries loss", expected="at least one answer token"
        )
    matrices: dict[str, Tensor] = {}
    mixers: dict[int, Tensor] = {}
    widths: list[int] = []
    for start in range(0, len(useful), batch_size):
        batch = pad_rows(list(useful[start : start + batch_size]), device)
        for name, inputs, gradients in _terms(model, modules, batch):
            d_out, d_in = gradients.shape[1], inputs.shape[1]
            widths += [d_out, d_in]
            left = gradients
            if d_out > most_rows:
                if d_out not in mixers:
                    mixers[d_out] = _mixer(d_out, most_rows).to(gradients)
                left = gradients @ mixers[d_out]
            if name not in matrices:
                matrices[name] = left.new_zeros(left.shape[1], d_in)
            matrices[name].addmm_(left.T, inputs)
    for name, matrix in matrices.items():
        if not bool(torch.isfinite(matrix).all()):
            raise TrainingError(
                f"the gradient{of_domain} is not finite",
                got=f"layer {name}",
                hint="look for broken weights or examples; float16 overflows where bfloat16 does not",
            )
    return ProbeGradients(matrices, min(widths), len(useful))


def closed_share(gradients: Mapping[str, Tensor], bases: Bases) -> float:
    """``Σ_l ‖G_l U_l‖² / Σ_l ‖G_l‖²``: the share of the gradient in closed directions, 0 … 1.

    Args:
        gradients: G of each module, shape (m, d_in).
        bases: U of each module, orthonormal columns, shape (d_in, k); a module without one is open.

    >>> closed_share({"q": torch.tensor([[3.0, 4.0]])}, {"q": torch.tensor([[1.0], [0.0]])})
    0.36
    """
    whole = sum(float(g.square().sum()) for g in gradients.values())
    closed = sum(
        float((g @ bases[name].to(g)).square().sum()) for name, g in gradients.items() if name in bases
    )
    return min(closed / whole, 1.0) if whole > 0.0 else 0.0


def choose_strength(
    conflict_at: Callable[[float], float], least_open: float = LEAST_OPEN_SHARE
) -> dict[float, float]:
    """The strictest of ``AUTO_STRENGTHS`` that leaves enough of the gradient open.

    Args:
        conflict_at: Closed share of the gradient at a strength, 0 … 1; asked strictest first, and no
            further than needed.
        least_open: Share that must stay open.

    Returns:
        The conflict at each strength that was asked; the last is chosen. Where even that leaves less than
        ``least_open``, none does.

    >>> choose_strength(lambda strength: strength, least_open=0.04)
    {0.99: 0.99, 0.97: 0.97, 0.95: 0.95}
    """
    asked: dict[float, float] = {}
    for strength in AUTO_STRENGTHS:
        asked[strength] = conflict_at(strength)
        if 1.0 - asked[strength] >= least_open:
            break
    return asked


def open_spectrum(gradient: Tensor, basis: Tensor | None, count: int = AUTO_RANKS[-1]) -> Tensor:
    """Squared singular values of ``G (I − U Uᵀ)``, largest first, at most ``count``, float64, on the CPU.

    Args:
        gradient: G, shape (m, d_in).
        basis: U, orthonormal columns, shape (d_in, k); None closes nothing.
        count: How many.

    Cost: eigenvalues of the smaller Gram matrix, at most ``MOST_ROWS`` wide: O(m² d_in + m³).
    """
    if basis is not None:
        basis = basis.to(gradient)
        gradient = gradient - (gradient @ basis) @ basis.T
    short = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
    gram = (short @ short.T).double().cpu()
    values: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)[:count]
    return values


def choose_rank(spectra: Sequence[Tensor], max_rank: int, share: float = RANK_SHARE) -> dict[int, float]:
    """The smallest of ``AUTO_RANKS`` whose best update gains nearly what one of rank 128 would.

    The best update of rank r against G gains, to first order, in proportion to ‖G‖ of rank r, squared: the
    sum of the r largest squared singular values; the layers' gains add up.

    Args:
        spectra: Of each layer's open gradient, as :func:`open_spectrum` gives them.
        max_rank: Ranks above it are left out; where all are, it is the only one.
        share: Part of the gain at rank 128 to reach, 0 … 1.

    Returns:
        The part of that gain at each rank that was asked; the last is chosen.

    >>> choose_rank([torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.5])], max_rank=64)
    {4: 0.8, 8: 1.0}
    """
    whole = sum(float(values[: AUTO_RANKS[-1]].sum()) for values in spectra)
    asked: dict[int, float] = {}
    for rank in [each for each in AUTO_RANKS if each <= max_rank] or [max_rank]:
        held = sum(float(values[:rank].sum()) for values in spectra)
        asked[rank] = held / whole if whole > 0.0 else 1.0
        if asked[rank] >= share:
            break
    return asked


def _why_strength(conflicts: Mapping[float, float]) -> str:
    *stricter, (strength, conflict) = conflicts.items()
    text = f"strength {strength}: {conflict:.1%} of the domain's gradient is closed"
    if stricter:
        text += f" ({', '.join(f'{share:.1%} at {each}' for each, share in reversed(stricter))})"
    return f"{text}, and {LEAST_OPEN_SHARE:.0%} should stay open"


def _why_rank(shares: Mapping[int, float]) -> str:
    *lower, (rank, share) = shares.items()
    text = f"rank {rank}: a first step gains {share:.0%} of what rank {AUTO_RANKS[-1]} would"
    return f"{text} (rank {lower[-1][0]}: {lower[-1][1]:.0%})" if lower else text


def _mixer(d_out: int, most_rows: int) -> Tensor:
    drawn = torch.randn(d_out, most_rows, generator=torch.Generator().manual_seed(d_out))
    return drawn / math.sqrt(most_rows)


def _terms(
    model: Any, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each module's inputs (n, d_in) and output gradients (n, d_out) on one batch."""
    place = batch["labels"][:, 1:] != -100
    with _recording(model, modules) as (inputs, outputs):
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1][place].float(), batch["labels"][:, 1:][place], reduction="sum"
        )
        # With respect to the outputs alone: no gradient of a weight is made or stored.
        found = torch.autograd.grad(loss, list(outputs.values()))
    # Padding is on the right, where no later loss reads it: its gradient is zero and it adds nothing.
    for name, gradient in zip(outputs, found, strict=True):
        yield name, _flat(inputs[name]), _flat(gradient)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1]).float()


@contextmanager
def _recording(
    model: Any, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Hooks that keep each module's input and output, in evaluation mode; all is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    def open_graph(module: nn.Module, args: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    handles = [model.get_input_embeddings().register_forward_hook(open_graph)]
    try:
        model.eval()
        handles += [module.register_forward_hook(keep(name)) for name, module in modules.items()]
        with torch.enable_grad():
            yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
