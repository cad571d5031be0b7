"""``crma eval`` on a finished run: R over its own sets, old, new and mixed sets, and any others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from constrained_adapters.assessment.assess import (
    ADAPTED,
    BASE,
    Asked,
    State,
    activator,
    check_sets,
    now,
    set_scores,
    settings,
)
from constrained_adapters.assessment.harness import score_tasks
from constrained_adapters.assessment.scoring import Scorer, derived_matrices
from constrained_adapters.assessment.sets import EvaluationSet, RunData, capped, read_run_data
from constrained_adapters.config.run import RunConfig
from constrained_adapters.config.yaml_file import read_config
from constrained_adapters.data.examples import Example
from constrained_adapters.evaluation.intervals import summary_intervals
from constrained_adapters.evaluation.items import METRICS, SUPERSEDED, mean_scores
from constrained_adapters.evaluation.summary import summarise
from constrained_adapters.model.opened import OpenedModel, open_workspace
from constrained_adapters.results import Assessment, Group, ItemScores, Matrix
from constrained_adapters.training.run import environment, general_texts
from constrained_adapters.workspace import Workspace, finished_domains

GENERAL = "general text"
Row = dict[str, ItemScores]
"""Items by set."""


def assess_run(workspace: Workspace, asked: Asked, tell: Callable[[str], None]) -> Assessment:
    """Score one method of a finished run: the base, and the model after each domain.

    Args:
        workspace: Of the method.
        asked: What is scored; ``scoring.max_length`` is taken from the run.
        tell: Told what is done.

    Raises:
        DataError: A set is empty, was trained on, or does not fit a metric.
        ConstrainedAdaptersError: The run cannot be opened or its data cannot be read.
    """
    begun = time.perf_counter()
    notes: list[str] = []
    config = read_config(workspace.root.parent / "crma.yaml")
    data = _read_data(config, workspace, notes)
    finished = finished_domains(workspace)
    own = [each for each in data.sets if each.name in finished] if asked.own_sets else []
    own, given = capped(own, asked.max_items), capped(asked.sets, asked.max_items)
    check_sets([*own, *given], data.training, asked, notes)
    opened = open_workspace(
        workspace, dtype=asked.dtype, device=asked.device, quantization=asked.quantization
    )
    if given and not _is_one_model(opened):
        notes.append(f"Each domain has a model of its own; given sets are asked of {opened.domains[-1]}'s.")
    scoring = replace(asked.scoring, max_length=config.training.max_length_tokens)
    scorer = Scorer(opened.model, opened.tokenizer, activator(opened.model), scoring, tell)
    states: dict[str, State] = {BASE: {}, ADAPTED: opened.adapters[opened.domains[-1]]}
    rows = _rows(opened, own, scorer)
    models: dict[str, Row] = {
        name: {**row, **{each.name: scorer.items(states[name], each) for each in given}}
        for name, row in zip(states, (rows[0], rows[-1]) if rows else ({}, {}), strict=True)
    }
    general: list[float | None] = []
    if asked.general and (texts := general_texts(config)):
        found = _score_general(opened, texts, scorer)
        models[BASE][GENERAL], models[ADAPTED][GENERAL] = found[0], found[-1]
        general = [mean_scores(items)["loss"] for items in found]
    names = [each.name for each in own]
    matrices = _matrices(rows, names)
    return Assessment(
        title=f"{config.title}: {workspace.root.name}",
        created=now(),
        base=opened.base.description,
        environment=environment(),
        settings={"run": str(workspace.root), **settings(asked, scoring)},
        models=list(states),
        sets=set_scores(models, _groups(names, given, bool(general))),
        domains=names,
        matrices=derived_matrices(matrices),
        general_nats=general,
        summary=summarise(matrices, general) if rows else {},
        intervals=summary_intervals(rows, names) if rows else {},
        items={name: dict(row) for name, row in models.items()},
        tasks=score_tasks(asked.tasks, states, scorer) if asked.tasks else [],
        seconds=time.perf_counter() - begun,
        notes=notes,
    )


def _read_data(config: RunConfig, workspace: Workspace, notes: list[str]) -> RunData:
    """The run's data, with a note where it has changed."""
    data = read_run_data(config)
    known = {each["name"]: each["fingerprint"] for each in workspace.read_settings().get("domains", [])}
    changed = [name for name, now in data.fingerprints.items() if known.get(name, now) != now]
    if changed:
        notes.append(f"The data of {', '.join(changed)} has changed since the run, and its scores with it.")
    return data


def _rows(opened: OpenedModel, sets: Sequence[EvaluationSet], scorer: Scorer) -> list[Row]:
    """The items of each row of R: the base, then the model after each finished domain."""
    if not sets:
        return []
    acting, domains, together = opened.adapters, opened.domains, _is_one_model(opened)
    rows = [{each.name: scorer.items({}, each) for each in sets}]
    for number, learnt in enumerate(domains, start=1):
        row = {}
        for each in sets:
            own = acting[each.name] if each.name in domains[:number] else {}
            row[each.name] = scorer.items(acting[learnt] if together else own, each)
        rows.append(row)
    return rows


def _is_one_model(opened: OpenedModel) -> bool:
    """Whether each domain acts on top of those before, so that one model answers for all of them."""
    acting = opened.adapters
    return all(set(acting[one]) <= set(acting[after]) for one, after in itertools.pairwise(opened.domains))


def _score_general(opened: OpenedModel, texts: Sequence[str], scorer: Scorer) -> list[ItemScores]:
    """The items of general text by row; where domains have models of their own, they are the base's."""
    each = EvaluationSet(GENERAL, tuple(Example(text=text) for text in texts), "", "general")
    reader = replace(scorer, scoring=replace(scorer.scoring, metrics=("loss",)))
    acting = [opened.adapters[domain] if _is_one_model(opened) else {} for domain in opened.domains]
    states: list[State] = [{}, *acting]
    return [reader.items(state, each) for state in states]


def _matrices(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Matrix]:
    means = [{name: mean_scores(row[name]) for name in names} for row in rows]
    metrics = [*METRICS, *(f"{SUPERSEDED}{metric}" for metric in METRICS)]
    matrices: dict[str, Matrix] = {
        metric: [[row[name].get(metric) for name in names] for row in means] for metric in metrics
    }
    return {
        name: matrix
        for name, matrix in matrices.items()
        if any(cell is not None for row in matrix for cell in row)
    }


def _groups(
    domains: Sequence[str], given: Sequence[EvaluationSet], general: bool
) -> Mapping[str, tuple[Group, list[str]]]:
    groups: dict[str, tuple[Group, list[str]]] = {}
    if len(domains) > 1:
        groups["old domains"] = ("old", list(domains[:-1]))
        groups["new domain"] = ("new", [domains[-1]])
        groups["all domains"] = ("mixed", list(domains))
    groups |= {name: ("domain", [name]) for name in domains}
    groups |= {each.name: ("given", [each.name]) for each in given}
    return groups | ({GENERAL: ("general", [GENERAL])} if general else {})
