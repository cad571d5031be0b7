"""Kept examples of the finished domains, which share a fixed capacity equally.

Each domain's rows are kept in a random order, and all that is ever done is to shorten them: the first
m rows of a uniform permutation are a uniform sample of size m, as a reservoir (Vitter 1985) would be, so
what is kept of a domain is one whatever came later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.memory.reservoir import sample_rows

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReplayBuffer:
    """At most ``capacity`` rows; this is old data, whoever may not keep any must not use it.

    Args:
        capacity: Most rows of all domains together, 1 or more.
        rows: For each finished domain, in order, its kept rows.
    """

    capacity: int
    rows: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(kept) for kept in self.rows.values())

    @property
    def all_rows(self) -> list[Tokens]:
        """The rows of all domains, oldest domain first."""
        return [row for kept in self.rows.values() for row in kept]

    def with_domain(self, domain: str, rows: Sequence[Tokens], *, seed: int) -> ReplayBuffer:
        """The buffer with a sample of one more domain; earlier ones give up what is over their new share.

        Args:
            domain: Not in the buffer yet.
            rows: What it was trained on.
            seed: Of the sample.

        With t domains each keeps ``capacity // t`` rows, and the first ``capacity % t`` one more.
        """
        assert domain not in self.rows
        grown = {**self.rows, domain: tuple(sample_rows(rows, self.capacity, seed))}
        share, over = divmod(self.capacity, len(grown))
        return ReplayBuffer(
            self.capacity,
            {name: kept[: share + (place < over)] for place, (name, kept) in enumerate(grown.items())},
        )

    def to_bytes(self) -> bytes:
        """The buffer as one safetensors file: token ids and labels, never text."""
        rows = self.all_rows
        tensors = {
            "input_ids": _joined([row.input_ids for row in rows]),
            "labels": _joined([row.labels for row in rows]),
            "lengths_tokens": torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int32),
        }
        facts = {
            "format_version": FORMAT_VERSION,
            "capacity": self.capacity,
            "num_rows": {domain: len(kept) for domain, kept in self.rows.items()},
        }
        return save(tensors, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> ReplayBuffer:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            WorkspaceError: The file is damaged or is no replay buffer of this version.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["constrained_adapters"])
                assert facts["format_version"] == FORMAT_VERSION, facts["format_version"]
                lengths = file.get_tensor("lengths_tokens").tolist()
                ids, labels = (file.get_tensor(name).split(lengths) for name in ("input_ids", "labels"))
            tokens = iter([Tokens(i.tolist(), la.tolist()) for i, la in zip(ids, labels, strict=True)])
            rows = {name: tuple(next(tokens) for _ in range(n)) for name, n in facts["num_rows"].items()}
            return cls(facts["capacity"], rows)
        except Exception as error:
            raise WorkspaceError(
                "the replay buffer cannot be read",
                got=f"{path}: {type(error).__name__}: {error}",
                hint="begin anew with --fresh",
            ) from None


def _joined(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for row in rows for token in row], dtype=torch.int32)
