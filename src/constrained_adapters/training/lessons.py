"""What is trained on in each domain's turn: its own rows, everybody's, or its own with kept ones mixed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from constrained_adapters.config import MethodConfig, RunConfig, TrainingConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.recipes import REPLAY_CAPACITY, REPLAY_RATIO, find_recipe
from constrained_adapters.rehearsal import ReplayBuffer, mix_rows
from constrained_adapters.workspace import atomic_write_bytes

BUFFER_FILE = "replay_buffer.safetensors"


@dataclass(frozen=True)
class Prepared:
    """What all methods of a run share: data, texts, the tokenizer."""

    domains: tuple[Domain, ...]
    general_texts: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lesson:
    """Rows, and the settings under which they are trained on.

    Args:
        rows: Of tokens.
        settings: With as many steps as the lesson takes.
        in_order: Whether the rows come in their order already.
    """

    rows: TokenDataset
    settings: TrainingConfig
    in_order: bool = False


class Lessons:
    """The lessons of one method, and the examples that it keeps for them.

    Args:
        prepared: Data and tokenizer.
        config: Of the run.
        method: Of ``config.methods``.
        folder: Where kept examples lie; nothing is written unless the recipe keeps any.
    """

    def __init__(self, prepared: Prepared, config: RunConfig, method: MethodConfig, folder: Path) -> None:
        self._prepared, self._settings, self._seed = prepared, config.training, config.seed
        self._recipe, self._path = find_recipe(method), folder / BUFFER_FILE
        self._ratio = REPLAY_RATIO if method.replay_ratio is None else method.replay_ratio
        self._buffer = ReplayBuffer(method.replay_capacity or REPLAY_CAPACITY)
        if "replay" in self._recipe.rehearsals and self._path.is_file():
            self._buffer = ReplayBuffer.load(self._path)

    def tokens(self, examples: Sequence[Example]) -> TokenDataset:
        """Examples as rows of tokens, cut as the settings say."""
        return TokenDataset.from_examples(
            examples, self._prepared.tokenizer, self._settings.max_length_tokens
        )

    def is_empty(self, number: int) -> bool:
        """Whether nothing is trained in the turn of domain ``number`` (from 1)."""
        return self._recipe.trained == "nothing" or (self._recipe.in_one_turn and number > 1)

    def lesson(self, number: int) -> Lesson:
        """What is trained on in the turn of domain ``number``, which must not be empty.

        ``all``: every domain's rows, for as many steps as the whole sequence takes, in the first turn.
        ``replay``: the domain's rows with the kept ones mixed in; the number of steps does not change.
        """
        settings, domains = self._settings, self._prepared.domains
        if self._recipe.in_one_turn:
            if settings.steps is not None:
                settings = settings.model_copy(update={"steps": settings.steps * len(domains)})
            return Lesson(self.tokens([each for domain in domains for each in domain.train]), settings)
        rows = self.tokens(domains[number - 1].train)
        if "replay" not in self._recipe.rehearsals or not len(self._buffer) or self._ratio == 0.0:
            return Lesson(rows, settings)
        steps = num_steps(settings, len(rows))
        mixed = mix_rows(
            rows.tokens,
            self._buffer.all_rows,
            num_rows=steps * settings.batch_size * settings.gradient_accumulation_steps,
            ratio=self._ratio,
            seed=self._seed * 1000 + number,
        )
        fixed = settings.model_copy(update={"steps": steps, "epochs": None})
        return Lesson(mixed, fixed, in_order=True)

    def keep(self, number: int) -> None:
        """Keep examples of a finished domain, where the recipe does and they are not kept yet."""
        domain = self._prepared.domains[number - 1]
        if "replay" not in self._recipe.rehearsals or domain.name in self._buffer.rows:
            return
        rows = self.tokens(domain.train).tokens
        self._buffer = self._buffer.with_domain(domain.name, rows, seed=self._seed * 1000 + number)
        atomic_write_bytes(self._path, self._buffer.to_bytes())


def num_steps(settings: TrainingConfig, num_rows: int) -> int:
    """Optimizer steps that the stock Trainer takes on ``num_rows`` rows."""
    if settings.steps is not None:
        return settings.steps
    batches = math.ceil(num_rows / settings.batch_size)
    per_epoch = max(math.ceil(batches / settings.gradient_accumulation_steps), 1)
    return math.ceil((settings.epochs or 1.0) * per_epoch)
