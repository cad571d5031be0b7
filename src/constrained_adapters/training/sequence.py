"""One method taught the whole sequence: train, remember, evaluate, write down, domain after domain.

Every stage leaves a whole result on disk before the next begins, and a stage whose result is there
is not done again; so a run that was killed at any moment goes on with the same numbers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from constrained_adapters.config import MethodConfig, RunConfig
from constrained_adapters.data.examples import Domain
from constrained_adapters.data.tokens import TokenDataset
from constrained_adapters.evaluation.samples import generate_answers
from constrained_adapters.evaluation.scores import mean_nats, score_examples
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.memory.reservoir import num_memory_examples, sample_rows
from constrained_adapters.model import CRMAModel
from constrained_adapters.model.constrained import MEMORY_FILE
from constrained_adapters.training.domain import TrainingRecord, train_domain
from constrained_adapters.training.observer import RunObserver
from constrained_adapters.workspace import Workspace, atomic_directory, atomic_write_bytes, atomic_write_json

TRAINING_FILE = "training.json"
BASE_MEMORY = "base.safetensors"


@dataclass(frozen=True)
class Prepared:
    """What all methods of a run share: data, texts, the tokenizer."""

    domains: tuple[Domain, ...]
    general_texts: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase


class DomainSequence:
    """The life of one method in one workspace.

    Args:
        model: Without adapters; it ends with one adapter per domain, all active.
        workspace: Locked by the caller.
        prepared: Data and tokenizer.
        config: Of the run.
        method: Of ``config.methods``.
        observer: Told about progress.
    """

    def __init__(
        self,
        model: CRMAModel,
        workspace: Workspace,
        prepared: Prepared,
        config: RunConfig,
        method: MethodConfig,
        observer: RunObserver,
    ) -> None:
        self.model, self.workspace, self.prepared = model, workspace, prepared
        self.config, self.method, self.observer = config, method, observer

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
        if self._protects and self.model.crma_config.protect_base:
            self._base_memory()
        for number, domain in enumerate(self.prepared.domains, start=1):
            self._learn(number, domain)
            last = number == len(self.prepared.domains)
            sampled = self.prepared.domains if last else (domain,)
            if not self._is_measured(number, sampled):
                self._evaluate(number, sampled)
            self._write_ledger(number, domain)

    @property
    def _protects(self) -> bool:
        return self.model.crma_config.effective_strength > 0.0

    # -- learning --------------------------------------------------------------------------------

    def _learn(self, number: int, domain: Domain) -> None:
        home = self.workspace.adapter(domain.name)
        if home.is_dir():
            self.model.load_adapter(home, domain.name)
            self._activate(number)
        else:
            self._train(number, domain, home)
        if self._protects and not (home / MEMORY_FILE).is_file():
            self._remember(number, domain, home)

    def _activate(self, number: int) -> None:
        self.model.set_active_adapters([domain.name for domain in self.prepared.domains[:number]])

    def _train(self, number: int, domain: Domain, home: Path) -> None:
        seed = self.config.seed * 1000 + number
        settings = self.config.training
        set_seed(seed)
        self.model.create_adapter(domain.name, domain_id=number)
        self._activate(number)
        self.model.enable_constrained_training(self._protects)
        record = train_domain(
            self.model,
            self.prepared.tokenizer,
            TokenDataset.from_examples(domain.train, self.prepared.tokenizer, settings.max_length_tokens),
            settings,
            method=self.method.name,
            domain=domain.name,
            learning_rate=self.method.learning_rate or settings.learning_rate,
            seed=seed,
            folder=self.workspace.checkpoints(domain.name),
            observer=self.observer,
        )
        facts = self.model.constraint_facts()
        predicted = self.model.predicted_increase_nats(domain.name)
        self.model.enable_constrained_training(False)
        self.model.freeze_adapter(domain.name)
        with atomic_directory(home) as folder:
            self.model.save_adapter(folder, domain.name)
            atomic_write_json(folder / TRAINING_FILE, _training_json(record, facts, predicted))
        shutil.rmtree(self.workspace.checkpoints(domain.name), ignore_errors=True)

    def _remember(self, number: int, domain: Domain, home: Path) -> None:
        self.observer.stage(self.method.name, domain.name, "making the gradient memory")
        begun = time.perf_counter()
        examples = sample_rows(
            domain.train, self._memory_examples(domain), seed=self.config.seed * 1000 + number
        )
        tokens = TokenDataset.from_examples(
            examples, self.prepared.tokenizer, self.config.training.max_length_tokens
        )
        rows = [(torch.tensor(t.input_ids), torch.tensor(t.labels)) for t in tokens.tokens]
        memory = self.model.update_gradient_memory(domain.name, rows, max_examples=len(rows))
        atomic_write_bytes(home / MEMORY_FILE, memory.to_bytes())
        self._note_memory_seconds(home, time.perf_counter() - begun)

    def _memory_examples(self, domain: Domain) -> int:
        settings = self.config.training
        passes = settings.steps or 0
        seen = passes * settings.batch_size * settings.gradient_accumulation_steps
        seen = seen or int(len(domain.train) * (settings.epochs or 1.0))
        return num_memory_examples(seen, self.model.crma_config.gradient_memory_size)

    def _note_memory_seconds(self, home: Path, seconds: float) -> None:
        facts = json.loads((home / TRAINING_FILE).read_text(encoding="utf-8"))
        atomic_write_json(home / TRAINING_FILE, {**facts, "memory_seconds": seconds})

    def _base_memory(self) -> None:
        path = self.workspace.memory / BASE_MEMORY
        if path.is_file():
            self.model.base_memory = self.model.load_memory(path)
            return
        self.observer.stage(self.method.name, None, "the base writes text for the memory of what it knows")
        memory: KFACMemory = self.model.make_base_memory(seed=self.config.seed)
        atomic_write_bytes(path, memory.to_bytes())
        self.model.base_memory = memory

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
        settings, tokenizer = self.config.evaluation, self.prepared.tokenizer
        self._activate(row)
        self.model.eval()
        scores: dict[str, dict[str, float]] = {}
        for domain in self.prepared.domains:
            examples = getattr(domain, settings.split)[: settings.max_items]
            scores[domain.name] = mean_scores(
                score_examples(
                    self.model,
                    tokenizer,
                    examples,
                    batch_size=settings.batch_size,
                    max_length=self.config.training.max_length_tokens,
                )
            )
        general = None
        if self.prepared.general_texts:
            general = mean_nats(
                self.model,
                tokenizer,
                self.prepared.general_texts,
                batch_size=settings.batch_size,
                max_length=self.config.training.max_length_tokens,
            )
        written = {
            domain.name: generate_answers(
                self.model,
                tokenizer,
                getattr(domain, settings.split)[: settings.num_samples],
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
            )
            for domain in sample_domains
            if settings.num_samples
        }
        seconds = time.perf_counter() - begun
        self.workspace.write_evaluation(row, scores, general_nats=general, samples=written, seconds=seconds)
        self.observer.row(self.method.name, row, scores)

    def _write_ledger(self, number: int, domain: Domain) -> None:
        if any(entry.get("domain") == domain.name for entry in self.workspace.ledger.entries()):
            return
        home = self.workspace.adapter(domain.name)
        record = json.loads((home / TRAINING_FILE).read_text(encoding="utf-8"))
        row = self.workspace.read_evaluation(number)
        settings = self.model.crma_config
        self.workspace.ledger.append(
            {
                "domain": domain.name,
                "position": number,
                "method": self.method.name,
                "recipe": self.method.recipe,
                "data": domain.source,
                "data_fingerprint": domain.fingerprint,
                "num_train": len(domain.train),
                "rank": settings.adapter_dim,
                "residual_scaling": settings.residual_scaling,
                "constraint_type": settings.constraint_type,
                "constraint_strength": settings.effective_strength,
                "learning_rate": self.method.learning_rate or self.config.training.learning_rate,
                "constraint": record["constraint"],
                "predicted_increase_nats": record["predicted_increase_nats"],
                "scores": row["scores"],
                "general_nats": row["general_nats"],
            }
        )


def mean_scores(scores: Sequence[Any]) -> dict[str, float]:
    """Means: ``loss`` per answer token, ``exact_match`` and ``choice_accuracy`` where they are defined."""
    tokens = sum(score.num_tokens for score in scores)
    means = {"loss": sum(score.loss_nats * score.num_tokens for score in scores) / tokens}
    for name, key in (("exact_match", "exact"), ("choice_accuracy", "choice_correct")):
        known = [getattr(score, key) for score in scores if getattr(score, key) is not None]
        if known:
            means[name] = sum(known) / len(known)
    return means


def _training_json(
    record: TrainingRecord, facts: Mapping[str, float], predicted: Mapping[str, float]
) -> dict[str, Any]:
    return {**asdict(record), "constraint": dict(facts), "predicted_increase_nats": dict(predicted)}
