"""What can be told of an old and a new side from their texts alone; no model is asked, nothing is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.tokens import Tokens, encode_example
from constrained_adapters.diagnosis.beliefs import Belief
from constrained_adapters.diagnosis.distributions import same_length, token_kl_nats, vocabulary_jaccard
from constrained_adapters.diagnosis.risk import Signals
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.memory.reservoir import sample_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Side:
    """What is known of one side: a domain, or text that the base wrote.

    Args:
        name: Of the domain, or ``base``.
        examples: All of them; empty for text of the base.
        texts: Token ids of what is read, row by row.
        num_train: Training examples.
        notes: What was dropped while it was read.
        probe: Rows that gradients are taken on and a trial learns from; empty where no model is asked.
        held: Rows that losses are taken on, none of them in ``probe``.
        known: Whether the model has learnt this side already.
    """

    name: str
    examples: tuple[Example, ...]
    texts: tuple[list[int], ...]
    num_train: int
    notes: tuple[str, ...] = ()
    probe: tuple[Tokens, ...] = ()
    held: tuple[Tokens, ...] = ()
    known: bool = False


class TextProbe:
    """Compares texts; :class:`~constrained_adapters.diagnosis.probe.Probe` asks a model too.

    Args:
        tokenizer: Of the base.
        settings: Sizes.
        seed: Of what is drawn.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: DiagnosisSettings, *, seed: int = 0
    ) -> None:
        self.tokenizer, self.settings, self.seed = tokenizer, settings, seed

    def domain(self, domain: Domain, *, known: bool = False) -> Side:
        """A side of a domain's examples."""
        examples = (*domain.train, *domain.validation, *domain.test)
        texts: list[list[int]] = []
        num_tokens = 0
        for example in sample_rows(examples, len(examples), self.seed):
            if num_tokens >= self.settings.distribution_tokens:
                break
            texts.append(self.tokens(example).input_ids)
            num_tokens += len(texts[-1])
        return Side(domain.name, examples, tuple(texts), len(domain.train), domain.notes, known=known)

    def stand_ins(self) -> Sequence[Side]:
        """What a domain is set against that has none before it: nothing, where no model can write."""
        return ()

    def asked(self, new: Side) -> list[Example]:
        """The questions on which a model's own answers are compared with the data's: none."""
        return []

    def beliefs(self, asked: Sequence[Example]) -> list[Belief]:
        """The answers that a model is sure of and the data denies: none is known."""
        return []

    def compare(self, old: Side, new: Side) -> Signals:
        """Measure what can be measured of a pair."""
        texts = same_length(new.texts, old.texts, most=self.settings.distribution_tokens)
        return Signals(token_kl_nats(*texts), vocabulary_jaccard(*texts))

    def tokens(self, example: Example) -> Tokens:
        """One example as training reads it."""
        return encode_example(example, self.tokenizer, self.settings.max_length_tokens)
