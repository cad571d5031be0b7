"""The gradient memory of one finished domain: compressed K-FAC factors, no example kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.gather import Statistics

FORMAT_VERSION = 1
INPUT_KINDS = ("energy", "weighted")


@dataclass(frozen=True)
class KFACMemory:
    """What is remembered of a domain, per adapted matrix.

    The Fisher of W is approximated as ``output ⊗ energy`` (Martens & Grosse 2015,
    arXiv 1503.05671), per loss token.

    Args:
        domain: Name of the domain.
        base_fingerprint: The base it belongs to.
        groups: For each adapted module the key of its input (q, k and v share one).
        inputs: For each input key and kind (``energy``, ``weighted``) a factor of width d_in.
        outputs: For each module a factor of width d_out.
        num_examples: Examples it was made from.
        loss_nats: Loss per answer token when it was made.
    """

    domain: str
    base_fingerprint: str
    groups: dict[str, str]
    inputs: dict[str, dict[str, Factor]]
    outputs: dict[str, Factor]
    num_examples: int = 0
    loss_nats: float = 0.0

    @classmethod
    def from_statistics(
        cls, stats: Statistics, *, domain: str, base_fingerprint: str, share: float, output_rank: int = 16
    ) -> KFACMemory:
        """Compress the statistics of :func:`~constrained_adapters.memory.gather.gather_statistics`.

        Args:
            stats: Per loss token.
            domain: Name of the domain.
            base_fingerprint: The base it belongs to.
            share: Share of each input factor's trace that its eigenvectors must hold.
            output_rank: Directions kept of each output factor.
        """
        return cls(
            domain=domain,
            base_fingerprint=base_fingerprint,
            groups=dict(stats.groups),
            inputs={
                key: {kind: _stored(getattr(stats, kind)[key], share) for kind in INPUT_KINDS}
                for key in stats.energy
            },
            outputs={name: _stored(value, 1.0, output_rank) for name, value in stats.output.items()},
            num_examples=stats.num_examples,
            loss_nats=stats.loss_nats,
        )

    def predicted_increase_nats(self, deltas: Mapping[str, Tensor]) -> float:
        """``½ Σ_W tr(ΔWᵀ G ΔW A)``: how much the updates raise this domain's loss per token, by K-FAC.

        Args:
            deltas: ΔW of each adapted module since the memory was made, shape (d_out, d_in).

        The quadratic model leaves out the domain's remaining gradient and everything between
        layers: expect too small a figure when many layers move together.
        """
        total = 0.0
        for module, delta in deltas.items():
            if module in self.outputs:
                output, energy = self.outputs[module], self.inputs[self.groups[module]]["energy"]
                rows = delta.T.float().to(output.vectors.device)
                total += 0.5 * float((output.quadratic(rows) * energy.dense()).sum())
        return total

    def to_bytes(self) -> bytes:
        """The memory as one safetensors file; eigenvectors in bfloat16."""
        tensors: dict[str, Tensor] = {}
        rests: dict[str, float] = {}
        for label, factor in self._factors():
            tensors[f"{label}.vectors"] = factor.vectors.to(torch.bfloat16).contiguous()
            tensors[f"{label}.values"] = factor.values.contiguous()
            rests[label] = factor.rest
        facts = {
            "format_version": FORMAT_VERSION,
            "domain": self.domain,
            "base_fingerprint": self.base_fingerprint,
            "groups": self.groups,
            "rests": rests,
            "num_examples": self.num_examples,
            "loss_nats": self.loss_nats,
        }
        return save(tensors, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> KFACMemory:
        """Read a memory file.

        Raises:
            WorkspaceError: The file is damaged, is no gradient memory or holds values that are not finite.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["constrained_adapters"])
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            found = cls._from_file(facts, tensors) if facts["format_version"] == FORMAT_VERSION else None
        except Exception as error:
            raise WorkspaceError(
                "a gradient memory cannot be read",
                got=f"{path}: {type(error).__name__}: {error}",
                hint="make it again from its domain",
            ) from None
        if found is None:
            raise WorkspaceError(
                "a gradient memory is of another format version",
                got=f"{facts['format_version']} in {path}",
                expected=str(FORMAT_VERSION),
            )
        for label, factor in found._factors():
            if not (
                math.isfinite(factor.rest)
                and all(torch.isfinite(t).all() for t in (factor.vectors, factor.values))
            ):
                raise WorkspaceError(
                    f"the gradient memory of domain {found.domain!r} is not finite",
                    got=f"{label.replace(':', ' of layer ')} in {path}",
                    hint="make it again from its domain",
                )
        return found

    @classmethod
    def _from_file(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> KFACMemory:
        inputs: dict[str, dict[str, Factor]] = {}
        outputs: dict[str, Factor] = {}
        for label, rest in facts["rests"].items():
            factor = Factor(tensors[f"{label}.vectors"], tensors[f"{label}.values"], rest)
            kind, _, name = label.partition(":")
            if kind == "output":
                outputs[name] = factor
            else:
                inputs.setdefault(name, {})[kind] = factor
        return cls(
            facts["domain"],
            facts["base_fingerprint"],
            facts["groups"],
            inputs,
            outputs,
            facts["num_examples"],
            facts["loss_nats"],
        )

    def _factors(self) -> Iterator[tuple[str, Factor]]:
        for name, kinds in self.inputs.items():
            for kind, factor in kinds.items():
                yield f"{kind}:{name}", factor
        for name, factor in self.outputs.items():
            yield f"output:{name}", factor


def _stored(matrix: Tensor, share: float, max_rank: int | None = None) -> Factor:
    """What is read back after storing, so that a resumed run computes with the same numbers."""
    factor = Factor.from_dense(matrix.cpu(), share, max_rank)
    return Factor(factor.vectors.to(torch.bfloat16).float(), factor.values, factor.rest)
