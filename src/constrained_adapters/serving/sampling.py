"""The next token of one row: greedy, or drawn from the nucleus by the request's own generator.

Axis letters: v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained_adapters.errors import ModelError


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen.

    Args:
        temperature: 0 is greedy; logits are divided by it.
        top_p: Tokens are drawn from the fewest most probable ones that hold at least this probability.
        seed: Of the request's generator; None draws one.
        top_logprobs: How many alternatives to report for each token; None reports no log-probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Chosen:
    """One chosen token.

    Args:
        token: Its id.
        logprob: ln p(token) under the model's own distribution, before temperature; None if not asked for.
        alternatives: The most probable tokens with their ln p, best first.
    """

    token: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


def generator_for(sampling: Sampling, index: int) -> torch.Generator:
    """The generator of choice ``index`` of a request; the same seed and index give the same draws."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed((sampling.seed + index) % 2**63)
    return generator


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Chosen:
    """Choose the next token of one row; no other row of the batch has a part in it.

    Args:
        logits: Shape (v,).
        sampling: The request's settings.
        generator: The request's own, on the CPU; advanced by one draw unless greedy.

    Returns:
        The token; cost one pass over v when greedy, a sort where ``top_p`` < 1.

    Raises:
        ModelError: The logits are not finite.
    """
    logits = logits.float()
    best = int(logits.argmax())
    if not torch.isfinite(logits[best]):
        raise ModelError("the model's output is not finite", got=f"largest logit {float(logits[best])}")
    token = best if sampling.temperature == 0 else _draw(logits, sampling, generator)
    if sampling.top_logprobs is None:
        return Chosen(token)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    top = torch.topk(log_probabilities, sampling.top_logprobs)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return Chosen(token, float(log_probabilities[token]), tuple(pairs))


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    # By inversion, one uniform number a token: a draw does not depend on how a library consumes randomness.
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    # The largest is taken off first: a tiny temperature must not overflow.
    probabilities = torch.softmax((logits - logits.max()).double() / sampling.temperature, dim=-1)
    order: Tensor | None = None
    if sampling.top_p < 1:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[: int((before < sampling.top_p).sum().clamp(min=1))]
    cumulated = probabilities.cumsum(0)
    place = int(torch.searchsorted(cumulated, uniform.to(cumulated.device) * cumulated[-1], right=True))
    place = min(place, len(cumulated) - 1)
    return place if order is None else int(order[place])
