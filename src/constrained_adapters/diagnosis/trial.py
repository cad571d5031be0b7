"""A trial: a few steps of a small LoRA that is hung onto a model by hooks and leaves no trace.

What a training would do to a finished domain is best asked of the model itself, in miniature. The model may
be quantised, or carry adapters: nothing of it is replaced, and what the trial learns goes with it.

Axis letters: r rank, b batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from constrained_adapters.data.tokens import IGNORED, Tokens, tensor_rows
from constrained_adapters.errors import TrainingError
from constrained_adapters.evaluation.row_losses import mean_row_nats
from constrained_adapters.memory.low_rank import LowRank
from constrained_adapters.memory.reservoir import pad_rows
from constrained_adapters.models.modes import evaluating
from constrained_adapters.objectives.label_logits import padded_label_logits

State = list[tuple[Tensor, Tensor]]


class TrialAdapter:
    """``W x + scaling · B (A x)`` on some layers, while :meth:`attached`; B starts at 0.

    Args:
        modules: The layers by their name in the base.
        rank: r.
        scaling: In front of B · A.
        seed: Of A; the global random state is not touched.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], *, rank: int = 8, scaling: float = 2.0, seed: int = 0
    ) -> None:
        self._modules, self._scaling = dict(modules), scaling
        generator = torch.Generator().manual_seed(seed)
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, module in self._modules.items():
            d_in, d_out = _widths(module)
            own = min(rank, d_in, d_out)
            device = next(module.parameters()).device
            a = torch.randn(own, d_in, generator=generator) / math.sqrt(d_in)
            b = torch.zeros(d_out, own)
            self._pairs[name] = (nn.Parameter(a.to(device)), nn.Parameter(b.to(device)))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within this context the layers add the adapter's output."""
        handles = [
            module.register_forward_hook(self._hook(*self._pairs[name]))
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def learn(
        self, model: Any, rows: Sequence[Tokens], *, num_steps: int, batch_size: int, learning_rate: float
    ) -> list[float]:
        """Take steps of AdamW on the adapter alone, at a constant rate, over the rows in their order.

        Args:
            model: A causal LM that holds the layers; it stays as it is, in evaluation mode.
            rows: With labels; begun anew where they are used up.
            num_steps: How many steps.
            batch_size: b, rows a step.
            learning_rate: Of AdamW, without decay.

        Returns:
            The loss of each step, nats per label.

        Raises:
            TrainingError: A loss is not finite.
        """
        optimizer = torch.optim.AdamW(self._parameters(), lr=learning_rate, weight_decay=0.0)
        device = model.get_input_embeddings().weight.device
        losses = []
        with evaluating(model), torch.enable_grad(), self.attached():
            for step in range(num_steps):
                batch = _batch([rows[(step * batch_size + i) % len(rows)] for i in range(batch_size)], device)
                scored = batch["labels"] != IGNORED
                logits, targets = padded_label_logits(
                    model, batch["input_ids"], batch["attention_mask"], scored
                )
                loss = nn.functional.cross_entropy(logits, targets)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise TrainingError(
                        f"the loss of a trial is not finite at step {step + 1}",
                        got=f"{losses[-1]} nats at rate {learning_rate:g}",
                        hint="load the base in float32 or bfloat16, or look for broken examples",
                    )
                for parameter, gradient in zip(
                    self._parameters(), torch.autograd.grad(loss, self._parameters()), strict=True
                ):
                    parameter.grad = gradient
                optimizer.step()
        return losses

    def loss_nats(self, model: Any, rows: Sequence[Tokens]) -> float:
        """Mean loss over all labels of the rows, with the adapter, nats per label."""
        with self.attached():
            return mean_row_nats(model, rows)

    def state(self) -> State:
        """A copy of all (A, B)."""
        return [(a.detach().clone(), b.detach().clone()) for a, b in self._pairs.values()]

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a :meth:`state`."""
        for (a, b), (old_a, old_b) in zip(self._pairs.values(), state, strict=True):
            a.copy_(old_a)
            b.copy_(old_b)

    def delta_weights(self) -> dict[str, LowRank]:
        """``ΔW = scaling · B · A`` of each layer, as its two factors."""
        return {name: LowRank(self._scaling * b.detach(), a.detach()) for name, (a, b) in self._pairs.items()}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for pair in self._pairs.values() for parameter in pair]

    def _hook(self, a: Tensor, b: Tensor) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (self._scaling * (args[0].to(a.dtype) @ a.T @ b.T)).to(output.dtype)

        return add


def _batch(rows: Sequence[Tokens], device: Any) -> dict[str, Tensor]:
    pairs = tensor_rows(rows)
    return pad_rows(pairs, device)


def _widths(module: Any) -> tuple[int, int]:
    """d_in and d_out of a linear layer, packed or adapted ones and GPT-2's Conv1D too."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.nx), int(module.nf)
