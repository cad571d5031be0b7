"""Rows of answers merged into one method, question by question, and the mergers that make no sense.

A question with one answer (what is trained, what is scored, CRMA's constraint) takes it from the row that
gives it; two different answers are refused. Penalties, rehearsals and objectives add up. The order
of the names does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from constrained_adapters.config import ConstraintType
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes.rows import (
    ALIASES,
    BOTTLENECKS,
    RECIPES,
    WEIGHTS,
    ObjectiveName,
    PenaltyName,
    Recipe,
    Rehearsal,
    Scored,
    Start,
    Trained,
)

ON_ADAPTERS: dict[PenaltyName, PenaltyName] = {"ewc": "ewc_lora"}
"""A diagonal Fisher of A and B would depend on how ΔW is split into them, so that of ΔW stands in."""

_QUESTIONS = {
    "trained": "what is trained",
    "scored": "what takes part when a domain is scored",
    "constraint": "how memories bind a step",
}


@dataclass(frozen=True)
class Answers:
    """What one method does: every question answered. Fields as in :class:`Recipe`."""

    name: str
    trained: Trained
    scored: Scored
    shared: bool
    start: Start
    constraint: ConstraintType
    strength: float
    penalties: tuple[PenaltyName, ...]
    rehearsals: tuple[Rehearsal, ...]
    objectives: tuple[ObjectiveName, ...]

    @property
    def keeps_old_data(self) -> bool:
        """Whether examples of finished domains are kept."""
        return bool({"replay", "all"} & set(self.rehearsals))

    @property
    def in_one_turn(self) -> bool:
        """Whether all domains are learnt in the place of the first."""
        return "all" in self.rehearsals

    @property
    def resizable(self) -> bool:
        """Whether domains can be added at the end of a finished run: weights of earlier ones do not stay."""
        return self.trained not in {*WEIGHTS, "singular_vectors"} and not self.in_one_turn

    @property
    def trains_on(self) -> bool:
        """Whether the weights of finished domains are those in training."""
        return self.trained in WEIGHTS or (self.trained in BOTTLENECKS and self.scored == "together")

    @property
    def weighted(self) -> tuple[PenaltyName, ...]:
        """The penalties that have a λ, CRMA's own among them."""
        return (*(("crma",) if self.constraint == "fisher" else ()), *self.penalties)


def recipe_names(recipe: str, *, where: str = "methods") -> list[str]:
    """The names in ``"lora + replay"``, each with its alias resolved.

    Raises:
        UnknownNameError: One of them is no recipe.
        ConfigError: One of them is there twice.

    >>> recipe_names("gpm + replay")
    ['orthogonal', 'replay']
    """
    names = []
    for part in recipe.split("+"):
        name = ALIASES.get(part.strip(), part.strip())
        if name not in RECIPES:
            raise UnknownNameError.of("recipe", name, {**RECIPES, **ALIASES}, where=where)
        names.append(name)
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{name!r} is there twice", got=f"recipe = {recipe!r}", expected="each name once"
            )
    return names


def combine(rows: Sequence[Recipe]) -> Answers:
    """Merge rows, in any order, into one method.

    Raises:
        ConfigError: Two rows answer one question differently, or they make no sense together.
    """
    name = " + ".join(row.name for row in rows)
    if len(rows) > 1 and any(row.trained == "nothing" for row in rows):
        raise _refusal(name, "'base' trains nothing, so nothing can be added to it", "'base' alone")
    trained: Trained = _one(rows, "trained") or _one(rows, "usual") or "adapters"
    penalties = {
        ON_ADAPTERS.get(each, each) if trained == "adapters" else each
        for row in rows
        for each in row.penalties
    }
    rehearsals = {each for row in rows for each in row.rehearsals}
    answers = Answers(
        name=name,
        trained=trained,
        scored=_one(rows, "scored") or "together",
        shared=bool(_one(rows, "shared")),
        start=_one(rows, "start") or "random",
        constraint=_one(rows, "constraint") or "none",
        strength=next((row.strength for row in rows if row.strength is not None), 0.0),
        penalties=tuple(sorted(penalties)),
        rehearsals=tuple(sorted(rehearsals)),
        objectives=tuple(sorted({each for row in rows for each in row.objectives})),
    )
    _refuse_senseless(answers)
    return answers


def _one(rows: Sequence[Recipe], question: str) -> Any:
    """The only answer that rows give to a question, None where they give none."""
    given = {row.name: getattr(row, question) for row in rows if getattr(row, question) is not None}
    if len(set(given.values())) > 1:
        (one, its), (other, others) = next(
            (a, b) for a in given.items() for b in given.items() if a[1] != b[1]
        )
        asked = _QUESTIONS.get(question, _QUESTIONS["trained"])
        raise ConfigError(
            f"{one!r} and {other!r} do not go together: {asked} has one answer",
            got=f"{' + '.join(row.name for row in rows)}: {one} says {_words(its)}, {other} {_words(others)}",
            expected="one of the two",
        )
    return next(iter(given.values()), None)


def _words(answer: str) -> str:
    return repr(answer.replace("_", " "))


def _refuse_senseless(answers: Answers) -> None:
    """Refuse what could be computed but would not mean anything."""
    binds = [*answers.penalties, *([answers.constraint] if answers.constraint != "none" else [])]
    if answers.in_one_turn and answers.penalties:
        raise _refusal(
            answers.name,
            f"'joint' learns all in one turn, so there is no finished domain for {answers.penalties[0]!r}",
            "one of the two; 'joint + crma' protects the base's own knowledge",
        )
    if answers.in_one_turn and len(answers.rehearsals) > 1:
        others = [each for each in answers.rehearsals if each != "all"]
        raise _refusal(
            answers.name, f"'joint' has all data already, {others[0]!r} adds none to it", "'joint' alone"
        )
    if answers.in_one_turn and answers.scored == "alone":
        raise _refusal(
            answers.name,
            "'joint' learns one model for all domains, so none has its own",
            "'joint', or what keeps the domains apart",
        )
    if answers.scored == "alone" and binds:
        raise _refusal(
            answers.name,
            f"each domain has its own adapter alone, so {binds[0]!r} would protect what nothing can harm",
            "'lora' in the place of 'separate', or 'separate' alone",
        )
    if answers.scored == "alone" and answers.rehearsals:
        raise _refusal(
            answers.name,
            "each domain is scored with its own adapter alone, which need not know the others' examples",
            "'separate' alone, or 'lora' in its place",
        )
    if answers.scored == "alone" and answers.trained in WEIGHTS | {"singular_vectors"}:
        raise _refusal(
            answers.name,
            "the base's weights are trained on from domain to domain, so no domain has its own",
            "'separate' with adapters: lora, houlsby, pfeiffer, parallel",
        )
    if answers.penalties and answers.trained != "adapters" and not answers.trains_on:
        raise _refusal(
            answers.name,
            f"no weight of a finished domain is trained on, so there is none for {answers.penalties[0]!r}",
            "one of the two, or 'full' in the place of what is trained",
        )


def _refusal(name: str, why: str, expected: str) -> ConfigError:
    return ConfigError(why, got=f"recipe = {name!r}", expected=expected)
