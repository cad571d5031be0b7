"""The sets that a model is scored on: a run's own, or any file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from constrained_adapters.config.names import check_name
from constrained_adapters.config.run import DomainConfig, RunConfig
from constrained_adapters.data.detect import detect_columns, make_examples
from constrained_adapters.data.examples import Example
from constrained_adapters.data.load import PACKAGED, load_domain
from constrained_adapters.data.sources import read_source
from constrained_adapters.data.split import drop_duplicates
from constrained_adapters.errors import ConfigError


@dataclass(frozen=True)
class EvaluationSet:
    """Items to score.

    Args:
        name: Under which they stand in tables.
        examples: In order.
        source: Where they were read.
        kind: ``"domain"`` of a run, or ``"given"``.
    """

    name: str
    examples: tuple[Example, ...]
    source: str
    kind: str = "given"


@dataclass(frozen=True)
class RunData:
    """What a run trained on and is scored on.

    Args:
        sets: One per domain, in order.
        training: By domain, the examples that were trained on.
        fingerprints: Of each domain's data as it lies there now.
    """

    sets: tuple[EvaluationSet, ...]
    training: dict[str, tuple[Example, ...]]
    fingerprints: dict[str, str]


def read_set(name: str, source: str) -> EvaluationSet:
    """Read a file, folder, hub or packaged set; where the source names its splits, the test split.

    A file without splits is taken whole: nothing of it is trained on. Exact duplicates are dropped.

    Args:
        name: Of the set; what could name a method.
        source: As ``data`` of a domain.

    Raises:
        ConfigError: The name cannot be one.
        DataError: The source is missing, empty or broken.
        UnknownNameError: No packaged domain has this name.
    """
    try:
        name = check_name(name, "set")
    except ValueError as error:
        raise ConfigError("a set's name cannot be used", got=repr(name), expected=str(error)) from None
    if source.startswith(PACKAGED):
        from constrained_adapters.data.packaged import load_packaged

        return EvaluationSet(name, tuple(load_packaged(source.removeprefix(PACKAGED))["test"]), source)
    splits, _ = read_source(source)
    records = splits.get("all") or splits.get("test") or splits.get("validation") or []
    columns = detect_columns(
        [record for split in splits.values() for record in split],
        DomainConfig.model_construct(name=name, data=source),  # unchecked: a set may have any name
    )
    examples, _ = drop_duplicates(make_examples(records, columns))
    return EvaluationSet(name, tuple(examples), source)


def read_run_data(config: RunConfig) -> RunData:
    """Read a run's domains again, as its settings say.

    Raises:
        ConstrainedAdaptersError: As :func:`constrained_adapters.data.load.load_domain`.
    """
    domains = [load_domain(domain, config.seed) for domain in config.domains]
    split, most = config.evaluation.split, config.evaluation.max_items
    return RunData(
        sets=tuple(
            EvaluationSet(domain.name, getattr(domain, split)[:most], domain.source, "domain")
            for domain in domains
        ),
        training={domain.name: domain.train for domain in domains},
        fingerprints={domain.name: domain.fingerprint for domain in domains},
    )


def capped(sets: Sequence[EvaluationSet], most: int | None) -> list[EvaluationSet]:
    """Return the sets with at most ``most`` items each: the first ones."""
    return [replace(each, examples=each.examples[:most]) for each in sets]
