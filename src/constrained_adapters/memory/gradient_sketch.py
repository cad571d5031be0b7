"""The gradient memory that sees all layers at once: compressed gradients of single sequences.

K-FAC's Fisher treats each matrix by itself, and so predicts far too little when many layers move together.
Here each remembered sequence n keeps its gradient G_n^l of every adapted matrix l, of the loss on labels
drawn from the model, as its top singular pairs. With ΔW the increase of the loss per loss token is

    p(ΔW) = Σ_l ⟨Ḡ^l, ΔW_l⟩  +  ½ Σ_n (Σ_l ⟨G_n^l, ΔW_l⟩)² / Σ_n tokens_n

where Ḡ is the mean gradient on the data's *own* labels: what the finished domain had still to learn. The
second term is ½ ΔWᵀ F ΔW with F the true Fisher, terms between tokens and between layers included,
estimated from one draw per sequence. It knows only the directions of its sequences.

Axis letters: n sequences, k pairs, m rank of the mean, b batch, s sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from constrained_adapters.errors import TrainingError
from constrained_adapters.memory.low_rank import LinearSketch, LowRank, top_pairs
from constrained_adapters.memory.rounding import RoundedColumns, round_columns

MAX_EXAMPLES = 16
MEAN_RANK = 16
Delta = Tensor | LowRank


@dataclass(frozen=True)
class GradientSketch:
    """What is remembered of a domain, for all adapted matrices together; rounded as a file holds it.

    Args:
        left: For each module the left singular vectors, shape (n, d_out, k), float32.
        right: The right ones times the singular values, shape (n, k, d_in), float32.
        means: For each module the mean gradient per loss token on the data's own labels, to rank m.
        num_loss_tokens: Of all n sequences together.
        kept_share: Share of the gradients' squared norm that the k pairs hold, 0 … 1.
    """

    left: dict[str, Tensor]
    right: dict[str, Tensor]
    means: dict[str, LowRank]
    num_loss_tokens: int
    kept_share: float = 1.0

    @property
    def num_examples(self) -> int:
        """Sequences remembered."""
        return next(iter(self.left.values())).shape[0] if self.left else 0

    def to(self, device: torch.device | str) -> GradientSketch:
        """The memory on another device."""
        return replace(
            self,
            left={name: value.to(device) for name, value in self.left.items()},
            right={name: value.to(device) for name, value in self.right.items()},
            means={
                name: LowRank(mean.left.to(device), mean.right.to(device))
                for name, mean in self.means.items()
            },
        )

    def inner_products(self, deltas: Mapping[str, Delta]) -> Tensor:
        """``Σ_l ⟨G_n^l, ΔW_l⟩`` of each sequence, shape (n,), float32.

        Args:
            deltas: ΔW of each module (d_out, d_in), or as :class:`LowRank`, which costs n·k·r·(d_out + d_in)
                instead of n·k·d_out·d_in; modules that are not remembered are left out.
        """
        device = next(iter(self.left.values())).device
        total = torch.zeros(self.num_examples, device=device)
        for name, delta in deltas.items():
            if name in self.left:
                total += _products(self.left[name], self.right[name], delta)
        return total

    def predicted_increase_nats(self, deltas: Mapping[str, Delta], *, first_order: bool = False) -> float:
        """How much the updates raise this domain's loss per loss token.

        Args:
            deltas: As in :meth:`inner_products`.
            first_order: Add the mean gradient's term; it can be negative.
        """
        increase = 0.5 * float(self.inner_products(deltas).square().sum()) / self.num_loss_tokens
        if first_order:
            for name, delta in deltas.items():
                if name in self.means:
                    mean = self.means[name]
                    increase += float(_products(mean.left[None], mean.right[None], delta))
        return increase

    def rounded(self) -> GradientSketch:
        """With every entry as 8 bits give it; what is rounded already stays the same to the bit."""
        return GradientSketch.restored(self.facts(), self.tensors())

    def facts(self) -> dict[str, Any]:
        """What a file notes beside :meth:`tensors`."""
        shapes = {name: (*self.left[name].shape, self.right[name].shape[2]) for name in self.left}
        return {
            "shapes": shapes,
            "mean_ranks": {name: mean.left.shape[1] for name, mean in self.means.items()},
            "num_loss_tokens": self.num_loss_tokens,
            "kept_share": self.kept_share,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds, by name: 8 bits an entry, the mean's columns after the sequences'."""
        found: dict[str, Tensor] = {}
        for name, mean in self.means.items():
            left = torch.cat([self.left[name].transpose(0, 1).flatten(1), mean.left], dim=1)
            right = torch.cat([self.right[name].flatten(0, 1).T, mean.right.T], dim=1)
            found[f"left:{name}"] = round_columns(left).packed()
            found[f"right:{name}"] = round_columns(right).packed()
        return found

    def is_finite(self, name: str) -> bool:
        """Whether all that is remembered of a module is."""
        parts = (self.left[name], self.right[name], self.means[name].left, self.means[name].right)
        return all(bool(torch.isfinite(part).all()) for part in parts)

    @classmethod
    def restored(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GradientSketch:
        """The inverse of :meth:`facts` and :meth:`tensors`.

        Raises:
            KeyError: Something is missing.
            ValueError: A tensor is too short or too long.
        """
        lefts, rights, means = {}, {}, {}
        for name, (n, d_out, k, d_in) in facts["shapes"].items():
            count = n * k + facts["mean_ranks"][name]
            left = RoundedColumns.unpacked(tensors[f"left:{name}"], d_out, count).read()
            right = RoundedColumns.unpacked(tensors[f"right:{name}"], d_in, count).read()
            lefts[name] = left[:, : n * k].reshape(d_out, n, k).transpose(0, 1).contiguous()
            rights[name] = right[:, : n * k].T.reshape(n, k, d_in).contiguous()
            means[name] = LowRank(left[:, n * k :].contiguous(), right[:, n * k :].T.contiguous())
        return cls(lefts, rights, means, facts["num_loss_tokens"], facts["kept_share"])


class SketchAccumulator:
    """Listens to :func:`~constrained_adapters.memory.gather.gather_statistics` and makes the sketch.

    Args:
        rank: k, singular pairs kept of each sequence's gradient of a matrix.
        max_examples: n at most: the first sequences with a loss token.
        mean_rank: m of the mean gradient.
        domain: Named in errors.

    Bytes kept: a little over (n·k + m)·Σ_l (d_out + d_in), so n·k + m = 2·r is half of a LoRA of rank r in
    float32: the defaults, at rank 16.
    Cost: one more backward pass, for the mean, over the batches that hold the n sequences; per sequence and
    matrix O(s² (d_in + d_out)).
    """

    def __init__(
        self,
        *,
        rank: int = 1,
        max_examples: int = MAX_EXAMPLES,
        mean_rank: int = MEAN_RANK,
        domain: str = "",
    ) -> None:
        self._of_domain = f" of domain {domain!r}" if domain else ""
        self._rank, self._max_examples, self._mean_rank = rank, max_examples, mean_rank
        self._parts: dict[str, list[LowRank]] = {}
        self._means: dict[str, LinearSketch] = {}
        self._lengths: list[int] = []
        self._shared: tuple[Tensor, Tensor, Tensor] | None = None
        self._num_examples = self._num_loss_tokens = 0
        self._squares = self._kept_squares = 0.0

    @property
    def wants_drawn_labels(self) -> bool:
        """Only while the batch under way has sequences that still fit."""
        return bool(self._lengths)

    @property
    def wants_true_labels(self) -> bool:
        """Only while the batch under way has sequences that still fit."""
        return bool(self._lengths)

    def start_batch(self, lengths: list[int], loss_lengths: list[int]) -> None:
        """Take as many of the batch's examples as still fit."""
        count = min(len(lengths), self._max_examples - self._num_examples)
        self._lengths, self._shared = lengths[:count], None
        self._num_examples += count
        self._num_loss_tokens += sum(loss_lengths[:count])

    def add_inputs(self, name: str, key: str, rows: Tensor) -> None:
        """Nothing: the inputs come again with the gradients."""

    def add_gradients(self, name: str, key: str, rows: Tensor, gradients: Tensor, source: str) -> None:
        """Compress each example's gradient, or add to the mean where the labels are the data's own.

        Raises:
            TrainingError: A gradient is not finite.
        """
        if not self._lengths or source == "states":
            return
        count = sum(self._lengths)
        gradients = gradients[:count]
        if source == "own":
            if name not in self._means:
                widths = (gradients.shape[1], rows.shape[1])
                self._means[name] = LinearSketch(*widths, self._mean_rank, rows.device)
            self._means[name].add(gradients, rows[:count])
            return
        if self._shared is None or self._shared[0] is not rows:
            inputs = pad_sequence(rows[:count].split(self._lengths), batch_first=True)
            self._shared = (rows, inputs, inputs @ inputs.mT)
        _, inputs, gram = self._shared
        padded = pad_sequence(gradients.split(self._lengths), batch_first=True)
        squares = float((gram * (padded @ padded.mT)).sum())
        if not math.isfinite(squares):
            raise TrainingError(
                f"the gradient of an example{self._of_domain} is not finite",
                got=f"layer {name}",
                hint="look for broken weights or examples; float16 overflows where bfloat16 does not",
            )
        pairs = top_pairs(padded, inputs, self._rank, gram)
        self._squares += squares
        self._kept_squares += float(pairs.right.square().sum())
        self._parts.setdefault(name, []).append(pairs)

    def end_batch(self) -> None:
        """Let go of the batch."""
        self._lengths, self._shared = [], None

    def finish(self) -> GradientSketch:
        """The memory of all that was heard, in main memory."""
        means = {name: mean.read() for name, mean in self._means.items()}
        tokens = max(self._num_loss_tokens, 1)
        whole = GradientSketch(
            {name: torch.cat([part.left for part in parts]) for name, parts in self._parts.items()},
            {name: torch.cat([part.right for part in parts]) for name, parts in self._parts.items()},
            {name: LowRank(mean.left / tokens, mean.right) for name, mean in means.items()},
            self._num_loss_tokens,
            self._kept_squares / self._squares if self._squares else 1.0,
        )
        return whole.to("cpu").rounded()


def _products(left: Tensor, right: Tensor, delta: Delta) -> Tensor:
    """``⟨left_n right_n, ΔW⟩`` for left (n, d_out, k) and right (n, k, d_in), shape (n,)."""
    left, right = left.float(), right.float()
    if isinstance(delta, LowRank):
        seen = left.mT @ delta.left.to(left)
        pushed = right @ delta.right.to(right).T
    else:
        seen, pushed = left.mT @ delta.to(left), right
    return (seen * pushed).sum((1, 2))
