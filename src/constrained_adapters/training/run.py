"""A whole crma.yaml: every method taught the same sequence, and the record of it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from constrained_adapters.config.run import DomainConfig, MethodConfig, RunConfig
from constrained_adapters.config.yaml_file import dump_config
from constrained_adapters.data.examples import Example, fingerprint_examples
from constrained_adapters.data.load import load_domain
from constrained_adapters.evaluation.summary import with_references
from constrained_adapters.models.load import load_base
from constrained_adapters.recipes import check_methods, find_recipe
from constrained_adapters.results import RunResult
from constrained_adapters.training.before import diagnose_before
from constrained_adapters.training.checked_data import check_domains, tell_cut
from constrained_adapters.training.domain import check_optimizer
from constrained_adapters.training.guarding import can_be_guarded
from constrained_adapters.training.learners import check_methods_on, make_learner
from constrained_adapters.training.lessons import Lessons, Prepared
from constrained_adapters.training.observer import RunObserver, SilentObserver
from constrained_adapters.training.peak import peak_memory_bytes, reset_peak_memory
from constrained_adapters.training.record import method_result
from constrained_adapters.training.sequence import DomainSequence
from constrained_adapters.training.trackers import check_trackers
from constrained_adapters.workspace import Workspace, atomic_write_text


def run_config(config: RunConfig, *, observer: RunObserver | None = None, fresh: bool = False) -> RunResult:
    """Do a run, or go on with it: data, base, each method's sequence, ``results.json``.

    Args:
        config: The run; paths in it are absolute or relative to the working folder.
        observer: Told about progress.
        fresh: Throw away what an earlier run left in ``config.output``.

    Returns:
        The record, also written to ``<output>/results.json``.

    Raises:
        ConstrainedAdaptersError: Bad settings, data or base (before anything is trained), a workspace
            of another run, or a training that cannot go on.
    """
    observer = observer or SilentObserver()
    if config.private:
        evaluation = config.evaluation.model_copy(update={"num_samples": 0})
        config = config.model_copy(update={"evaluation": evaluation})
    check_methods(config)
    check_optimizer(config.training.optimizer)
    check_trackers(config.training.report_to)
    for method in config.methods if config.guard is not None else ():
        if not can_be_guarded(method):
            observer.message(
                f"{method.name}: the guard has nothing to do, no later domain can hurt an earlier"
            )
    domains = tuple(load_domain(domain, config.seed) for domain in config.domains)
    for domain in domains:
        for note in domain.notes:
            observer.message(f"{domain.name}: {note}")
    if config.guard is not None and isinstance(config.guard.max_increase, dict):
        strange = set(config.guard.max_increase) - {domain.name for domain in domains}
        if strange:
            observer.message(f"guard.max_increase names {', '.join(sorted(strange))}: no domain of this run")
    texts = general_texts(config)
    for warning in check_domains(domains, config.evaluation, texts):
        observer.message(warning)
    observer.started(len(config.methods), [domain.name for domain in domains])
    base = load_base(config.base)
    for note in tell_cut(domains, base.tokenizer, config.training.max_length_tokens):
        observer.message(note)
    prepared = Prepared(domains, texts, base.tokenizer, base.model)
    check_methods_on(base, config)
    taught = [
        Lessons(prepared, config, method, Workspace(config.output / method.name).memory)
        for method in config.methods
    ]
    if not fresh:  # a run that cannot go on says so before it is diagnosed
        begun, method = Workspace(config.output / config.methods[0].name), config.methods[0]
        begun.check_settings(_fixed_settings(config, method, prepared, taught[0]), growing=_growing(method))
    diagnosis = diagnose_before(base, domains, config, tell=observer.message, fresh=fresh)
    results = []
    for index, (method, lessons) in enumerate(zip(config.methods, taught, strict=True)):
        # Before anything is written down, so that a wrong setting can be put right and the run begun.
        workspace = Workspace(config.output / method.name)
        reset_peak_memory()
        learner = make_learner(base, config, method, workspace.memory, lessons.kept, lessons.base_rows)
        with workspace.lock():
            if fresh:
                workspace.clear()
            workspace.remember_base(base.fingerprint, base.description)
            fixed = _fixed_settings(config, method, prepared, lessons)
            workspace.remember_settings(fixed, growing=_growing(method))
            if index == 0:
                atomic_write_text(config.output / "crma.yaml", dump_config(config))
            first = config.output / config.methods[0].name
            base_row = Workspace(first).evaluation(0) if index else None
            DomainSequence(learner, workspace, prepared, config, method, lessons, observer).run(base_row)
            results.append(method_result(workspace, config, method, domains, peak_memory_bytes()))
            learner.release()
    result = RunResult(
        title=config.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base={**base.description, "fingerprint": base.fingerprint},
        environment=environment(),
        settings=config.model_dump(mode="json"),
        methods=with_references(results),
        diagnosis=diagnosis,
        ledger=[
            entry
            for method in config.methods
            for entry in Workspace(config.output / method.name).ledger.entries()
        ],
    )
    atomic_write_text(config.output / "results.json", result.model_dump_json(indent=1))
    return result


def general_texts(config: RunConfig) -> tuple[str, ...]:
    """Text that no domain trains on, from ``evaluation.general``; empty where that is null."""
    if config.evaluation.general is None:
        return ()
    source = DomainConfig(name="general_text", data=config.evaluation.general)
    domain = load_domain(source, config.seed)
    texts = [_as_text(example) for example in getattr(domain, config.evaluation.split)]
    return tuple(texts[: config.evaluation.general_items])


def _as_text(example: Example) -> str:
    return example.text if example.text is not None else f"{example.task_prompt}\n{example.reference}"


def _fixed_settings(
    config: RunConfig, method: MethodConfig, prepared: Prepared, lessons: Lessons
) -> dict[str, Any]:
    """What the numbers of a method depend on; texts by what they say, so that a run's folder can be moved."""
    prevent = config.collapse_settings
    return {
        "seed": config.seed,
        "adapter": config.adapter.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude={"report_to"}),
        "evaluation": _scored_by(config),
        "general_texts": fingerprint_examples([Example(text=text) for text in prepared.general_texts]),
        "method": method.model_dump(mode="json", exclude={"base_text", "general_text", "golden_set"}),
        "mixed_texts": lessons.fingerprint or None,
        **({"guard": config.guard.model_dump(mode="json")} if config.guard else {}),
        **({"prevent_collapse": prevent.model_dump(mode="json")} if prevent else {}),
        "domains": [{"name": domain.name, "fingerprint": domain.fingerprint} for domain in prepared.domains],
    }


def _growing(method: MethodConfig) -> tuple[str, ...]:
    """Which lists of the settings may get longer while a run stands."""
    return ("domains",) if find_recipe(method).resizable else ()


def _scored_by(config: RunConfig) -> dict[str, Any]:
    """Without ``metrics`` where it is not set: runs of before there was the setting go on."""
    unset = {"metrics"} if config.evaluation.metrics is None else set()
    return config.evaluation.model_dump(mode="json", exclude={"general", *unset})


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    packages = ("constrained-adapters", "torch", "transformers", "peft")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "num_threads": torch.get_num_threads(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
