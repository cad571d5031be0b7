"""A model is asked about an old and a new side, and learns nothing from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.tokens import Tokens, tensor_rows
from constrained_adapters.diagnosis.beliefs import Belief, denied_beliefs
from constrained_adapters.diagnosis.risk import Signals
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.diagnosis.texts import Side, TextProbe
from constrained_adapters.diagnosis.trial import State, TrialAdapter
from constrained_adapters.evaluation.row_losses import mean_row_nats
from constrained_adapters.memory.base_text import write_base_text
from constrained_adapters.memory.probe import probe_gradients
from constrained_adapters.memory.reservoir import sample_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GRADIENT_ROWS = 256
"""Rows that are kept of each gradient: enough for an angle, and a few hundred MB of an 8 B model."""
BASE_TEXTS = 64
"""Texts that the base writes where there is no old data."""
BASE_TEXT_TOKENS = 64


class Probe(TextProbe):
    """A model that is asked about pairs of sides; what one side needs is measured once.

    Args:
        model: A causal LM; adapters on it stay as they are.
        tokenizer: Its own.
        modules: The layers that would be adapted, by their name in the base.
        settings: Sizes.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        modules: Mapping[str, nn.Module],
        settings: DiagnosisSettings,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, settings, seed=seed)
        self.model, self.modules = model, dict(modules)
        self._gradients: dict[str, dict[str, Tensor]] = {}
        self._losses: dict[str, float] = {}
        self._learnt: dict[str, tuple[State, float]] = {}
        self.last_trial: TrialAdapter | None = None
        """The trial of the last pair, as it ended."""

    def domain(self, domain: Domain, *, known: bool = False) -> Side:
        """A side of a domain's examples."""
        settings = self.settings
        # A trial reads batches of its own; what is held out stands in no training split.
        wanted = max(settings.probe_examples, settings.trial_steps * settings.batch_size)
        return replace(
            super().domain(domain, known=known),
            probe=tuple(map(self.tokens, sample_rows(domain.train, wanted, self.seed))),
            held=tuple(map(self.tokens, domain.validation[: settings.probe_examples])),
        )

    def stand_ins(self) -> Sequence[Side]:
        """Text that the model writes: what it knew before it was taught anything."""
        written = write_base_text(
            self.model,
            num_texts=max(BASE_TEXTS, 2 * self.settings.probe_examples),
            length_tokens=BASE_TEXT_TOKENS,
            seed=self.seed,
        )
        rows = [Tokens(ids.tolist(), labels.tolist()) for ids, labels in written if len(ids) > 1]
        half = len(rows) // 2
        texts = tuple(row.input_ids[1:] for row in rows)
        return [Side("base", (), texts, 0, probe=tuple(rows[:half]), held=tuple(rows[half:]), known=True)]

    def asked(self, new: Side) -> list[Example]:
        """Questions of the new side, ``probe_examples`` at most."""
        drawn = sample_rows(new.examples, len(new.examples), self.seed)
        return [each for each in drawn if each.form != "text"][: self.settings.probe_examples]

    def beliefs(self, asked: Sequence[Example]) -> list[Belief]:
        """The answers that the model is sure of and the data denies."""
        return denied_beliefs(
            self.model,
            self.tokenizer,
            asked,
            min_confidence=self.settings.min_confidence,
            max_length=self.settings.max_length_tokens,
            batch_size=self.settings.batch_size,
        )

    def compare(self, old: Side, new: Side) -> Signals:
        """Measure all signals of a pair.

        Cost: a forward pass over the held rows of each side and a forward and backward one over its probe
        rows, once a side; for the trial ``trial_steps`` steps of the old side, once, and of the new one, and
        two passes over the old side's held rows.
        """
        before, after = self._trial(old, new) if self.settings.trial_steps else (None, None)
        return replace(
            super().compare(old, new),
            old_nats=self.loss(old),
            new_nats=self.loss(new),
            gradient_cosine=self._cosine(self.gradient(old), self.gradient(new)),
            trial_before_nats=before,
            trial_after_nats=after,
        )

    def loss(self, side: Side) -> float:
        """The model's own loss on a side's held rows, nats per label."""
        if side.name not in self._losses:
            self._losses[side.name] = mean_row_nats(self.model, side.held)
        return self._losses[side.name]

    def gradient(self, side: Side) -> dict[str, Tensor]:
        """The gradient of a side's loss by each adapted matrix, mixed down to ``GRADIENT_ROWS`` rows."""
        if side.name not in self._gradients:
            rows = tensor_rows(side.probe[: self.settings.probe_examples])
            self._gradients[side.name] = probe_gradients(
                self.model,
                self.modules,
                rows,
                domain=side.name,
                batch_size=self.settings.batch_size,
                most_rows=GRADIENT_ROWS,
            ).matrices
        return self._gradients[side.name]

    def _trial(self, old: Side, new: Side) -> tuple[float, float]:
        trial = TrialAdapter(self.modules, seed=self.seed)
        if old.name not in self._learnt:
            if not old.known:
                self._learn(trial, old)
            self._learnt[old.name] = (trial.state(), trial.loss_nats(self.model, old.held))
        state, before = self._learnt[old.name]
        trial.restore(state)
        self._learn(trial, new)
        self.last_trial = trial
        return before, trial.loss_nats(self.model, old.held)

    def _learn(self, trial: TrialAdapter, side: Side) -> None:
        settings = self.settings
        trial.learn(
            self.model,
            side.probe,
            num_steps=settings.trial_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.trial_rate,
        )

    def _cosine(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        dots = [float((one[name] * other[name]).sum()) for name in one]
        norms = [math.sqrt(sum(float(g.square().sum()) for g in each.values())) for each in (one, other)]
        return math.fsum(dots) / max(norms[0] * norms[1], 1e-30)
