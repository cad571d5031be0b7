"""All of a diagnosis: a new domain against the old ones, or against what the base knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from constrained_adapters.diagnosis.advice import Advice, advise
from constrained_adapters.diagnosis.beliefs import Belief, denied_beliefs
from constrained_adapters.diagnosis.contradictions import Contradiction, find_contradictions
from constrained_adapters.diagnosis.probe import Probe, Side
from constrained_adapters.diagnosis.risk import LEVELS, Finding, Level, Signals, assess, highest
from constrained_adapters.errors import DataError
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.probe import closed_share
from constrained_adapters.memory.protected import InputKind, ProtectedSpace
from constrained_adapters.memory.reservoir import sample_rows


@dataclass(frozen=True)
class Remembered:
    """What a finished domain's memory says of the new one; no old data is read for it.

    Args:
        closed_share: Of the new domain's gradient, in directions that this memory closes, 0 … 1.
        predicted_increase_nats: How much the trial on the new domain raises the finished one's loss, by the
            memory; None without a trial.
    """

    closed_share: float
    predicted_increase_nats: float | None


@dataclass(frozen=True)
class PairDiagnosis:
    """The new domain against one old one.

    Args:
        old: Its name; ``base`` for text that the base wrote.
        level: Of risk.
        signals: All figures.
        findings: The reasons.
        contradictions: Of new examples to old ones.
    """

    old: str
    level: Level
    signals: Signals
    findings: tuple[Finding, ...]
    contradictions: tuple[Contradiction, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What a new domain would do to the old ones, and what to do about it.

    Args:
        new: Its name.
        level: The highest of its pairs.
        pairs: One for each old domain.
        remembered: What the memories of finished domains say, by domain.
        within: Contradictions within the new data.
        beliefs: Answers that the model is sure of and the new data denies.
        num_asked: Questions that were asked for that.
        num_examples: By side, all splits.
        notes: By side: what was read, dropped and deduplicated.
        advice: With reasons.
    """

    new: str
    level: Level
    pairs: tuple[PairDiagnosis, ...]
    remembered: Mapping[str, Remembered]
    within: tuple[Contradiction, ...]
    beliefs: tuple[Belief, ...]
    num_asked: int
    num_examples: Mapping[str, int]
    notes: Mapping[str, tuple[str, ...]]
    advice: Advice

    def plain(self) -> dict[str, Any]:
        """As plain data, for JSON; with each pair's ``trial_increase``."""
        data = asdict(self)
        for pair, record in zip(self.pairs, data["pairs"], strict=True):
            record["signals"]["trial_increase"] = pair.signals.trial_increase
        return data


def diagnose(
    probe: Probe,
    olds: Sequence[Side],
    new: Side,
    *,
    memories: Mapping[str, KFACMemory] | None = None,
    strength: float = 0.8,
    kind: InputKind = "sensitivity",
    going_on: str | None = None,
    protects: bool = False,
) -> Diagnosis:
    """Measure a new side against each old one, and conclude.

    Args:
        probe: The model that would be taught.
        olds: Old domains; none: what the base writes stands in for what it knows.
        new: The new domain.
        memories: Of finished domains, by name.
        strength: Of the constraint whose closed directions count.
        kind: Which inputs it closes.
        going_on: The recipe of the run that the new domain would join; None for a run of its own.
        protects: Whether that recipe protects finished domains.

    Raises:
        DataError: All of the new data is old data.
        TrainingError: A loss or a gradient is not finite.
    """
    settings, seed = probe.settings, probe.seed
    notes = [*new.notes, *_notes(olds, new)]
    asked = [each for each in sample_rows(new.examples, len(new.examples), seed) if each.form != "text"]
    asked = asked[: settings.probe_examples]
    beliefs = denied_beliefs(
        probe.model,
        probe.tokenizer,
        asked,
        min_confidence=settings.min_confidence,
        max_length=settings.max_length_tokens,
        batch_size=settings.batch_size,
    )
    pairs = []
    for old in olds or [probe.base_text()]:
        signals = probe.compare(old, new)
        found = [each for each in find_contradictions(old.examples, new.examples) if each.where == "old"]
        findings = assess(
            signals,
            num_new=len(new.examples),
            num_contradictions=len({(each.question, each.answer) for each in found}),
            num_denied=len(beliefs),
            num_asked=len(asked),
            settings=settings,
        )
        pairs.append(PairDiagnosis(old.name, highest(findings), signals, tuple(findings), tuple(found)))
    level = max((pair.level for pair in pairs), key=LEVELS.index)
    sides = [*olds, new]
    return Diagnosis(
        new.name,
        level,
        tuple(pairs),
        {name: _remembered(probe, new, memory, strength, kind) for name, memory in (memories or {}).items()},
        tuple(find_contradictions((), new.examples)),
        tuple(beliefs),
        len(asked),
        {side.name: len(side.examples) for side in sides},
        {**{side.name: side.notes for side in olds}, new.name: tuple(notes)},
        advise(
            level,
            num_train=new.num_train,
            num_old=len(olds),
            old_data_at_hand=any(old.examples for old in olds),
            on_gpu=torch.cuda.is_available(),
            small_data=settings.small_data,
            num_contradictions=sum(len(pair.contradictions) for pair in pairs),
            going_on=going_on,
            protects=protects,
        ),
    )


def diagnose_sequence(probe: Probe, sides: Sequence[Side]) -> list[Diagnosis]:
    """Each domain of a sequence against the earlier ones, the first against what the base knows."""
    return [diagnose(probe, sides[:number], side) for number, side in enumerate(sides)]


def _notes(olds: Sequence[Side], new: Side) -> list[str]:
    """What is odd about the new data beside the old."""
    notes = []
    answers = {example.reference for example in new.examples if example.form != "text"}
    if len(answers) == 1 and len(new.examples) > 1:
        notes.append(f"All {len(new.examples)} answers are the same ({next(iter(answers))!r}).")
    for old in olds:
        shared = len(set(old.examples) & set(new.examples))
        if shared and shared == len(set(new.examples)):
            raise DataError(
                "all of the new data is old data",
                got=f"{new.name}: each of {shared} examples stands in {old.name}",
                expected="data that the model is yet to learn",
            )
        if shared:
            share = shared / len(new.examples)
            notes.append(
                f"{shared} examples ({share:.0%}) stand in {old.name} too: they will not be new to it."
            )
    return notes


def _remembered(probe: Probe, new: Side, memory: KFACMemory, strength: float, kind: InputKind) -> Remembered:
    bases = ProtectedSpace(kind, strength).bases([memory])
    predicted = None
    if probe.last_trial is not None and memory.sketch is not None:
        deltas = probe.last_trial.delta_weights()
        predicted = memory.sketch.predicted_increase_nats(deltas, first_order=True)
    return Remembered(closed_share(probe.gradient(new), bases), predicted)
