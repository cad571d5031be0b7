"""From a method's workspace to its :class:`~constrained_adapters.results.MethodResult`; reads files only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from constrained_adapters.adapters.change import weight_change
from constrained_adapters.config.run import MethodConfig, RunConfig
from constrained_adapters.data.examples import Domain
from constrained_adapters.evaluation.calibration import measured_increases
from constrained_adapters.evaluation.intervals import increase_interval, summary_intervals
from constrained_adapters.evaluation.items import METRICS, SUPERSEDED
from constrained_adapters.evaluation.summary import summarise
from constrained_adapters.memory.importance import module_importance
from constrained_adapters.model.remembering import MEMORY_FILE
from constrained_adapters.recipes import find_recipe
from constrained_adapters.results import Curve, DomainRecord, ItemScores, Matrix, MethodResult, Sample
from constrained_adapters.workspace import Workspace


def method_result(
    workspace: Workspace, config: RunConfig, method: MethodConfig, domains: Sequence[Domain], peak_bytes: int
) -> MethodResult:
    """Put together what a finished sequence left on disk.

    Args:
        workspace: All rows measured, all adapters written.
        config: Of the run.
        method: Of ``config.methods``.
        domains: In order.
        peak_bytes: Most memory the process held for this method; the processes of a run that was stopped
            wrote theirs beside each domain.
    """
    rows = [workspace.read_evaluation(row) for row in range(len(domains) + 1)]
    matrices: dict[str, Matrix] = {
        metric: [[row["scores"][domain.name].get(metric) for domain in domains] for row in rows]
        for metric in (*METRICS, *(f"{SUPERSEDED}{name}" for name in METRICS))
    }
    matrices = {
        name: matrix for name, matrix in matrices.items() if any(c is not None for r in matrix for c in r)
    }
    general = [row["general_nats"] for row in rows]
    items = [{name: ItemScores(**scores) for name, scores in row.get("items", {}).items()} for row in rows]
    records = [
        _domain_record(
            workspace.adapter(domain.name),
            domain,
            rows[number]["seconds"],
            config,
            measured_increases(matrices.get("loss", []), general, [d.name for d in domains], number),
            _increase_intervals(rows[number - 1 : number + 1], items[number - 1 : number + 1]),
        )
        for number, domain in enumerate(domains, start=1)
    ]
    recipe = find_recipe(method)
    # What is kept for the method as a whole: the base's memory, a running importance, a replay buffer.
    shared = sum(path.stat().st_size for path in workspace.memory.rglob("*.safetensors"))
    totals = {
        "train_seconds": sum(record.train_seconds for record in records),
        "memory_seconds": sum(record.memory_seconds for record in records),
        "eval_seconds": sum(record.eval_seconds for record in records),
        "step_seconds": _mean_step_seconds(workspace, domains),
        "bytes_per_domain": (sum(r.adapter_bytes + r.memory_bytes for r in records) + shared) / len(records),
        "peak_memory_bytes": float(
            max(peak_bytes, *(_facts(workspace.adapter(d.name)).get("peak_memory_bytes", 0) for d in domains))
        ),
        "keeps_old_data": float(recipe.keeps_old_data),
    }
    return MethodResult(
        name=method.name,
        recipe=method.recipe,
        settings=method.model_dump(mode="json", exclude_none=True),
        domains=[domain.name for domain in domains],
        matrices=matrices,
        general_nats=general,
        summary={**summarise(matrices, general), **totals},
        records=records,
        samples=_samples(config, domains, rows),
        items=items[-1],
        intervals=summary_intervals(items, [domain.name for domain in domains]),
    )


def _increase_intervals(
    rows: Sequence[dict[str, Any]], items: Sequence[dict[str, ItemScores]]
) -> dict[str, tuple[float, float]]:
    """Of every set's rise from one row to the next, by domain, and ``base`` for general text."""
    before, after = items
    found = {name: increase_interval(before[name], after[name]) for name in before if name in after}
    if all("general_items" in row for row in rows):
        found["base"] = increase_interval(*(ItemScores(**row["general_items"]) for row in rows))
    return {name: interval for name, interval in found.items() if interval is not None}


def _domain_record(
    home: Path,
    domain: Domain,
    eval_seconds: float,
    config: RunConfig,
    measured: dict[str, float],
    intervals: dict[str, tuple[float, float]],
) -> DomainRecord:
    facts = _facts(home)
    removed = facts["curves"].get("removed_ratio", [[], []])[1]
    mean_removed = {"removed_ratio": sum(removed) / len(removed)} if removed else {}
    sizes = {path.name: path.stat().st_size for path in home.iterdir()}
    return DomainRecord(
        name=domain.name,
        num_train=len(domain.train),
        num_validation=len(domain.validation),
        num_test=len(getattr(domain, config.evaluation.split)[: config.evaluation.max_items]),
        data_fingerprint=domain.fingerprint,
        train_seconds=facts["seconds"],
        memory_seconds=facts.get("memory_seconds", 0.0),
        eval_seconds=eval_seconds,
        adapter_bytes=sum(
            size for name, size in sizes.items() if name.endswith(".safetensors") and name != MEMORY_FILE
        ),
        memory_bytes=sizes.get(MEMORY_FILE, 0),
        curves={name: Curve(steps=steps, values=values) for name, (steps, values) in facts["curves"].items()},
        constraint={**facts["constraint"], **mean_removed},
        predicted_increase_nats=facts["predicted_increase_nats"],
        measured_increase_nats=measured,
        measured_increase_intervals={name: intervals[name] for name in measured if name in intervals},
        events=facts.get("events", []),
        guard=facts.get("guard", {}),
        importance=module_importance(home / MEMORY_FILE),
        weight_change=weight_change(home),
    )


def _mean_step_seconds(workspace: Workspace, domains: Sequence[Domain]) -> float:
    """Mean of the domains' medians, of those that were trained."""
    medians = [_facts(workspace.adapter(domain.name))["step_seconds"] for domain in domains]
    trained = [seconds for seconds in medians if seconds > 0]
    return sum(trained) / len(trained) if trained else 0.0


def _facts(home: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((home / "training.json").read_text(encoding="utf-8"))
    return facts


def _samples(config: RunConfig, domains: Sequence[Domain], rows: Sequence[dict[str, Any]]) -> list[Sample]:
    samples = []
    for number, domain in enumerate(domains, start=1):
        examples = getattr(domain, config.evaluation.split)[: config.evaluation.num_samples]
        texts = [rows[row]["samples"].get(domain.name, []) for row in (0, number, len(domains))]
        for example, base, learned, final in zip(examples, *texts, strict=True):
            samples.append(
                Sample(
                    domain=domain.name,
                    prompt=example.task_prompt,
                    reference=example.reference,
                    base=base,
                    learned=learned,
                    final=final,
                )
            )
    return samples
