"""Gradients of kept examples at the present weights, beside whatever training is under way.

Dropout is off, the gradients that training has accumulated are not touched, and no random state is used.
Run outside Trainer's own pass they are of the weights' own precision, unless accelerate has wrapped the
model's forward method for mixed precision.

Axis letters: b rows, s sequence, n loss tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.models.modes import evaluating

Row = tuple[Tensor, Tensor]
IGNORED = -100


def loss_gradient(
    model: Any,
    parameters: Sequence[nn.Parameter],
    rows: Sequence[Row],
    *,
    batch_size: int = 8,
    domain: str = "",
) -> list[Tensor]:
    """The gradient of the mean loss per answer token, one float32 tensor per parameter.

    Args:
        model: A causal LM with everything that is active now.
        parameters: They must require gradients; zeros for one that the loss does not depend on.
        rows: (token ids, labels) of examples, each of shape (s,); tokens with label −100 carry no loss.
        batch_size: Rows per pass; the result does not depend on it, up to rounding.
        domain: Named in errors.

    Raises:
        TrainingError: No token carries loss, or the gradient is not finite.

    Cost: one forward and one backward pass over the rows, without gradient checkpointing.
    """
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    kept = [row for row in rows if bool((row[1][1:] != IGNORED).any())]
    num_tokens = 0
    with evaluating(model), torch.enable_grad():
        for start in range(0, len(kept), batch_size):
            logits, targets = _answers(model, kept[start : start + batch_size])
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
            gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
            for each, gradient in zip(total, gradients, strict=True):
                each.add_(gradient)
            num_tokens += len(targets)
    _refuse_nothing(num_tokens, domain)
    for index, each in enumerate(total):
        each.div_(num_tokens)
        if not bool(torch.isfinite(each).all()):
            raise TrainingError(
                f"the gradient of kept examples{_of(domain)} is not finite",
                got=f"parameter {index + 1} of {len(total)}, shape {tuple(each.shape)}",
                hint="lower the learning rate, or look for broken examples",
            )
    return total


def logit_gradients(
    model: Any, weights: Mapping[str, nn.Parameter], rows: Sequence[Row], *, domain: str = ""
) -> Iterator[dict[str, Tensor]]:
    """For each example the gradient of the mean logit of its right answer tokens, float32, by name.

    Args:
        model: As in :func:`loss_gradient`.
        weights: By name; they must require gradients.
        rows: As in :func:`loss_gradient`; those without a loss token are left out.
        domain: Named in errors.

    Raises:
        TrainingError: No token of any row carries loss.

    Cost: one forward and one backward pass per example.
    """
    num_tokens = 0
    for row in rows:
        if not bool((row[1][1:] != IGNORED).any()):
            continue
        with evaluating(model), torch.enable_grad():
            logits, targets = _answers(model, [row])
            mean = logits.gather(1, targets[:, None]).mean()
            gradients = torch.autograd.grad(
                mean, list(weights.values()), allow_unused=True, materialize_grads=True
            )
        num_tokens += len(targets)
        yield {name: gradient.float() for name, gradient in zip(weights, gradients, strict=True)}
    _refuse_nothing(num_tokens, domain)


def _answers(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits (n, v) in float32 where a label is predicted, and those labels (n,)."""
    batch = pad_rows(list(rows), model.get_input_embeddings().weight.device)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels = batch["labels"][:, 1:].to(logits.device)
    place = labels != IGNORED
    return logits[place].float(), labels[place]


def _refuse_nothing(num_tokens: int, domain: str) -> None:
    if num_tokens == 0:
        raise TrainingError(
            f"no token of the kept examples{_of(domain)} carries loss", expected="at least one answer token"
        )


def _of(domain: str) -> str:
    return f" of domain {domain!r}" if domain else ""
