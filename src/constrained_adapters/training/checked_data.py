"""Whether what a run is to be scored on can be scored, and says anything; before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from constrained_adapters.config.run import EvaluationConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.records import shorten
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.evaluation.checks import check_set, fitting_metrics, overlap, refuse_old_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WAY_OUT = "add items of other classes, or leave this metric out: evaluation: {metrics: [loss, exact_match]}"
OTHER_METRICS = "leave evaluation.metrics out: what fits each domain is taken"

CUT_SAMPLE = 500
"""Examples of a domain that are encoded to see how many are too long."""


def check_domains(
    domains: Sequence[Domain], evaluation: EvaluationConfig, general_texts: Sequence[str] = ()
) -> list[str]:
    """Refuse data on which nothing could be measured, and say what would mislead.

    Refused is what no reading of the scores would survive: a held-out set without items or with a reference
    that its choices do not contain, one class where the right choice is looked for, a metric that fits no
    domain, a domain whose examples all stand in an earlier one. Told is what leaves something to read: items
    that another domain trains on, one class among the few that are scored, answers that are all the same.

    Args:
        domains: In order.
        evaluation: Which items are scored, and how.
        general_texts: On which the general ability is measured.

    Returns:
        What to tell, a sentence each.

    Raises:
        DataError: As said.

    Cost: about 0.1 ms for each training example, and for each scored item of each other domain.
    """
    asked = None if evaluation.metrics is None else list(evaluation.metrics)
    splits = {domain.name: getattr(domain, evaluation.split) for domain in domains}
    for metric in asked or ():
        if not any(metric in fitting_metrics(examples) for examples in splits.values()):
            check_set(domains[0].name, splits[domains[0].name], [metric], hint=OTHER_METRICS)
    for name, examples in splits.items():
        fits = None if asked is None else [metric for metric in asked if metric in fitting_metrics(examples)]
        check_set(name, examples, fits, hint=WAY_OUT)
    for number, new in enumerate(domains):
        for old in domains[:number]:
            refuse_old_data(old.name, _examples(old), new.name, _examples(new))
    scored = {name: examples[: evaluation.max_items] for name, examples in splits.items()}
    return [*_one_class(scored), *_trained_on(domains, scored, general_texts)]


def tell_cut(domains: Sequence[Domain], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Say of each domain which share of its first training examples is too long to be trained on whole."""
    told = []
    for domain in domains:
        rows = TokenDataset.from_examples(domain.train[:CUT_SAMPLE], tokenizer, max_length)
        if rows.num_cut_examples:
            lost = "the end" if domain.form == "text" else "the middle of the prompt"
            told.append(
                f"{domain.name}: {rows.num_cut_examples} of the first {len(rows)} training examples "
                f"({rows.num_cut_examples / len(rows):.0%}) are longer than training.max_length_tokens = "
                f"{max_length}, and {lost} is left out"
            )
    return told


def _one_class(scored: dict[str, Sequence[Example]]) -> list[str]:
    told = []
    for name, examples in scored.items():
        answers = {example.reference for example in examples if example.form != "text"}
        if len(examples) > 1 and len(answers) == 1:
            told.append(
                f"{name}: all {len(examples)} answers that are scored are {shorten(next(iter(answers)))!r}: "
                "a model that always says this is right"
            )
    return told


def _trained_on(
    domains: Sequence[Domain], scored: dict[str, Sequence[Example]], general_texts: Sequence[str]
) -> list[str]:
    """Items that stand in the training data of another domain: what it is said to forget, it is taught."""
    general = "the general text"
    texts = [Example(text=text) for text in general_texts]
    told = []
    for trained in domains:
        sets = {**{name: items for name, items in scored.items() if name != trained.name}, general: texts}
        found = overlap([item for items in sets.values() for item in items], trained.train).places
        start = 0
        for name, items in sets.items():
            hit = sum(start <= place < start + len(items) for place in found)
            start += len(items)
            if hit:
                share = hit / len(items)
                told.append(
                    f"{hit} of {len(items)} items of {name} ({share:.1%}) stand in the training data of "
                    f"{trained.name}, exactly or nearly: their scores say more than they should"
                )
    return told


def _examples(domain: Domain) -> Sequence[Example]:
    return (*domain.train, *domain.validation, *domain.test)
