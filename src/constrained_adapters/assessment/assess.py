"""``crma eval`` on a base with adapters: scored on any sets; and what it shares with that of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from constrained_adapters.assessment.harness import Tasks, check_tasks, score_tasks
from constrained_adapters.assessment.scoring import Scorer, Scoring, estimates
from constrained_adapters.assessment.sets import EvaluationSet, capped
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import BaseConfig
from constrained_adapters.data.examples import Example
from constrained_adapters.errors import DataError
from constrained_adapters.evaluation.checks import check_set, joined_overlaps, overlap, refuse_overlap
from constrained_adapters.evaluation.items import joined
from constrained_adapters.model.crma import CRMAModel
from constrained_adapters.models.load import load_base
from constrained_adapters.results import Assessment, Group, ItemScores, SetScores
from constrained_adapters.training.run import environment

BASE = "base"
ADAPTED = "adapted"
State = Mapping[str, float]
"""Active adapters with their weights; none for the base alone."""
ByModel = Mapping[str, Mapping[str, ItemScores]]
"""Items by model and set."""


@dataclass(frozen=True)
class Asked:
    """What an assessment is asked for.

    Args:
        scoring: How sets are scored.
        sets: Of the user, beside a run's own.
        own_sets: Whether a run's own are scored.
        max_items: Most items of a set.
        general: Whether text of no domain is scored.
        allow_overlap: Score a set that was trained on, with a note of the share.
        dtype: Of the base's weights.
        device: Where it runs.
        quantization: ``"4bit"``, ``"8bit"`` or None.
        tasks: Of lm-evaluation-harness.
    """

    scoring: Scoring
    sets: tuple[EvaluationSet, ...] = ()
    own_sets: bool = True
    max_items: int | None = None
    general: bool = True
    allow_overlap: bool = False
    dtype: Any = "auto"
    device: str = "auto"
    quantization: Any = None
    tasks: Tasks | None = None


def assess_adapters(
    base: str, adapters: Sequence[Path], asked: Asked, tell: Callable[[str], None]
) -> Assessment:
    """Score a base, and the base with adapters (all active), on the sets that were given.

    Args:
        base: ``"embedded"``, a folder or a name on the hub.
        adapters: Folders of LoRA adapters; may be empty.
        asked: With at least one set, or tasks.
        tell: Told what is done.

    Raises:
        DataError: There is nothing to score, or a set does not fit a metric.
        ConstrainedAdaptersError: The base or an adapter cannot be loaded.
    """
    begun = time.perf_counter()
    notes: list[str] = []
    sets = capped(asked.sets, asked.max_items)
    if not sets and asked.tasks is None:
        raise DataError("there is nothing to score", got="no set", hint="--data NAME=FILE, or --task NAME")
    check_sets(sets, {}, asked, notes)
    loaded = load_base(
        BaseConfig(model=base, dtype=asked.dtype, device=asked.device, quantization=asked.quantization)
    )
    model = CRMAModel.from_base(loaded, CRMAConfig(base_model_name=base, domain_specific_layers="auto"))
    for folder in adapters:
        model.load_adapter(folder)
    model.eval()
    states: dict[str, State] = {BASE: {}}
    if adapters:
        states[ADAPTED] = dict.fromkeys(model.adapter_names, 1.0)
    scorer = Scorer(model, loaded.tokenizer, activator(model), asked.scoring, tell)
    models = {name: {each.name: scorer.items(state, each) for each in sets} for name, state in states.items()}
    return Assessment(
        title=f"{base} with {', '.join(model.adapter_names)}" if adapters else base,
        created=now(),
        base=loaded.description,
        environment=environment(),
        settings={"adapters": [str(path) for path in adapters], **settings(asked, asked.scoring)},
        models=list(states),
        sets=set_scores(models, {each.name: ("given", [each.name]) for each in sets}) if sets else [],
        items=models,
        tasks=score_tasks(asked.tasks, states, scorer) if asked.tasks else [],
        seconds=time.perf_counter() - begun,
        notes=notes,
    )


def check_sets(
    sets: Sequence[EvaluationSet],
    training: Mapping[str, Sequence[Example]],
    asked: Asked,
    notes: list[str],
) -> None:
    """Refuse what cannot be scored before anything is loaded; note what overlaps the training data.

    A set is compared with one domain's data at a time, so that the wording of that domain's questions is not
    taken for likeness; a run's own set with its own domain's.

    Raises:
        DataError: Two sets have one name, or one is empty, does not fit a metric, or was trained on.
        MissingExtraError: Tasks are asked for and lm-eval is not installed.
        UnknownNameError: There is no such metric or task.
    """
    if asked.tasks is not None:
        check_tasks(asked.tasks)
    names = [each.name for each in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            "two sets have one name", got=", ".join(twice), expected="a name that no domain of the run has"
        )
    for each in sets:
        check_set(each.name, each.examples, asked.scoring.metrics)
        compared = [training[each.name]] if each.name in training else training.values()
        found = joined_overlaps(
            [overlap(each.examples, examples) for examples in compared], len(each.examples)
        )
        if each.kind == "given" and not asked.allow_overlap:
            refuse_overlap(each.name, each.examples, found)
        if found.places:
            notes.append(
                f"{len(found.places)} of {len(each.examples)} items of {each.name} ({found.share:.1%}) "
                "stand in the training data, exactly or nearly."
            )


def set_scores(models: ByModel, groups: Mapping[str, tuple[Group, list[str]]]) -> list[SetScores]:
    """Reduce items to means with intervals: one entry per group, which joins one or several sets."""
    found = []
    for name, (group, parts) in groups.items():
        items = {model: joined({part: scored[part] for part in parts}) for model, scored in models.items()}
        found.append(
            SetScores(
                name=name,
                group=group,
                parts=parts,
                num_items=len(items[BASE].keys),
                scores={model: estimates(each) for model, each in items.items()},
            )
        )
    return found


def activator(model: CRMAModel) -> Callable[[State], None]:
    """Return what puts a model into a state."""

    def activate(state: State) -> None:
        model.set_active_adapters(list(state))
        if state:
            model.set_adapter_weights(dict(state))

    return activate


def settings(asked: Asked, scoring: Scoring) -> dict[str, Any]:
    """What the numbers depend on, for the record."""
    return {
        "metrics": None if scoring.metrics is None else list(scoring.metrics),
        "max_items": asked.max_items,
        "max_length_tokens": scoring.max_length,
        "max_new_tokens": scoring.max_new_tokens,
        "quantization": asked.quantization,
        "sets": {each.name: each.source for each in asked.sets},
    }


def now() -> str:
    """The time, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")
