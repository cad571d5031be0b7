"""From a domain's settings to its examples: read, detect, deduplicate, split, cap."""

from __future__ import annotations

from constrained_adapters.config.run import DomainConfig
from constrained_adapters.data.detect import detect_columns, make_examples
from constrained_adapters.data.examples import Domain, fingerprint_examples
from constrained_adapters.data.sources import Splits, read_source
from constrained_adapters.data.split import (
    Parts,
    cap_examples,
    drop_duplicates,
    separate_parts,
    split_examples,
)
from constrained_adapters.errors import ConfigError, DataError

MIN_EXAMPLES = 10
"""With fewer no tenth can be held out, and nothing that is measured means anything."""

PACKAGED = "packaged:"
HELD_OUT = ("validation", "test")


def load_domain(config: DomainConfig, seed: int) -> Domain:
    """Load one domain.

    Data without splits is divided 80/10/10. Splits that stand already (``train``, ``validation``,
    ``test`` in the settings, files of these names in a folder, splits of a hub data set) are kept;
    what also stands in a held-out one is dropped from the others, and a held-out one that is
    missing is taken from train. Caps come last.

    Args:
        config: Where the data is, and its columns where they are not to be detected.
        seed: Decides the split and what a cap keeps.

    Raises:
        DataError: The data is missing, broken, empty or of fewer than ``MIN_EXAMPLES`` examples.
        ConfigError: A setting has no effect on this kind of source.
        UnknownNameError: No packaged domain has this name.
        MissingExtraError: Parquet or hub data without the packages that read it.

    >>> load_domain(DomainConfig(name="law", data="laws.jsnl"), seed=0)
    Traceback (most recent call last):
    ...
    constrained_adapters.errors.DataError: no such data file
    ...
    """
    if config.data is not None and (config.validation or config.test):
        raise ConfigError(
            "'validation' and 'test' have no effect beside 'data'",
            got=f"domain {config.name!r}",
            expected="'data' alone, which is split, or 'train' with 'validation' and 'test'",
        )
    packaged = config.data is not None and config.data.startswith(PACKAGED)
    parts, form, notes = _packaged(config) if packaged else _read(config)
    for name, examples in parts.items():
        parts[name], found = drop_duplicates(examples)
        notes += [note if len(parts) == 1 else f"{name}: {note}" for note in found]
    num_examples = sum(map(len, parts.values()))
    source = config.data or ", ".join(path for path in (config.train, config.validation, config.test) if path)
    if num_examples < MIN_EXAMPLES:
        raise DataError(
            f"domain {config.name!r} has too few examples",
            got=f"{num_examples} different ones ({source})",
            expected=f"at least {MIN_EXAMPLES}; a few hundred to learn anything",
        )
    parts, found = _split(parts, seed)
    notes += found
    for name, examples in parts.items():
        parts[name] = cap_examples(examples, getattr(config, f"max_{name}"), seed)
        if len(parts[name]) < len(examples):
            notes.append(f"{name}: {len(parts[name])} of {len(examples)} examples chosen (max_{name}).")
    train, validation, test = (tuple(parts[name]) for name in ("train", *HELD_OUT))
    fingerprint = fingerprint_examples(train, validation, test)
    return Domain(config.name, train, validation, test, form, source, fingerprint, tuple(notes))


def _packaged(config: DomainConfig) -> tuple[Parts, str, list[str]]:
    for field in ("subset", "prompt", "answer", "messages", "text", "choices"):
        if getattr(config, field) is not None:
            raise ConfigError(
                f"{field!r} has no effect on packaged data",
                got=f"{field} = {getattr(config, field)!r} ({config.data})",
                expected="no such setting",
            )
    from constrained_adapters.data.packaged import load_packaged

    loaded = load_packaged(str(config.data).removeprefix(PACKAGED))
    parts = {name: list(examples) for name, examples in loaded.items()}
    form = next(example.form for examples in parts.values() for example in examples)
    return parts, form, [f"Form {form}, as packaged."]


def _read(config: DomainConfig) -> tuple[Parts, str, list[str]]:
    records: Splits
    if config.data is not None:
        records, notes = read_source(config.data, config.subset)
    else:
        records, notes = {}, []
        for name in ("train", *HELD_OUT):
            path = getattr(config, name)
            if path is not None:
                found, more = read_source(path, config.subset)
                records[name] = found["all"] if "all" in found else found.get(name, [])
                notes += more
    columns = detect_columns([record for split in records.values() for record in split], config)
    parts = {name: make_examples(split, columns) for name, split in records.items()}
    return parts, columns.form, [columns.sentence, *notes]


def _split(parts: Parts, seed: int) -> tuple[Parts, list[str]]:
    if "all" in parts:
        return split_examples(parts["all"], seed)
    parts, notes = separate_parts(parts)
    for name, examples in parts.items():
        if not examples:
            raise DataError(
                f"no examples are left for {name}",
                got="; ".join(notes) or f"{name} had none from the start",
                expected="at least one that does not stand in another split",
            )
    missing = [name for name in HELD_OUT if name not in parts]
    if missing:
        divided, more = split_examples(parts["train"], seed, missing)
        parts = {**parts, **divided}
        notes += [f"{' and '.join(missing)} taken from train.", *more]
    return parts, notes
