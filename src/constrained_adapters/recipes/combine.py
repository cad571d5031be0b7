"""Rows of answers merged into one method, question by question, and the mergers that make no sense.

A question with one answer (what is trained, what is scored, CRMA's constraint) takes it from the row that
gives it; two different answers are refused. Bounds, rehearsals and objectives add up. The order of the
names does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from constrained_adapters.config.crma import ConstraintType
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes.recipe import (
    BOTTLENECKS,
    WEIGHTS,
    Bound,
    ObjectiveName,
    Recipe,
    Rehearsal,
    Scored,
    Start,
    Trained,
    keeps_old_data,
)
from constrained_adapters.recipes.rows import ALIASES, RECIPES

ON_ADAPTERS: Mapping[Bound, Bound] = {"ewc": "ewc_lora", "online_ewc": "online_ewc_lora", "ogd": "ogd_lora"}
"""What stands in where each domain has a LoRA of its own: a diagonal Fisher, or a gradient, of A and B would
depend on how ΔW is split into them, so those of ΔW are taken."""

WITHOUT_WEIGHT: frozenset[Bound] = frozenset({"agem", "freeze_important", "gem", "ogd", "ogd_lora"})
"""Bounds that are no penalty: they have settings of their own."""

_OF_LASTING_WEIGHTS: frozenset[Bound] = frozenset({"ewc", "freeze_important", "ogd", "online_ewc"})
"""Bounds that need weights which are trained on from domain to domain."""

_BY_FISHER: frozenset[Bound] = frozenset({"ewc", "ewc_lora", "online_ewc", "online_ewc_lora"})

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
    bounds: tuple[Bound, ...]
    rehearsals: tuple[Rehearsal, ...]
    objectives: tuple[ObjectiveName, ...]

    @property
    def keeps_old_data(self) -> bool:
        """Whether examples of finished domains are kept."""
        return keeps_old_data(self.bounds, self.rehearsals)

    @property
    def keeps_examples(self) -> bool:
        """Whether they are kept in a buffer, not as a whole."""
        return self.keeps_old_data and not self.in_one_turn

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
    def penalties(self) -> tuple[str, ...]:
        """What has a λ, CRMA's own penalty among it."""
        own = ("crma",) if self.constraint == "fisher" else ()
        return (*own, *(name for name in self.bounds if name not in WITHOUT_WEIGHT))


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
    bounds = {
        ON_ADAPTERS.get(each, each) if trained == "adapters" else each for row in rows for each in row.bounds
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
        bounds=tuple(sorted(bounds)),
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
    binds = [*answers.bounds, *([answers.constraint] if answers.constraint != "none" else [])]
    if answers.in_one_turn and answers.bounds:
        raise _refusal(
            answers.name,
            f"'joint' learns all in one turn, so there is no finished domain for {answers.bounds[0]!r}",
            "one of the two; 'joint + crma' protects the base's own knowledge",
        )
    others = sorted({*answers.rehearsals} - {"all", "general_text", "golden_set"})
    if answers.in_one_turn and others:
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
    if answers.scored == "alone" and others:
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
    if answers.trained == "singular_vectors" and answers.bounds:
        raise _refusal(
            answers.name,
            f"PEFT's tuner projects the gradient of 'osf' itself, and {answers.bounds[0]!r} would undo that",
            "one of the two, or 'full' in the place of 'osf'",
        )
    lost = sorted(_OF_LASTING_WEIGHTS & {*answers.bounds})
    if lost and not answers.trains_on:
        raise _refusal(
            answers.name,
            f"no weight of a finished domain is trained on, so there is none for {lost[0]!r}",
            "one of the two, or 'full' in the place of what is trained",
        )
    same = sorted(_BY_FISHER & {*answers.bounds})
    if len(same) > 1:
        raise _refusal(
            answers.name,
            f"{same[0]!r} and {same[1]!r} are one penalty twice: a Fisher that stays, one that fades",
            "one of the two",
        )


def _refusal(name: str, why: str, expected: str) -> ConfigError:
    return ConfigError(why, got=f"recipe = {name!r}", expected=expected)
