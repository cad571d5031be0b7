"""Examples of the finished domains that the model has written itself, and answers anew as it goes on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.rehearsal import (
    KeptFile,
    Privacy,
    ReplayBuffer,
    most_diverse,
    refine_answers,
    write_examples,
)

WRITTEN_PER_KEPT = 2
"""Rows that are written for each that is kept: the most diverse of them are."""


@final
class WrittenExamples:
    """One file of token rows, read when it is first asked for.

    Args:
        path: Of the file.
        tokenizer: The model's.
        num_examples: That are kept of each domain.
        max_length_tokens: Longest row.
        private: Whether and how the file is kept: they may say what the data said.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        num_examples: int,
        max_length_tokens: int,
        private: Privacy,
    ) -> None:
        self._file, self._tokenizer = KeptFile(path, private=private), tokenizer
        self._num_examples, self._max_length = num_examples, max_length_tokens
        self._read: ReplayBuffer | None = None

    @property
    def _rows(self) -> dict[str, tuple[Tokens, ...]]:
        if self._read is None:
            found = self._file.read()
            self._read = ReplayBuffer(1) if found is None else found
        return self._read.rows

    @property
    def domains(self) -> list[str]:
        """Of which examples are written, in order."""
        return list(self._rows)

    @property
    def all_rows(self) -> list[Tokens]:
        """Of all domains, oldest first."""
        return [row for rows in self._rows.values() for row in rows]

    def add(self, domain: str, model: Any, *, seed: int, texts: Collection[str]) -> int:
        """Let the model write examples of the domain just learnt, and answer the earlier ones anew.

        Args:
            domain: Not written yet.
            model: As it was when the domain was finished.
            seed: Of the draws.
            texts: The domains whose examples are running text, which has no answer.

        Returns:
            How many examples of the domain are kept.
        """
        written = write_examples(
            model,
            self._tokenizer,
            num_examples=WRITTEN_PER_KEPT * self._num_examples,
            max_length_tokens=self._max_length,
            seed=seed,
            running_text=domain in texts,
        )
        rows = {
            name: old if name in texts or not old else self._answered_anew(model, old)
            for name, old in self._rows.items()
        }
        rows[domain] = tuple(most_diverse(written, self._num_examples))
        self._read = ReplayBuffer(max(sum(map(len, rows.values())), 1), rows)
        self._file.write(self._read)
        return len(rows[domain])

    def _answered_anew(self, model: Any, rows: Sequence[Tokens]) -> tuple[Tokens, ...]:
        return tuple(refine_answers(model, self._tokenizer, rows, max_length_tokens=self._max_length))
