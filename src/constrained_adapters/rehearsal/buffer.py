"""Kept examples of the finished domains, which share a fixed capacity equally.

Each domain's rows are kept in an order (see :mod:`~constrained_adapters.rehearsal.selection`), and all that
is ever done is to shorten them; so what is kept of a domain is one whatever came later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from safetensors.torch import load, save
from torch import Tensor

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.rehearsal.selection import Selection, order_rows

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ReplayBuffer:
    """At most ``capacity`` rows; this is old data, whoever may not keep any must not use it.

    Args:
        capacity: Most rows of all domains together, 1 or more.
        rows: For each finished domain, in order, its kept rows.
        capacity_bytes: Most bytes of their tokens and labels, as the file holds them; None for no bound.
        selection: Which rows of a domain are kept first.

    Raises:
        ConfigError: A capacity is under 1.
    """

    capacity: int
    rows: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)
    capacity_bytes: int | None = None
    selection: Selection = "reservoir"

    def __post_init__(self) -> None:
        if self.capacity < 1 or (self.capacity_bytes is not None and self.capacity_bytes < 1):
            raise ConfigError(
                "a replay buffer has room for nothing",
                got=f"capacity = {self.capacity}, capacity_bytes = {self.capacity_bytes}",
                expected="1 or more",
            )

    def __len__(self) -> int:
        return sum(len(kept) for kept in self.rows.values())

    @property
    def all_rows(self) -> list[Tokens]:
        """The rows of all domains, oldest domain first."""
        return [row for kept in self.rows.values() for row in kept]

    @property
    def num_bytes(self) -> int:
        """What counts against ``capacity_bytes``."""
        return sum(map(row_bytes, self.all_rows))

    def with_domain(
        self,
        domain: str,
        rows: Sequence[Tokens],
        *,
        seed: int,
        losses: Sequence[float] | None = None,
        embeddings: Tensor | None = None,
    ) -> ReplayBuffer:
        """The buffer with rows of one more domain; earlier ones give up what is over their new share.

        Args:
            domain: Not in the buffer yet.
            rows: What it was trained on.
            seed: Of the sample.
            losses: See :func:`~constrained_adapters.rehearsal.selection.order_rows`.
            embeddings: See there.

        With t domains each keeps ``capacity // t`` rows, and the first ``capacity % t`` one more; of these
        the first that fit into ``capacity_bytes // t`` bytes.

        Raises:
            ConfigError: What the selection wants is missing.
        """
        assert domain not in self.rows
        chosen = order_rows(
            rows, self.selection, count=self.capacity, seed=seed, losses=losses, embeddings=embeddings
        )
        grown = {**self.rows, domain: tuple(chosen)}
        share, over = divmod(self.capacity, len(grown))
        room = None if self.capacity_bytes is None else self.capacity_bytes // len(grown)
        shares = {
            name: _fitting(kept[: share + (place < over)], room)
            for place, (name, kept) in enumerate(grown.items())
        }
        return replace(self, rows=shares)

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
            "capacity_bytes": self.capacity_bytes,
            "selection": self.selection,
            "num_rows": {domain: len(kept) for domain, kept in self.rows.items()},
        }
        return save(tensors, metadata={"constrained_adapters": json.dumps(facts)})

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> ReplayBuffer:
        """Read what :meth:`to_bytes` gave.

        Args:
            content: The whole file.
            where: Its path, for the error.

        Raises:
            WorkspaceError: It is damaged or is no replay buffer of this version.
        """
        try:
            tensors, length = load(content), int.from_bytes(content[:8], "little")
            facts = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["constrained_adapters"])
            assert facts["format_version"] == FORMAT_VERSION, facts["format_version"]
            lengths = tensors["lengths_tokens"].tolist()
            ids, labels = (tensors[name].split(lengths) for name in ("input_ids", "labels"))
            tokens = iter([Tokens(i.tolist(), la.tolist()) for i, la in zip(ids, labels, strict=True)])
            rows = {name: tuple(next(tokens) for _ in range(n)) for name, n in facts["num_rows"].items()}
            return cls(
                facts["capacity"],
                rows,
                facts.get("capacity_bytes"),
                facts.get("selection", "reservoir"),
            )
        except Exception as error:
            raise WorkspaceError(
                "the replay buffer cannot be read",
                got=f"{where}: {type(error).__name__}: {error}",
                hint="begin anew with --fresh",
            ) from None


def row_bytes(row: Tokens) -> int:
    """Of token ids, labels and length, each number of 4 bytes."""
    return 4 * (2 * len(row.input_ids) + 1)


def _fitting(rows: tuple[Tokens, ...], room: int | None) -> tuple[Tokens, ...]:
    """The longest beginning that fits into ``room`` bytes."""
    if room is None:
        return rows
    ends = accumulate(map(row_bytes, rows))
    return rows[: sum(end <= room for end in ends)]


def _joined(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for row in rows for token in row], dtype=torch.int32)
