"""What is known of a run's domains before any is learnt: diagnosed once, kept beside the run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from constrained_adapters.config.run import RunConfig
from constrained_adapters.data.examples import Domain
from constrained_adapters.diagnosis.diagnose import Diagnosis, diagnose
from constrained_adapters.diagnosis.probe import Probe
from constrained_adapters.diagnosis.risk import Signals
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.diagnosis.texts import Side, TextProbe
from constrained_adapters.diagnosis.words import brief
from constrained_adapters.models.load import LoadedBase
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.results import (
    Contradicted,
    Denied,
    DiagnosisRecord,
    DomainDiagnosed,
    PairDiagnosed,
    PairFinding,
)
from constrained_adapters.workspace import atomic_write_json

FILE = "diagnosis.json"
DATA_TOKENS = 10_000
"""Tokens of each domain that are compared where no model is asked: making them is most of the time."""
MOST_KEPT = 50
"""Contradictions, and beliefs, of a domain that the record lists; their number is always there."""


def diagnose_before(
    base: LoadedBase,
    domains: Sequence[Domain],
    config: RunConfig,
    *,
    tell: Callable[[str], None],
    fresh: bool = False,
) -> DiagnosisRecord:
    """Diagnose each domain against the earlier ones, as ``config.diagnosis`` says; each is done once.

    What is found is kept in ``<output>/diagnosis.json``: a run that goes on reads it, and domains that were
    added at the end are diagnosed then. The global random state, and the base, are left as they were.

    Args:
        base: As loaded.
        domains: In order.
        config: Of the run.
        tell: Told what was found, in a few lines.
        fresh: Take nothing from the file.

    Raises:
        DataError: All of a domain's data stands in an earlier one.
        TrainingError: A loss of the trial is not finite.
        WorkspaceError: The file cannot be written.
    """
    if config.diagnosis == "off":
        return DiagnosisRecord()
    file = config.output / FILE
    kept = {} if fresh else _read(file)
    keys = list(_keys(base, domains, config))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        made = _diagnosed(base, domains, config, [key in kept for key in keys], tell)
        for key, record in zip(keys, made, strict=True):
            if record is not None:
                kept[key] = record.model_dump(mode="json")
                atomic_write_json(file, kept)
    return DiagnosisRecord(
        mode=config.diagnosis, domains=[DomainDiagnosed.model_validate(kept[key]) for key in keys]
    )


def _diagnosed(
    base: LoadedBase,
    domains: Sequence[Domain],
    config: RunConfig,
    done: Sequence[bool],
    tell: Callable[[str], None],
) -> Iterator[DomainDiagnosed | None]:
    """The record of each domain; None where it is there already."""
    if all(done):
        yield from (None for _ in domains)
        return
    length = config.training.max_length_tokens
    settings = DiagnosisSettings(max_length_tokens=length, distribution_tokens=DATA_TOKENS)
    probe = TextProbe(base.tokenizer, settings, seed=config.seed)
    if config.diagnosis == "full":
        settings = DiagnosisSettings(max_length_tokens=length)  # its own cost hides that of the tokens
        names = resolve_targets(base.model, config.adapter.layers)
        modules = {name: base.model.get_submodule(name) for name in names}
        probe = Probe(base.model, base.tokenizer, modules, settings, seed=config.seed)
        tell(f"diagnosis: the base is asked about {len(domains)} domains ('diagnosis: data' leaves that out)")
    sides: list[Side] = []
    found: list[DomainDiagnosed] = []
    for known, domain in zip(done, domains, strict=True):
        begun = time.perf_counter()
        sides.append(probe.domain(domain))
        if known:
            yield None
            continue
        diagnosis = diagnose(probe, sides[:-1], sides[-1])
        found.append(_record(diagnosis, len(domain.train), time.perf_counter() - begun, bool(config.private)))
        for line in brief(diagnosis):
            tell(line)
        yield found[-1]
    if not any(record.num_contradictions for record in found):
        tell("before training: no contradictions within the domains or between them")


def _record(diagnosis: Diagnosis, num_train: int, seconds: float, private: bool) -> DomainDiagnosed:
    against = [each for pair in diagnosis.pairs for each in pair.contradictions]
    contradictions = [*against, *diagnosis.within]
    listed = 0 if private else MOST_KEPT
    advice = diagnosis.advice
    return DomainDiagnosed(
        name=diagnosis.new,
        level=diagnosis.level,
        num_train=num_train,
        num_examples=diagnosis.num_examples[diagnosis.new],
        notes=list(diagnosis.notes[diagnosis.new]),
        pairs=[
            PairDiagnosed(
                old=pair.old,
                level=pair.level,
                signals=_signals(pair.signals),
                findings=[PairFinding(**asdict(finding)) for finding in pair.findings],
                num_contradictions=len(pair.contradictions),
            )
            for pair in diagnosis.pairs
        ],
        contradictions=[Contradicted(**asdict(each)) for each in contradictions[:listed]],
        num_contradictions=len(contradictions),
        num_within=len(diagnosis.within),
        beliefs=[Denied(**asdict(each)) for each in diagnosis.beliefs[:listed]],
        num_beliefs=len(diagnosis.beliefs),
        num_asked=diagnosis.num_asked,
        advice="" if advice is None else advice.recipe,
        reasons=[] if advice is None else list(advice.reasons),
        seconds=seconds,
    )


def _signals(found: Signals) -> dict[str, float]:
    """Those that were measured."""
    signals = {**asdict(found), "trial_increase": found.trial_increase}
    return {name: value for name, value in signals.items() if value is not None}


def _keys(base: LoadedBase, domains: Sequence[Domain], config: RunConfig) -> Iterator[str]:
    """What a domain's diagnosis depends on: all data up to it, the base, and how it is asked."""
    length = config.training.max_length_tokens
    asked = [
        config.diagnosis,
        base.fingerprint,
        length,
        config.seed,
        bool(config.private),
        config.adapter.layers,
    ]
    so_far: list[str] = []
    for domain in domains:
        so_far.append(f"{domain.name} {domain.fingerprint}")
        yield hashlib.sha256(json.dumps([asked, so_far]).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or damaged, since it can be made again."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
