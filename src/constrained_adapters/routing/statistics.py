"""What is kept of a domain for routing: count, mean and covariance of its prompts' vectors, never a prompt.

These are sufficient statistics: the covariance that all domains share is made of those of each, so that a
domain is added or removed without touching the others, and without old data.

Axis letters: n prompts, d width, r rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace import atomic_write_bytes

METADATA_KEY = "constrained_adapters"
VERSION = 1
RANK = 32


@dataclass(frozen=True)
class PromptStatistics:
    """Mean and covariance of the vectors of one domain's prompts.

    Args:
        count: Prompts, n.
        length: Mean number of tokens whose mean a vector is.
        mean: (d).
        variance: The covariance's diagonal, (d), exact.
        factors: (r, d); the covariance is ``factorsᵀ factors`` off its diagonal. Its leading directions only,
            and at most half as many as there are prompts, so that no prompt's vector can be read from them.
        made_from: What the vectors are, such as ``"decoder layer 1"``.
        base_fingerprint: Of the base that they were made by; empty where none was.
    """

    count: int
    length: float
    mean: Tensor
    variance: Tensor
    factors: Tensor
    made_from: str
    base_fingerprint: str = ""

    @classmethod
    def of(
        cls, vectors: Tensor, lengths: Tensor, *, made_from: str, base_fingerprint: str = ""
    ) -> PromptStatistics:
        """Measure vectors of shape (n, d), n at least 1, and their lengths, (n).

        Cost: an SVD of n × d.
        """
        vectors = vectors.double()
        count = len(vectors)
        centred = vectors - vectors.mean(0)
        scaled = centred / max(count - 1, 1) ** 0.5
        _, values, directions = torch.linalg.svd(scaled, full_matrices=False)
        rank = min(RANK, count // 2)
        return cls(
            count,
            float(lengths.double().mean()),
            vectors.mean(0).float(),
            scaled.square().sum(0).float(),
            (values[:rank, None] * directions[:rank]).float(),
            made_from,
            base_fingerprint,
        )

    def covariance(self) -> Tensor:
        """The covariance, (d, d), float64: leading directions, and the exact diagonal."""
        factors = self.factors.double()
        found = factors.T @ factors
        found.diagonal().copy_(torch.maximum(self.variance.double(), found.diagonal()))
        return found

    def save(self, file: Path) -> None:
        """Write to a file, atomically."""
        tensors = {name: getattr(self, name).contiguous().clone() for name in ("mean", "variance", "factors")}
        facts = {
            "version": VERSION,
            "count": self.count,
            "length": self.length,
            "made_from": self.made_from,
            "base_fingerprint": self.base_fingerprint,
        }
        # One entry: of several, safetensors writes the order anew each time.
        atomic_write_bytes(file, save(tensors, metadata={METADATA_KEY: json.dumps(facts)}))

    @classmethod
    def load(cls, file: Path) -> PromptStatistics:
        """Read what :meth:`save` wrote.

        Raises:
            WorkspaceError: The file is damaged, or of a newer version.
        """
        try:
            with safe_open(str(file), framework="pt") as found:
                facts = json.loads((found.metadata() or {}).get(METADATA_KEY, "{}"))
                if facts.get("version") != VERSION:
                    raise WorkspaceError(
                        "the routing statistics are of another version",
                        got=f"version {facts.get('version')} ({file})",
                        expected=f"version {VERSION}",
                        hint="crma route --build",
                    )
                return cls(
                    facts["count"],
                    facts["length"],
                    found.get_tensor("mean"),
                    found.get_tensor("variance"),
                    found.get_tensor("factors"),
                    facts["made_from"],
                    facts["base_fingerprint"],
                )
        except (SafetensorError, KeyError, ValueError) as error:
            raise WorkspaceError(
                "the routing statistics are damaged", got=f"{file}: {error}", hint="crma route --build"
            ) from None
