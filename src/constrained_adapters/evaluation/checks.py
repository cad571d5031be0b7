"""Whether a set can be scored, and whether a metric says anything on it; before a model is loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from constrained_adapters.data.examples import Example
from constrained_adapters.data.near import gram_sets, near_any
from constrained_adapters.data.records import shorten
from constrained_adapters.data.split import question_text
from constrained_adapters.errors import DataError, UnknownNameError
from constrained_adapters.evaluation.items import METRICS

DERIVED = {"perplexity": "loss"}
"""Metrics that are another way to write one that is scored."""

EVAL_HINT = "add items of other classes, or leave this metric out: --metric loss --metric exact_match"


@dataclass(frozen=True)
class Overlap:
    """Items of a set that stand in training data, exactly or nearly.

    Args:
        places: Their places in the set, from 0.
        share: Of the set, 0 … 1.
    """

    places: list[int]
    share: float


def fitting_metrics(examples: Sequence[Example], *, written: bool = True) -> list[str]:
    """Return the metrics that can be had on examples, in the order of ``METRICS``.

    Running text has a loss only; choices are needed by ``choice_accuracy``.

    Args:
        examples: Of any form.
        written: Also those for which answers must be written.
    """
    answered = any(example.form != "text" for example in examples)
    chosen = any(example.choices for example in examples)
    fits = {
        "loss": True,
        "exact_match": answered,
        "choice_accuracy": chosen,
        "token_f1": answered and written,
    }
    return [metric for metric in METRICS if fits[metric]]


def check_set(
    name: str, examples: Sequence[Example], metrics: Sequence[str] | None = None, *, hint: str | None = None
) -> None:
    """Refuse a set on which nothing could be measured, or on which a metric would mislead.

    Args:
        name: Of the set, for the error.
        examples: Its items.
        metrics: Those that were asked for; None: any that fits.
        hint: The way out where a metric misleads or does not fit; None: that of ``crma eval``.

    Raises:
        DataError: The set is empty; a metric does not fit it; a reference is not among its choices; or all
            its answers are one class, so that whoever always says that is right.
        UnknownNameError: There is no such metric.
    """
    if not examples:
        raise DataError(f"set {name!r} is empty", got="0 items", expected="at least one, better hundreds")
    asked = list(METRICS) if metrics is None else [DERIVED.get(metric, metric) for metric in metrics]
    for metric in asked:
        if metric not in METRICS:
            raise UnknownNameError.of("metric", metric, [*METRICS, *DERIVED])
    fitting = fitting_metrics(examples)
    missing = [metric for metric in asked if metric not in fitting]
    if metrics is not None and missing:
        why = "its items have no choices" if missing[0] == "choice_accuracy" else "its items are running text"
        raise DataError(
            f"metric {missing[0]!r} does not fit set {name!r}",
            got=why,
            expected=f"one of {', '.join(fitting)}",
            hint=hint or "leave --metric out: what fits each set is taken",
        )
    if "choice_accuracy" in asked:
        _check_choices(name, examples, hint or EVAL_HINT)


def overlap(examples: Sequence[Example], training: Sequence[Example]) -> Overlap:
    """Find the items that stand in training data: near duplicates of question and answer together.

    The same question with another answer is no overlap. See :mod:`constrained_adapters.data.near`.

    Args:
        examples: The items of a set.
        training: What a model was trained on.
    """
    if not examples or not training:
        return Overlap([], 0.0)
    contents = [_content(example) for example in (*examples, *training)]
    grams = gram_sets(contents, [len(examples), len(training)])
    near = near_any(grams[: len(examples)], grams[len(examples) :])
    answers: dict[str, set[str]] = defaultdict(set)
    for example in training:
        answers[question_text(example)].add(example.reference)
    places = []
    for place, example in enumerate(examples):
        known = answers.get(question_text(example))
        if example.reference in known if known else near[place]:
            places.append(place)
    return Overlap(places, len(places) / len(examples))


def refuse_old_data(old_name: str, old: Sequence[Example], new_name: str, new: Sequence[Example]) -> int:
    """Return how many different examples of a new domain stand in an old one too.

    Raises:
        DataError: All of them: there is nothing to learn, and nothing that could be forgotten.
    """
    different = set(new)
    shared = len(different.intersection(old))
    if shared and shared == len(different):
        raise DataError(
            "all of the new data is old data",
            got=f"{new_name}: each of {shared} examples stands in {old_name}",
            expected="data that the model is yet to learn",
            hint="give each domain data of its own; to learn the same for longer, raise 'epochs' or 'steps'",
        )
    return shared


def joined_overlaps(found: Sequence[Overlap], num_examples: int) -> Overlap:
    """Return the items of a set that any of several comparisons found.

    >>> joined_overlaps([Overlap([0, 1], 0.5), Overlap([1], 0.25)], 4)
    Overlap(places=[0, 1], share=0.5)
    """
    places = sorted({place for each in found for place in each.places})
    return Overlap(places, len(places) / num_examples)


def refuse_overlap(name: str, examples: Sequence[Example], found: Overlap) -> None:
    """Raise the error for a set that was trained on.

    Raises:
        DataError: Any item of the set stands in the training data.
    """
    if found.places:
        raise DataError(
            f"set {name!r} overlaps the training data",
            got=f"{len(found.places)} of {len(examples)} items ({found.share:.1%}), exactly or nearly; "
            f"the first: {shorten(_content(examples[found.places[0]]))!r}",
            expected="items that were not trained on",
            hint="remove them, or --allow-overlap to score all the same",
        )


def _check_choices(name: str, examples: Sequence[Example], hint: str) -> None:
    with_choices = [example for example in examples if example.choices]
    for number, example in enumerate(examples, 1):
        if example.choices and example.reference not in example.choices:
            raise DataError(
                "the answer is not among the choices",
                got=f"{shorten(example.reference)!r} (set {name!r}, item {number})",
                expected=shorten(", ".join(example.choices)),
            )
    classes = {example.reference for example in with_choices}
    if len(with_choices) > 1 and len(classes) == 1:
        raise DataError(
            f"the answers of set {name!r} are one class only",
            got=f"{len(with_choices)} items, every answer {shorten(next(iter(classes)))!r}",
            expected="at least two different answers: a model that always says this one would be right",
            hint=hint,
        )


def _content(example: Example) -> str:
    return (
        question_text(example) if example.form == "text" else f"{question_text(example)}\n{example.reference}"
    )
