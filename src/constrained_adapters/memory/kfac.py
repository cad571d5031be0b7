"""The gradient memory of one finished domain: compressed K-FAC factors and gradients, no example kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.memory.factors import Factor, common_basis, read_directions
from constrained_adapters.memory.gradient_sketch import GradientSketch
from constrained_adapters.memory.rounding import RoundedColumns
from constrained_adapters.memory.statistics import Statistics

FORMAT_VERSION = 4
INPUT_KINDS = ("sensitivity", "energy")
INPUT_RANK = 256
OUTPUT_RANK = 16
BASE_DOMAIN = "base"
"""The name under which the base's own knowledge is remembered: domain 0."""


@dataclass(frozen=True)
class KFACMemory:
    """What is remembered of a domain, per adapted matrix.

    The Fisher of W is approximated as ``output ⊗ energy`` (Martens & Grosse 2015,
    arXiv 1503.05671), per loss token.

    Args:
        domain: Name of the domain.
        base_fingerprint: The base it belongs to.
        groups: For each adapted module the key of its input (q, k and v share one).
        inputs: For each input key and kind (``sensitivity``, ``energy``) a factor of width d_in.
        outputs: For each module a factor of width d_out.
        num_examples: Examples it was made from.
        loss_nats: Loss per answer token when it was made.
        num_domains: How many domains' memories were merged into it.
        sketch: What predicts better than K-FAC, where there is one.
    """

    domain: str
    base_fingerprint: str
    groups: dict[str, str]
    inputs: dict[str, dict[str, Factor]]
    outputs: dict[str, Factor]
    num_examples: int = 0
    loss_nats: float = 0.0
    num_domains: int = 1
    sketch: GradientSketch | None = None

    @classmethod
    def from_statistics(
        cls,
        stats: Statistics,
        *,
        domain: str,
        base_fingerprint: str,
        shares: Mapping[str, float],
        input_rank: int = INPUT_RANK,
        output_rank: int = OUTPUT_RANK,
    ) -> KFACMemory:
        """Compress the statistics of :func:`~constrained_adapters.memory.gather.gather_statistics`.

        Args:
            stats: Per loss token.
            domain: Name of the domain.
            base_fingerprint: The base it belongs to.
            shares: For each input kind the share of its trace that the kept directions must hold, 0 … 1; the
                first is served first where ``input_rank`` binds.
            input_rank: Most directions kept of an input; where it binds, less is held.
            output_rank: Directions kept of each output factor.
        """
        return cls(
            domain=domain,
            base_fingerprint=base_fingerprint,
            groups=dict(stats.groups),
            inputs={
                key: Factor.stored_together(
                    {kind: getattr(stats, kind)[key] for kind in INPUT_KINDS},
                    common_basis(
                        [getattr(stats, kind)[key] for kind in shares],
                        list(shares.values()),
                        input_rank,
                    ),
                )
                for key in stats.energy
            },
            outputs={name: Factor.stored(value, output_rank) for name, value in stats.output.items()},
            num_examples=stats.num_examples,
            loss_nats=stats.loss_nats,
        )

    def predicted_increase_nats(self, deltas: Mapping[str, Tensor]) -> float:
        """``½ Σ_W tr(ΔWᵀ G ΔW A)``: how much the updates raise this domain's loss per token, by K-FAC.

        For a merged memory, the sum over its domains.

        Args:
            deltas: ΔW of each adapted module since the memory was made, shape (d_out, d_in).

        The quadratic model leaves out the domain's remaining gradient and everything between
        layers: expect too small a figure when many layers move together; ``sketch`` keeps both.
        """
        total = 0.0
        for module, delta in deltas.items():
            if module in self.outputs:
                output, energy = self.outputs[module], self.inputs[self.groups[module]]["energy"]
                # tr = ‖√G ΔW √A‖², in four blocks of directions and axes: no d × d matrix is made.
                for part in output.roots(delta.T.float().to(output.vectors.device)):
                    total += 0.5 * sum(float(block.square().sum()) for block in energy.roots(part.T))
        return total

    def to_bytes(self) -> bytes:
        """The memory as one safetensors file: directions in few bits, a common basis once; the sketch."""
        tensors: dict[str, Tensor] = {}
        for label, name, factor in self._factors():
            # One made by hand, from directions that were never rounded, is none to be stored.
            assert factor.basis is not None, label
            tensors[_basis_of(label, name)] = factor.basis.packed()
            if factor.turn is not None:
                tensors[f"{label}.turn"] = factor.turn.packed()
            tensors[f"{label}.values"] = factor.values.contiguous()
            tensors[f"{label}.rest"] = factor.rest.to(torch.bfloat16)
        if self.sketch is not None:
            tensors |= {f"sketch:{name}": t.contiguous() for name, t in self.sketch.tensors().items()}
        facts = {
            "format_version": FORMAT_VERSION,
            "domain": self.domain,
            "base_fingerprint": self.base_fingerprint,
            "groups": self.groups,
            "factors": [label for label, _, _ in self._factors()],
            "num_examples": self.num_examples,
            "loss_nats": self.loss_nats,
            "num_domains": self.num_domains,
            "sketch": None if self.sketch is None else self.sketch.facts(),
        }
        return save(tensors, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> KFACMemory:
        """Read a memory file.

        Raises:
            WorkspaceError: The file is damaged, is no gradient memory, is of another format version or holds
                values that are not finite.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["constrained_adapters"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
                hint="make it again from its domain (crma run --fresh), or use the version that wrote it",
            )
        for label, _, factor in found._factors():
            if not all(torch.isfinite(t).all() for t in (factor.vectors, factor.values, factor.rest)):
                raise WorkspaceError(
                    f"the gradient memory of domain {found.domain!r} is not finite",
                    got=f"{label.replace(':', ' of layer ', 1)} in {path}",
                    hint="make it again from its domain",
                )
        sketch = found.sketch
        for name in sketch.left if sketch is not None else ():
            if sketch is not None and not sketch.is_finite(name):
                raise WorkspaceError(
                    f"the gradient memory of domain {found.domain!r} is not finite",
                    got=f"sketch of layer {name} in {path}",
                    hint="make it again from its domain",
                )
        return found

    @classmethod
    def _from_file(cls, facts: dict[str, Any], stored: dict[str, Tensor]) -> KFACMemory:
        parts = {n.removeprefix("sketch:"): t for n, t in stored.items() if n.startswith("sketch:")}
        inputs: dict[str, dict[str, Factor]] = {}
        outputs: dict[str, Factor] = {}
        for label in facts["factors"]:
            kind, _, name = label.partition(":")
            values, rest = stored[f"{label}.values"], stored[f"{label}.rest"].float()
            d, k = rest.numel(), values.numel()
            basis, turn = RoundedColumns.unpacked(stored[_basis_of(label, name)], d, k), None
            if f"{label}.turn" in stored:
                turn = RoundedColumns.unpacked(stored[f"{label}.turn"], k, k)
            factor = Factor(read_directions(basis, turn), values, rest, basis, turn)
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
            facts["num_domains"],
            GradientSketch.restored(facts["sketch"], parts) if facts.get("sketch") else None,
        )

    def _factors(self) -> Iterator[tuple[str, str, Factor]]:
        for name, kinds in self.inputs.items():
            for kind, factor in kinds.items():
                yield f"{kind}:{name}", name, factor
        for name, factor in self.outputs.items():
            yield f"output:{name}", name, factor


def _basis_of(label: str, name: str) -> str:
    """Where the directions of a factor are stored: those of one input together."""
    return f"{label}.basis" if label.startswith("output:") else f"basis:{name}"
