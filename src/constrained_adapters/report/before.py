"""What was known before training, ready to be written: sizes, distances, risk, contradictions, advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from constrained_adapters.report.changes import Piece, changed_words, language_tag
from constrained_adapters.report.numbers import MISSING, decimal, ratio
from constrained_adapters.results import (
    Contradicted,
    Denied,
    DiagnosisRecord,
    DomainDiagnosed,
    PairDiagnosed,
)

FIRST = 8
"""Pairs of contradicting answers that are shown unfolded."""
_NOTE = {
    "data": "From the data alone; no model was asked. How far texts are apart does not say what will be "
    "forgotten; facts against facts do.",
    "full": "The base was asked before it was taught anything. In the trial a small adapter learns the "
    "earlier domain and then the new one for a few steps; nothing of it stays.",
}
_TEXTS_OF_BASE = "text of the base"


@dataclass(frozen=True)
class Table:
    """A table of a few rows; ``numeric`` says of each column whether it holds numbers."""

    headings: list[str]
    numeric: list[bool]
    rows: list[list[str]]


@dataclass(frozen=True)
class Opposed:
    """A question with its answer, and the same or nearly the same with another; changed words are marked."""

    domain: str
    question: str
    answer: str
    where: str
    other_question: list[Piece]
    other_answer: str
    language: str | None


@dataclass(frozen=True)
class Overruled:
    """A question on which the base is sure of another answer."""

    domain: str
    question: str
    answer: str
    belief: str
    confidence: str
    language: str | None


@dataclass(frozen=True)
class Advised:
    """What was advisable for one domain, and why."""

    domain: str
    level: str
    recipe: str
    reasons: list[str]


@dataclass(frozen=True)
class Before:
    """The section of the page.

    Args:
        note: How it was found out.
        domains: Sizes and counts.
        notes: By domain: what was read, dropped and deduplicated.
        pairs: Each domain against each before it.
        contradictions: The first of them.
        more_contradictions: The others that the record lists.
        num_contradictions: All there are.
        beliefs: Where the base is sure of another answer than the data's.
        advice: Where the base was asked.
    """

    note: str
    domains: Table
    notes: list[tuple[str, list[str]]]
    pairs: Table
    contradictions: list[Opposed]
    more_contradictions: list[Opposed]
    num_contradictions: int
    beliefs: list[Overruled]
    advice: list[Advised]


def before_training(record: DiagnosisRecord) -> Before | None:
    """Return the section, or None where nothing was diagnosed."""
    if not record.domains:
        return None
    contradictions = [_opposed(each.name, one) for each in record.domains for one in each.contradictions]
    return Before(
        note=_NOTE.get(record.mode, ""),
        domains=_domains(record.domains),
        notes=[(each.name, each.notes) for each in record.domains if each.notes],
        pairs=_pairs(record.domains),
        contradictions=contradictions[:FIRST],
        more_contradictions=contradictions[FIRST:],
        num_contradictions=sum(each.num_contradictions for each in record.domains),
        beliefs=[_overruled(each.name, one) for each in record.domains for one in each.beliefs],
        advice=[
            Advised(each.name, each.level or MISSING, each.advice, each.reasons)
            for each in record.domains
            if each.advice
        ],
    )


def _domains(domains: Sequence[DomainDiagnosed]) -> Table:
    asked = any(each.num_asked for each in domains)
    headings = ["Domain", "Training items", "All items", "Contradict earlier", "Contradict within"]
    rows = []
    for each in domains:
        counts = [
            each.num_train,
            each.num_examples,
            each.num_contradictions - each.num_within,
            each.num_within,
        ]
        row = [each.name, *(f"{count:,}" for count in counts)]
        rows.append(row + [f"{each.num_beliefs} of {each.num_asked}"] * asked)
    headings += ["Base is sure of another answer"] * asked
    return Table(headings, [False] + [True] * (len(headings) - 1), rows)


def _pairs(domains: Sequence[DomainDiagnosed]) -> Table:
    """Columns that no pair has a value in are left out."""
    pairs = [(each.name, pair) for each in domains for pair in each.pairs]
    columns = [column for column in _COLUMNS if any(column[1](pair) != MISSING for _, pair in pairs)]
    rows = [
        [name, _TEXTS_OF_BASE if pair.old == "base" else pair.old, *(text(pair) for _, text in columns)]
        for name, pair in pairs
    ]
    return Table(
        ["Domain", "Against", *(heading for heading, _ in columns)],
        [False, False, *(heading != "Risk" for heading, _ in columns)],
        rows,
    )


def _opposed(domain: str, each: Contradicted) -> Opposed:
    return Opposed(
        domain,
        each.question,
        each.answer,
        each.where or f"{domain} too",
        changed_words(each.question, each.other_question),
        each.other_answer,
        language_tag(each.question),
    )


def _overruled(domain: str, each: Denied) -> Overruled:
    certain = ratio(each.confidence, 0)
    return Overruled(domain, each.question, each.answer, each.belief, certain, language_tag(each.question))


def _signal(name: str, digits: int = 2, *, sign: bool = False) -> Callable[[PairDiagnosed], str]:
    return lambda pair: decimal(pair.signals.get(name), digits, sign=sign)


def _trial(pair: PairDiagnosed) -> str:
    rise = pair.signals.get("trial_increase")
    return MISSING if rise is None else f"{'+' if rise > 0 else ''}{ratio(rise, 0)}"


def _losses(pair: PairDiagnosed) -> str:
    old, new = (decimal(pair.signals.get(name)) for name in ("old_nats", "new_nats"))
    return MISSING if MISSING in (old, new) else f"{old} / {new}"


_COLUMNS: list[tuple[str, Callable[[PairDiagnosed], str]]] = [
    ("Risk", lambda pair: pair.level or MISSING),
    ("Trial: rise of the earlier loss", _trial),
    ("Contradictions", lambda pair: f"{pair.num_contradictions:,}"),
    ("Base’s loss, earlier / new, nats", _losses),
    ("Gradients’ cosine", _signal("gradient_cosine", sign=True)),
    ("KL of tokens, nats", _signal("kl_nats")),
    ("Shared vocabulary (Jaccard)", _signal("jaccard")),
]
