"""The gradient of a domain's loss by each adapted matrix, from one pass over a few of its examples.

At the present weights and before any step, G = Σ_t g_t a_tᵀ (g_t at the layer's output, a_t at its input):
what a domain asks of the model, to be set against what finished domains need or another domain asks.

Axis letters: b batch, s sequence, n tokens of a batch, m rows kept of a gradient, k closed directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.reservoir import pad_rows

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
