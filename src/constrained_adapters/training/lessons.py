"""What is trained on in each domain's turn: its own rows, everybody's, or its own with others mixed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedTokenizerBase

from constrained_adapters.config.run import DomainConfig, MethodConfig, RunConfig, TrainingConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.load import load_domain
from constrained_adapters.data.tokens import TokenDataset, Tokens
from constrained_adapters.errors import ConfigError
from constrained_adapters.evaluation.row_losses import row_losses
from constrained_adapters.recipes import (
    GENERAL_TEXT,
    GENERATED_EXAMPLES,
    REPLAY_CAPACITY,
    find_recipe,
    mixed_ratios,
)
from constrained_adapters.recipes.recipe import Rehearsal
from constrained_adapters.rehearsal import (
    KeptFile,
    ReplayBuffer,
    Source,
    least_length_tokens,
    mix_sources,
    row_bytes,
    write_golden_set,
)
from constrained_adapters.training.written import WrittenExamples

BUFFER_FILE = "replay_buffer.safetensors"
GOLDEN_FILE = "golden_set.safetensors"
MIN_TEXT_TOKENS = 16
"""Shorter beginnings of texts teach nothing of a language."""
WRITTEN_FILE = "written_examples.safetensors"


@dataclass(frozen=True)
class Prepared:
    """What all methods of a run share: data, texts, the tokenizer, and the base.

    A method that trains weights of its own leaves the base as it was loaded; others put theirs into it.
    """

    domains: tuple[Domain, ...]
    general_texts: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    base: Any


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
        folder: Where kept examples lie; nothing is written unless the recipe keeps any, and nothing is read
            before it is asked for.

    Raises:
        DataError: The text that is mixed in cannot be read.
        ConfigError: ``replay_capacity_bytes`` has no room for a batch of the domains' rows, or
            ``max_length_tokens`` none for an example that the model writes.
    """

    def __init__(self, prepared: Prepared, config: RunConfig, method: MethodConfig, folder: Path) -> None:
        self._prepared, self._config, self._settings = prepared, config, config.training
        self._method, self._recipe = method, find_recipe(method)
        self._file = KeptFile(folder / BUFFER_FILE, private=config.private)
        self._golden_file = KeptFile(folder / GOLDEN_FILE, private=False)
        self._read: ReplayBuffer | None = None
        self._tell: Callable[[str], None] | None = None
        self._written = WrittenExamples(
            folder / WRITTEN_FILE,
            prepared.tokenizer,
            num_examples=method.generated_examples or GENERATED_EXAMPLES,
            max_length_tokens=self._settings.max_length_tokens,
            private=config.private,
        )
        self._general: Sequence[Tokens] = ()
        self._golden: Sequence[Tokens] = ()
        self.fingerprint = ""
        """Of the text that is mixed in; empty where none is."""
        self._ratios = dict(mixed_ratios(method, self._recipe))
        prevent = config.collapse_settings if self._recipe.trained != "nothing" else None
        if "general_text" in self._recipe.rehearsals:
            self._general = self._from(method.general_text or GENERAL_TEXT)
        elif prevent is not None and prevent.general_ratio > 0.0:
            self._general = self._as_short_as_rows(self._from(prevent.general_text))
            self._ratios["general_text"] = prevent.general_ratio
        if method.golden_set is not None:
            self._golden = self._from(method.golden_set)
        self.base_rows: Sequence[Tokens] = () if method.base_text is None else self._from(method.base_text)
        """What the base's memory is made of, where it does not write that itself."""
        if method.replay_capacity_bytes is not None:
            self._check_room(method.replay_capacity_bytes)
        if "generated" in self._recipe.rehearsals:
            self._check_length()

    def _check_room(self, capacity_bytes: int) -> None:
        rows = self.tokens([each for domain in self._prepared.domains for each in domain.train]).tokens
        batch, mean = self._settings.batch_size, sum(map(row_bytes, rows)) / len(rows)
        if capacity_bytes < batch * mean:
            raise ConfigError(
                "the replay buffer is smaller than a batch",
                got=f"methods: {self._method.name}: replay_capacity_bytes = {capacity_bytes}",
                expected=f"at least {math.ceil(batch * mean)}: training.batch_size = {batch} rows of "
                f"{mean:.0f} bytes on average",
            )

    def _check_length(self) -> None:
        length, tokenizer = self._settings.max_length_tokens, self._prepared.tokenizer
        for domain in self._prepared.domains:
            least = least_length_tokens(tokenizer, running_text=domain.form == "text")
            if length < least:
                raise ConfigError(
                    f"the model could write no example of {domain.name!r}",
                    got=f"methods: {self._method.name}: training.max_length_tokens = {length}",
                    expected=f"at least {least}: what stands around every example, and two tokens",
                )

    def _from(self, source: str) -> Sequence[Tokens]:
        """Rows of no domain, from a source that is noted in the fingerprint."""
        domain = load_domain(DomainConfig(name="mixed_in", data=source), self._config.seed)
        self.fingerprint += domain.fingerprint
        return self.tokens(domain.train).tokens

    def _as_short_as_rows(self, texts: Sequence[Tokens]) -> Sequence[Tokens]:
        """Cut so that a text costs what a row of the domains does: a shared beginning is nearly free."""
        examples = [example for domain in self._prepared.domains for example in domain.train[:64]]
        rows = [row.input_ids for row in self.tokens(examples).tokens]
        alike = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
        shared = len(list(alike)) if self._settings.share_prefixes else 0
        length = max(round(median(map(len, rows))) - shared, MIN_TEXT_TOKENS)
        return [Tokens(text.input_ids[:length], text.labels[:length]) for text in texts]

    def prepare(self, tell: Callable[[str], None], untouched: Callable[[], Any]) -> None:
        """Let the base write its golden set, where that is wanted and not there yet.

        Args:
            tell: Says what takes long, here and later what could not be kept.
            untouched: Gives the base as it was before any domain.
        """
        self._tell = tell
        if "golden_set" not in self._recipe.rehearsals or self._golden:
            return
        golden = self._golden_file.read()
        if golden is None:
            tell("the base writes facts, reasoning and language that it is to keep")
            made = write_golden_set(untouched(), self._prepared.tokenizer, seed=self._config.seed)
            rows = {kind: tuple(rows) for kind, rows in made.rows.items()}
            kept, written = (int(made.facts[name]) for name in ("golden_kept", "golden_written"))
            tell(f"the base is sure of {kept} of {written}: they are kept")
            golden = ReplayBuffer(max(sum(map(len, rows.values())), 1), rows)
            self._golden_file.write(golden)
        self._golden = golden.all_rows

    @property
    def _buffer(self) -> ReplayBuffer:
        if self._read is None:
            self._read = self._file.read()
        if self._read is None:
            self._read = ReplayBuffer(
                self._method.replay_capacity or REPLAY_CAPACITY,
                capacity_bytes=self._method.replay_capacity_bytes,
                selection=self._method.replay_selection or "reservoir",
            )
        return self._read

    def kept(self) -> Mapping[str, Sequence[Tokens]]:
        """The kept rows of each finished domain."""
        return self._buffer.rows if self._recipe.keeps_examples else {}

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

        ``all``: every domain's rows, for as many steps as the whole sequence takes, in the first turn. What
        is mixed in takes the place of rows: the number of steps does not change.
        """
        settings, domains = self._settings, self._prepared.domains
        if self._recipe.in_one_turn:
            if settings.steps is not None:
                settings = settings.model_copy(update={"steps": settings.steps * len(domains)})
            rows = self.tokens([each for domain in domains for each in domain.train])
        else:
            rows = self.tokens(domains[number - 1].train)
        sources = self._sources()
        if not sources:
            return Lesson(rows, settings)
        steps = num_steps(settings, len(rows))
        mixed = mix_sources(
            rows.tokens,
            sources,
            num_rows=steps * settings.batch_size * settings.gradient_accumulation_steps,
            seed=self._config.seed * 1000 + number,
        )
        fixed = settings.model_copy(update={"steps": steps, "epochs": None})
        return Lesson(mixed, fixed, in_order=True)

    def _sources(self) -> list[Source]:
        """What is mixed in now, where there is anything of it."""
        rows: dict[Rehearsal, Sequence[Tokens]] = {"general_text": self._general, "golden_set": self._golden}
        if "replay" in self._recipe.rehearsals:
            rows["replay"] = self._buffer.all_rows
        if "generated" in self._recipe.rehearsals:
            rows["generated"] = self._written.all_rows
        return [
            Source(name.replace("_", " "), rows[name], ratio)
            for name, ratio in self._ratios.items()
            if rows[name] and ratio > 0.0
        ]

    def keep(self, number: int, learnt: Callable[[], Any]) -> None:
        """Keep, or let the model write, examples of a finished domain, where that is not done yet.

        Args:
            number: Of the domain.
            learnt: Gives the model as it was when the domain was finished.
        """
        domain = self._prepared.domains[number - 1]
        seed = self._config.seed * 1000 + number
        if "generated" in self._recipe.rehearsals and domain.name not in self._written.domains:
            texts = [each.name for each in self._prepared.domains if each.form == "text"]
            num_written = self._written.add(domain.name, learnt(), seed=seed, texts=texts)
            if not num_written and self._tell is not None:
                self._tell(f"{domain.name}: the model wrote no example of it, so none will be mixed in")
        if not self._recipe.keeps_examples or domain.name in self._buffer.rows:
            return
        rows = self.tokens(domain.train).tokens
        losses = row_losses(learnt(), rows) if self._buffer.selection == "highest_loss" else None
        self._read = self._buffer.with_domain(domain.name, rows, seed=seed, losses=losses)
        self._file.write(self._read)


def num_steps(settings: TrainingConfig, num_rows: int) -> int:
    """Optimizer steps that the stock Trainer takes on ``num_rows`` rows."""
    if settings.steps is not None:
        return settings.steps
    batches = math.ceil(num_rows / settings.batch_size)
    per_epoch = max(math.ceil(batches / settings.gradient_accumulation_steps), 1)
    return math.ceil((settings.epochs or 1.0) * per_epoch)
