"""Linear discriminant analysis over domains, with the base's own text as what belongs to none.

After Lee et al. 2018 (arXiv 1807.03888): class means and one shared covariance of hidden states, Mahalanobis
distances. Deviations, each from trials on validation items (docs/log.md): the shared covariance is shrunk to
its diagonal by :data:`SHRINKAGE`; distances are taken in the directions that lead from the base's own text to
the domains only, since in all d directions what a few prompts say of the covariance is mostly noise; each
domain's distances are in multiples of its own mean, so that one threshold suits wide and narrow domains; and
the threshold is wider for prompts of fewer tokens than the domain's, whose mean scatters more.

Axis letters: t domains, b prompts, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import chi2
from torch import Tensor

from constrained_adapters.routing.statistics import PromptStatistics

SHRINKAGE = 0.9
"""Weight of the diagonal in the shared covariance."""
FARTHEST = 1.5
"""However far the base's own text is, a prompt is of no domain beyond this multiple of the distance that one
prompt in a thousand of a Gaussian domain exceeds."""
PRIOR_PROMPTS = 8
"""The spread of a domain of few prompts is drawn to the mean over all domains with this weight."""
TEMPERATURE = 2.0
"""Log-likelihoods are divided by it: hidden states have heavier tails than a Gaussian."""


@dataclass(frozen=True)
class Discriminant:
    """Distances and probabilities of prompts.

    Args:
        centre: Mean of the base's own text, (d).
        projection: (t, d), to the discriminating directions, in which the shared covariance is the identity.
        centres: Of the domains in these directions, (t, t).
        spreads: Mean squared distance of a domain's own prompts, (t).
        lengths: Mean number of tokens of a domain's prompts, (t).
        threshold: In multiples of the spread, for prompts as long as the domain's.
    """

    centre: Tensor
    projection: Tensor
    centres: Tensor
    spreads: Tensor
    lengths: Tensor
    threshold: float

    @classmethod
    def fit(
        cls,
        domains: Sequence[PromptStatistics],
        own_text: tuple[Tensor, Tensor],
        *,
        false_choice_rate: float,
    ) -> Discriminant:
        """Make one from the statistics of the domains.

        Args:
            domains: t of them.
            own_text: Of text that the base wrote, which is of no domain: vectors (b, d) and lengths (b).
            false_choice_rate: Share of it, 0 … 1, that may be taken for a domain's.

        Cost: a Cholesky factor of d × d.
        """
        own = PromptStatistics.of(*own_text, made_from="")
        classes = [*domains, own]
        freedom = sum(max(each.count - 1, 0) for each in classes)
        shared = sum(
            (each.covariance() * (max(each.count - 1, 0) / max(freedom, 1)) for each in classes),
            torch.zeros(len(own.mean), len(own.mean), dtype=torch.float64),
        )
        diagonal = shared.diagonal().clone()
        floor = 1e-6 * diagonal.mean().clamp(min=1e-30)
        shared = (1.0 - SHRINKAGE) * shared
        shared.diagonal().copy_(diagonal.clamp(min=float(floor)))
        lower = torch.linalg.cholesky(shared)
        centre = own.mean.double()
        shifts = torch.stack([each.mean.double() - centre for each in domains], dim=1)
        whitened = torch.linalg.solve_triangular(lower, shifts, upper=False)
        basis = torch.linalg.qr(whitened)[0]
        projection = torch.linalg.solve_triangular(lower.T, basis, upper=True).T
        spreads = _spreads([projection @ each.covariance() @ projection.T for each in domains], domains)
        lengths = torch.tensor([each.length for each in domains], dtype=torch.float64)
        found = cls(centre, projection, (projection @ shifts).T, spreads, lengths, 0.0)
        if false_choice_rate == 0.0:
            return found
        distances = found.distances(own_text[0])
        best = found.log_likelihoods(distances).argmax(1, keepdim=True)
        nearest = (distances / found.widening(own_text[1])).gather(1, best)
        num = len(projection)
        farthest = FARTHEST * float(chi2.ppf(0.999, num)) / num
        return replace(found, threshold=min(float(torch.quantile(nearest, false_choice_rate)), farthest))

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distance of each prompt from each domain, in multiples of the domain's spread, (b, t)."""
        places = (vectors.double() - self.centre) @ self.projection.T
        squared = (places[:, None, :] - self.centres[None, :, :]).square().sum(2)
        return squared / self.spreads

    def log_likelihoods(self, distances: Tensor) -> Tensor:
        """Gaussian log-likelihood of each domain up to a constant, tempered, (b, t)."""
        num = len(self.projection)
        return -0.5 * num * (distances + self.spreads.log()) / TEMPERATURE

    def widening(self, lengths: Tensor) -> Tensor:
        """By how much the threshold of each domain is wider for prompts of these many tokens, (b, t), ≥ 1."""
        return (self.lengths / lengths.double()[:, None]).clamp(min=1.0).sqrt()

    def probabilities(self, distances: Tensor, lengths: Tensor) -> Tensor:
        """Of each domain, and in the last column of none, (b, t + 1).

        None is as likely as the likeliest domain where that one's distance is its threshold.
        """
        logits = self.log_likelihoods(distances)
        best = logits.argmax(1, keepdim=True)
        at_threshold = self.log_likelihoods(self.threshold * self.widening(lengths)).gather(1, best)
        return torch.softmax(torch.cat([logits, at_threshold], dim=1), dim=1)

    def pull(self, parts: Tensor, domain: int) -> Tensor:
        """How much each part of a prompt's vector speaks for a domain against the base's own text, (parts).

        Args:
            parts: Add up to the prompt's vector, (parts, d).
            domain: Its index.
        """
        direction = self.centres[domain] @ self.projection
        share = parts - self.centre / len(parts)
        return share @ direction / self.centres[domain].square().sum().clamp(min=1e-30)


def _spreads(covariances: Sequence[Tensor], domains: Sequence[PromptStatistics]) -> Tensor:
    own = torch.stack([covariance.trace() for covariance in covariances])
    counts = torch.tensor([float(each.count) for each in domains], dtype=torch.float64)
    # A new prompt is farther from the mean of n others than these are: by (n + 1) / (n − 1) of the variance.
    own = own * (counts + 1.0) / (counts - 1.0).clamp(min=1.0)
    typical = (own * counts).sum() / counts.sum()
    drawn = (own * counts + typical * PRIOR_PROMPTS) / (counts + PRIOR_PROMPTS)
    return drawn.clamp(min=1e-12)
