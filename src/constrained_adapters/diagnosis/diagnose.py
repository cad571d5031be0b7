"""All of a diagnosis: a new domain against the old ones, or against what the base knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from constrained_adapters.diagnosis.advice import Advice, advise
from constrained_adapters.diagnosis.beliefs import Belief
from constrained_adapters.diagnosis.contradictions import Contradiction, find_contradictions
from constrained_adapters.diagnosis.probe import Probe
from constrained_adapters.diagnosis.risk import Finding, Level, Signals, assess, highest, worst
from constrained_adapters.diagnosis.texts import Side, TextProbe
from constrained_adapters.evaluation.checks import refuse_old_data
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.probe import closed_share
from constrained_adapters.memory.protected import InputKind, ProtectedSpace


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
        level: Of risk; None where nothing that decides is known.
        signals: All figures.
        findings: The reasons.
        contradictions: Of new examples to old ones.
    """

    old: str
    level: Level | None
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
        advice: With reasons; None where no model was asked.
    """

    new: str
    level: Level | None
    pairs: tuple[PairDiagnosis, ...]
    remembered: Mapping[str, Remembered]
    within: tuple[Contradiction, ...]
    beliefs: tuple[Belief, ...]
    num_asked: int
    num_examples: Mapping[str, int]
    notes: Mapping[str, tuple[str, ...]]
    advice: Advice | None

    def plain(self) -> dict[str, Any]:
        """As plain data, for JSON; with each pair's ``trial_increase``."""
        data = asdict(self)
        for pair, record in zip(self.pairs, data["pairs"], strict=True):
            record["signals"]["trial_increase"] = pair.signals.trial_increase
        return data


def diagnose(
    probe: TextProbe,
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
        probe: The model that would be taught, or what reads texts without one.
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
    settings = probe.settings
    notes = [*new.notes, *_notes(olds, new)]
    asked = probe.asked(new)
    beliefs = probe.beliefs(asked)
    contradictions = find_contradictions({old.name: old.examples for old in olds}, new.examples)
    pairs = []
    for old in olds or probe.stand_ins():
        signals = probe.compare(old, new)
        found = [each for each in contradictions if each.where == old.name]
        findings = assess(
            signals,
            num_new=len(new.examples),
            num_contradictions=len({(each.question, each.answer) for each in found}),
            num_denied=len(beliefs),
            num_asked=len(asked),
            settings=settings,
        )
        pairs.append(PairDiagnosis(old.name, highest(findings), signals, tuple(findings), tuple(found)))
    level = worst(pair.level for pair in pairs)
    remembered, advice = {}, None
    if isinstance(probe, Probe):
        remembered = {
            name: _remembered(probe, new, memory, strength, kind) for name, memory in (memories or {}).items()
        }
        advice = advise(
            level or "low",
            num_train=new.num_train,
            num_old=len(olds),
            old_data_at_hand=any(old.examples for old in olds),
            on_gpu=torch.cuda.is_available(),
            small_data=settings.small_data,
            num_contradictions=sum(len(pair.contradictions) for pair in pairs),
            going_on=going_on,
            protects=protects,
        )
    sides = [*olds, new]
    return Diagnosis(
        new.name,
        level,
        tuple(pairs),
        remembered,
        tuple(each for each in contradictions if not each.where),
        tuple(beliefs),
        len(asked),
        {side.name: len(side.examples) for side in sides},
        {**{side.name: side.notes for side in olds}, new.name: tuple(notes)},
        advice,
    )


def diagnose_sequence(probe: TextProbe, sides: Sequence[Side]) -> list[Diagnosis]:
    """Each domain of a sequence against the earlier ones, the first against what the base knows."""
    return [diagnose(probe, sides[:number], side) for number, side in enumerate(sides)]


def _notes(olds: Sequence[Side], new: Side) -> list[str]:
    """What is odd about the new data beside the old."""
    notes = []
    answers = {example.reference for example in new.examples if example.form != "text"}
    if len(answers) == 1 and len(new.examples) > 1:
        notes.append(f"All {len(new.examples)} answers are the same.")
    for old in olds:
        if shared := refuse_old_data(old.name, old.examples, new.name, new.examples):
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
