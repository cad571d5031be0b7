"""One method taught the whole sequence: train, remember, evaluate, write down, domain after domain.

Every stage leaves a whole result on disk before the next begins, and a stage whose result is there
is not done again; so a run that was killed at any moment goes on with the same numbers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed

from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.config.run import MethodConfig, RunConfig
from constrained_adapters.data.examples import Domain, Example
from constrained_adapters.data.tokens import TokenDataset, tensor_rows
from constrained_adapters.evaluation.calibration import measured_increases
from constrained_adapters.evaluation.items import mean_scores
from constrained_adapters.evaluation.samples import generate_answers
from constrained_adapters.evaluation.scored_set import score_set
from constrained_adapters.evaluation.scores import score_items
from constrained_adapters.guards.forgetting import ForgettingGuard
from constrained_adapters.memory.reservoir import (
    LEAST_EXAMPLES,
    LEAST_SINGLE,
    num_memory_examples,
    sample_rows,
)
from constrained_adapters.objectives import LabelledDataset, Teachers, is_plain, prepare_rows
from constrained_adapters.recipes import find_recipe, model_config, penalty_weights
from constrained_adapters.results import ItemScores
from constrained_adapters.training.answers import method_objective, method_rates
from constrained_adapters.training.domain import TrainingRecord, train_domain
from constrained_adapters.training.guarding import can_be_guarded, guard_facts, learnt_nats, make_guard
from constrained_adapters.training.learner import Learner, OneState
from constrained_adapters.training.lessons import Lessons, Prepared
from constrained_adapters.training.observer import RunObserver
from constrained_adapters.training.peak import peak_memory_bytes
from constrained_adapters.training.prevention import collapse_guards, prevented_settings
from constrained_adapters.training.routes import note_for_router
from constrained_adapters.workspace import Workspace, atomic_directory, atomic_write_bytes, atomic_write_json

TRAINING_FILE = "training.json"
MOSTLY_MASKED = 0.5
START_ROWS = 32
"""Examples that an adapter's start is chosen from."""


class DomainSequence:
    """The life of one method in one workspace.

    Args:
        learner: Has learnt nothing yet.
        workspace: Locked by the caller.
        prepared: Data and tokenizer.
        config: Of the run.
        method: Of ``config.methods``.
        lessons: Of the method.
        observer: Told about progress.
    """

    def __init__(
        self,
        learner: Learner,
        workspace: Workspace,
        prepared: Prepared,
        config: RunConfig,
        method: MethodConfig,
        lessons: Lessons,
        observer: RunObserver,
    ) -> None:
        self.learner, self.workspace, self.prepared = learner, workspace, prepared
        self.config, self.method, self.observer = config, method, observer
        self.lessons = lessons

    def run(self, base_row: Path | None = None) -> None:
        """Do what is not done yet.

        Args:
            base_row: Row 0 as another method of this run measured it; it is the same for all.
        """
        if not self._is_measured(0, self.prepared.domains):
            if base_row is not None:
                self.workspace.evaluations.mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(self.workspace.evaluation(0), base_row.read_bytes())
            else:
                self._evaluate(0, self.prepared.domains)

        def tell(text: str) -> None:
            self.observer.stage(self.method.name, None, text)

        self.lessons.prepare(tell, self._untouched)
        self.learner.prepare(tell)
        for number, domain in enumerate(self.prepared.domains, start=1):
            self._learn(number, domain)
            note_for_router(
                self.workspace,
                self.config,
                self.method,
                number,
                domain,
                self._untouched,
                self.prepared.tokenizer,
            )
            last = number == len(self.prepared.domains)
            sampled = self.prepared.domains if last else (domain,)
            if not self._is_measured(number, sampled):
                self._evaluate(number, sampled)
            self._write_ledger(number, domain)
            self.learner.settle(
                [
                    self.workspace.adapter(done.name)
                    for turn, done in enumerate(self.prepared.domains[:number], start=1)
                    if not self.lessons.is_empty(turn)
                ]
            )

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, number: int, domain: Domain) -> None:
        home = self.workspace.adapter(domain.name)
        if self.lessons.is_empty(number):
            if not home.is_dir():
                with atomic_directory(home) as folder:
                    atomic_write_json(folder / TRAINING_FILE, _training_json(TrainingRecord(), {}, {}))
            return
        if home.is_dir():
            self.learner.resume(number, domain.name, home)
        else:
            self._train(number, domain.name, home)
        if not self.learner.remembers(domain.name, home):
            self._remember(number, domain, home)
        self.lessons.keep(number, lambda: self._shown(number, number))

    def _train(self, number: int, name: str, home: Path) -> None:
        seed = self.config.seed * 1000 + number
        lesson = self.lessons.lesson(number)
        prevent = self.config.collapse_settings
        objective = method_objective(self.method, prevent)
        dataset: TokenDataset | LabelledDataset = lesson.rows
        if not is_plain(objective):  # before the new adapter is there
            dataset = prepare_rows(objective, lesson.rows.tokens, self._teachers(number))
            masked = dataset.facts["masked_ratio"]
            if masked > MOSTLY_MASKED:
                self.observer.message(
                    f"{self.method.name}, {name}: token masking takes out {masked:.0%} of the labels, which "
                    "the base finds too unlikely, so that little is learnt; a higher stm_threshold keeps more"
                )
        set_seed(seed)
        self.learner.begin(number, name, tensor_rows(sample_rows(lesson.rows.tokens, START_ROWS, seed)))
        guard = self._guard(number)
        record = train_domain(
            self.learner.module,
            self.prepared.tokenizer,
            dataset,
            prevented_settings(lesson.settings, prevent),
            method=self.method.name,
            domain=name,
            learning_rate=self.method.learning_rate or lesson.settings.learning_rate,
            seed=seed,
            folder=self.workspace.checkpoints(name),
            observer=self.observer,
            in_order=lesson.in_order,
            objective=objective,
            rate_ratios=method_rates(self.method, self.learner.module, self.workspace.memory),
            callbacks=[
                *([] if guard is None else [guard]),
                *collapse_guards(prevent, self.prepared.tokenizer, name, self.observer.message),
            ],
            trackers=self.workspace.trackers(name),
        )
        record.guard = guard_facts(guard)
        for event in guard.events if guard is not None else ():
            text = f"{event['action']} at step {event['step']}: {event['reason']}"
            self.observer.message(f"{self.method.name}, {name}: {text}")
        facts = self.learner.describe()
        if isinstance(dataset, LabelledDataset) and "stm" in find_recipe(self.method).objectives:
            facts |= dataset.facts
        predicted = self.learner.predicted_increase_nats(name)
        with atomic_directory(home) as folder:
            self.learner.finish(name, folder)
            atomic_write_json(folder / TRAINING_FILE, _training_json(record, facts, predicted))
        shutil.rmtree(self.workspace.checkpoints(name), ignore_errors=True)

    def _guard(self, number: int) -> ForgettingGuard | None:
        """What watches the finished domains by rows of their validation splits, where it is wanted."""
        settings = self.config.guard
        if settings is None or not can_be_guarded(self.method):
            return None
        rows = [
            self.lessons.tokens(domain.validation[: settings.probe_rows]).tokens
            for domain in self.prepared.domains[:number]
        ]
        names = [domain.name for domain in self.prepared.domains[: number - 1]]
        facts = {name: _training_facts(self.workspace.adapter(name)) for name in names}
        learnt = {name: nats for name in names if (nats := learnt_nats(facts[name])) is not None}
        old = dict(zip(names, rows[:-1], strict=True))
        return make_guard(settings, old, rows[-1], learnt, self.learner.module)

    def _teachers(self, number: int) -> Teachers:
        """The model after the domains before this one, and the base as it was before any."""

        def before() -> Any:
            self.learner.show(number - 1, 0)
            return self.learner.module

        return Teachers(before, self._untouched)

    def _untouched(self) -> Any:
        self.learner.show(0, 0)
        return self.prepared.base if isinstance(self.learner, OneState) else self.learner.module

    def _remember(self, number: int, domain: Domain, home: Path) -> None:
        self.observer.stage(self.method.name, domain.name, "making the gradient memory")
        begun = time.perf_counter()
        examples = sample_rows(
            domain.train, self._memory_examples(domain), seed=self.config.seed * 1000 + number
        )
        rows = tensor_rows(self.lessons.tokens(examples).tokens)
        self.learner.remember(number, domain.name, home, rows)
        self._note_memory_seconds(home, time.perf_counter() - begun)

    def _memory_examples(self, domain: Domain) -> int:
        if self.method.gradient_memory_size is not None:
            return self.method.gradient_memory_size
        settings = self.config.training
        rows = (settings.steps or 0) * settings.batch_size * settings.gradient_accumulation_steps
        seen = rows or int(len(domain.train) * (settings.epochs or 1.0))
        least = LEAST_SINGLE if find_recipe(self.method).bounds else LEAST_EXAMPLES
        return num_memory_examples(seen, CRMAConfig.model_fields["gradient_memory_size"].default, least=least)

    def _note_memory_seconds(self, home: Path, seconds: float) -> None:
        facts = json.loads((home / TRAINING_FILE).read_text(encoding="utf-8"))
        facts["peak_memory_bytes"] = max(facts["peak_memory_bytes"], peak_memory_bytes())
        atomic_write_json(home / TRAINING_FILE, {**facts, "memory_seconds": seconds})

    # -- measuring -------------------------------------------------------------------------------

    def _is_measured(self, row: int, sampled: Sequence[Domain]) -> bool:
        """Whether a row is on disk with every domain of this run; domains may have been added since."""
        if not self.workspace.evaluation(row).is_file():
            return False
        known = self.workspace.read_evaluation(row)
        wanted = {domain.name for domain in sampled} if self.config.evaluation.num_samples else set()
        return {domain.name for domain in self.prepared.domains} <= set(known["scores"]) and wanted <= set(
            known["samples"]
        )

    def _evaluate(self, row: int, sample_domains: Sequence[Domain]) -> None:
        what = "scoring the base" if row == 0 else f"scoring after domain {row}"
        self.observer.stage(self.method.name, None, what)
        begun = time.perf_counter()
        # A row that is there lacks domains that were added since, or undone; what it has stays.
        there = self.workspace.read_evaluation(row) if self.workspace.evaluation(row).is_file() else {}
        items: dict[str, ItemScores] = {}
        written: dict[str, list[str]] = {}
        for number, domain in enumerate(self.prepared.domains, start=1):
            known = self._known_row(row, number) or there
            kept_items = known.get("items", {}).get(domain.name)
            items[domain.name] = ItemScores(**kept_items) if kept_items else self._score(row, number)
            if domain in sample_domains and self.config.evaluation.num_samples:
                kept = known.get("samples", {}).get(domain.name)
                written[domain.name] = kept or self._write_samples(row, number)
        general: dict[str, Any] = {"general_nats": None}
        if self.prepared.general_texts:
            general = self._known_row(row, 0) or there or self._general(row)
        scores = {name: mean_scores(each) for name, each in items.items()}
        self.workspace.write_evaluation(
            row,
            scores,
            **{key: general[key] for key in ("general_nats", "general_items") if key in general},
            samples=written,
            seconds=time.perf_counter() - begun + there.get("seconds", 0.0),
            items={name: each.model_dump(exclude_defaults=True) for name, each in items.items()},
        )
        self.observer.row(self.method.name, row, scores)

    def _known_row(self, row: int, number: int) -> dict[str, Any] | None:
        """The earlier row that was scored in the same state of the model, where there is one."""
        earlier = self.learner.shown_since(row, number)
        return self.workspace.read_evaluation(earlier) if earlier < row else None

    def _score(self, row: int, number: int) -> ItemScores:
        settings = self.config.evaluation
        return score_set(
            self._shown(row, number),
            self.prepared.tokenizer,
            getattr(self.prepared.domains[number - 1], settings.split)[: settings.max_items],
            # Drift and forecasts rest on the loss.
            metrics=None if settings.metrics is None else ["loss", *settings.metrics],
            batch_size=settings.batch_size,
            max_length=self.config.training.max_length_tokens,
            max_new_tokens=settings.max_new_tokens,
        )

    def _general(self, row: int) -> dict[str, Any]:
        items = score_items(
            self._shown(row, 0),
            self.prepared.tokenizer,
            [Example(text=text) for text in self.prepared.general_texts],
            batch_size=self.config.evaluation.batch_size,
            max_length=self.config.training.max_length_tokens,
        )
        kept = items.model_dump(include={"keys", "loss", "num_tokens"})
        return {"general_nats": mean_scores(items)["loss"], "general_items": kept}

    def _write_samples(self, row: int, number: int) -> list[str]:
        settings = self.config.evaluation
        return generate_answers(
            self._shown(row, number),
            self.prepared.tokenizer,
            getattr(self.prepared.domains[number - 1], settings.split)[: settings.num_samples],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )

    def _shown(self, row: int, number: int) -> Any:
        self.learner.show(row, number)
        self.learner.module.eval()
        return self.learner.module

    def _write_ledger(self, number: int, domain: Domain) -> None:
        if domain.name in self.workspace.ledger.standing():
            return
        home = self.workspace.adapter(domain.name)
        record = _training_facts(home)
        row = self.workspace.read_evaluation(number)
        settings = model_config(self.method, self.config.base, self.config.adapter)
        self.workspace.ledger.append(
            {
                "domain": domain.name,
                "position": number,
                "method": self.method.name,
                "recipe": self.method.recipe,
                "data": domain.source,
                "data_fingerprint": domain.fingerprint,
                "num_train": len(domain.train),
                "rank": int(record["constraint"].get("chosen_rank", 0)) or settings.adapter_dim,
                "residual_scaling": settings.residual_scaling,
                "constraint_type": settings.constraint_type,
                "constraint_strength": record["constraint"].get(
                    "chosen_strength", settings.effective_strength
                ),
                "penalty_weight": _one_or_all(penalty_weights(self.method)),
                "learning_rate": self.method.learning_rate or self.config.training.learning_rate,
                "constraint": record["constraint"],
                "guard": record.get("guard", {}),
                "events": record.get("events", []),
                "predicted_increase_nats": record["predicted_increase_nats"],
                "measured_increase_nats": self._measured_increases(number),
                "scores": row["scores"],
                "general_nats": row["general_nats"],
            }
        )

    def _measured_increases(self, number: int) -> dict[str, float]:
        rows = [self.workspace.read_evaluation(row) for row in range(number + 1)]
        names = [domain.name for domain in self.prepared.domains]
        losses = [[row["scores"][name].get("loss") for name in names] for row in rows]
        return measured_increases(losses, [row["general_nats"] for row in rows], names, number)


def _one_or_all(weights: Mapping[Any, float]) -> float | dict[str, float]:
    """λ of a method: one number where it has one penalty or none."""
    return sum(weights.values()) if len(weights) < 2 else dict(weights)


def _training_facts(home: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((home / TRAINING_FILE).read_text(encoding="utf-8"))
    return facts


def _training_json(
    record: TrainingRecord, facts: Mapping[str, float], predicted: Mapping[str, float]
) -> dict[str, Any]:
    return {
        **asdict(record),
        "constraint": dict(facts),
        "predicted_increase_nats": dict(predicted),
        "peak_memory_bytes": peak_memory_bytes(),
    }
