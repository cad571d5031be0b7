"""The simplest door: teach subjects, switch between them, let the right one answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, final

from transformers import set_seed

from constrained_adapters.assistant.simple_data import read_examples
from constrained_adapters.assistant.streaming import Decoding, encode_conversation, stream_answer
from constrained_adapters.config.run import AdapterConfig, BaseConfig, MethodConfig, TrainingConfig
from constrained_adapters.data.examples import Message, fingerprint_examples
from constrained_adapters.data.tokens import TokenDataset, tensor_rows
from constrained_adapters.errors import AdapterStateError, UnknownNameError
from constrained_adapters.memory.reservoir import num_memory_examples, sample_rows
from constrained_adapters.model import CRMAModel
from constrained_adapters.model.adapter_set import adapter_name_of
from constrained_adapters.model.domain_adapters import acting_adapters
from constrained_adapters.model.opened import OpenedModel
from constrained_adapters.models.load import LoadedBase, load_base
from constrained_adapters.recipes import find_recipe, model_config
from constrained_adapters.routing import Router
from constrained_adapters.routing.build import NUM_PROMPTS, note_domain
from constrained_adapters.routing.keywords import write_keywords
from constrained_adapters.routing.states import STATISTICS_FILE, PromptStates
from constrained_adapters.training.adapters import AdapterLearner
from constrained_adapters.training.domain import train_domain
from constrained_adapters.training.observer import RunObserver, SilentObserver
from constrained_adapters.workspace import Workspace, atomic_directory, finished_domains

METHOD = MethodConfig(recipe="crma")
TRAINING = TrainingConfig(epochs=3.0, learning_rate=6e-3)
"""The rate at which the recipe was tried (docs/log.md)."""
START_ROWS = 32


def _say_nothing(text: str) -> None:
    """Where nobody wants to be told."""


@final
class SimpleDomainAdapter:
    """Teach one base subject after subject, switch between them, and let the right one answer.

    Each subject gets an adapter in ``adapters/<name>/``, trained under the memories of the earlier ones, so
    that these keep what they know. A subject is answered by its own adapter on top of the earlier ones, which
    it was trained on. The base is loaded once: a switch changes which adapters act, and nothing else. The
    folder is a workspace like that of ``crma run``: ``crma chat --run FOLDER`` and the other commands
    take it. An object made on a folder that has subjects goes on with them.

    Args:
        base: ``"embedded"``, a folder or a hub name; or a base loaded by ``load_base``.
        folder: Where ``adapters/`` lies, and what goes with it.
        training: How each subject is trained; default: three epochs at the recipe's rate.
        decoding: How answers are written; default: greedily, at most 256 tokens.
        seed: Of the start values and of the order of the examples.
        tell: Told what takes long.
        observer: Told about each step of training.

    Raises:
        WorkspaceError: The folder belongs to another base, or was made with other settings.
        ConstrainedAdaptersError: The base cannot be loaded.
    """

    def __init__(
        self,
        base: str | Path | LoadedBase = "embedded",
        folder: str | Path = ".",
        *,
        training: TrainingConfig | None = None,
        decoding: Decoding | None = None,
        seed: int = 0,
        tell: Callable[[str], None] = _say_nothing,
        observer: RunObserver | None = None,
    ) -> None:
        self.workspace = Workspace(folder)
        self.current: str | None = None
        """The subject that :meth:`answer` asks; None: the base."""
        self._base = base if isinstance(base, LoadedBase) else load_base(BaseConfig(model=str(base)))
        self._training, self._decoding = training or TRAINING, decoding or Decoding()
        self._seed, self._tell, self._observer = seed, tell, observer or SilentObserver()
        named = BaseConfig(model=str(self._base.description["model"]))
        model = CRMAModel.from_base(self._base, model_config(METHOD, named, AdapterConfig()))
        start = find_recipe(METHOD).start
        self._learner = AdapterLearner(model, self.workspace.memory, seed=seed, start=start)
        self._router: Router | None = None
        finished = finished_domains(self.workspace)
        if finished:
            self._check_workspace()
        for number, name in enumerate(finished, start=1):
            self._learner.resume(number, name, self.workspace.adapter(name))
        self._model.set_active_adapters([])

    @property
    def domains(self) -> tuple[str, ...]:
        """The subjects learnt, in their order."""
        return finished_domains(self.workspace)

    def train_domain(
        self,
        name: str,
        data: Any,
        *,
        keywords: Iterable[str] = (),
        max_examples: int | None = None,
    ) -> Path:
        """Teach a subject, under the memories of those learnt before.

        What was interrupted goes on where it stopped when it is called again; what is finished is not
        done again.

        Args:
            name: Of the subject, in any script.
            data: A list of (question, answer) pairs, of dictionaries or of conversations; or a file, a
                folder or ``packaged:NAME``.
            keywords: A question with one of these words belongs to this subject.
            max_examples: Use at most this many examples.

        Returns:
            The adapter's folder, a plain PEFT LoRA.

        Raises:
            ConfigError: The name cannot be one.
            DataError: There is nothing to learn in the data.
            AdapterStateError: The subject was learnt from other data.
            TrainingError: Training cannot go on.
        """
        name = adapter_name_of(name)
        examples, source = read_examples(name, data, max_examples=max_examples, seed=self._seed)
        fingerprint = fingerprint_examples(examples)
        home = self.workspace.adapter(name)
        known = self.workspace.ledger.standing()
        if name in self.domains:
            if known[name].get("data_fingerprint") != fingerprint:
                raise AdapterStateError(
                    f"the subject {name!r} was learnt from other data",
                    got=f"{len(examples)} examples from {source}",
                    hint="another name for what is new; it is learnt on top of this one",
                )
        else:
            with self.workspace.lock():
                self._check_workspace()
                self._learn(
                    name,
                    home,
                    TokenDataset.from_examples(
                        examples, self._base.tokenizer, self._training.max_length_tokens
                    ),
                )
                if not (home / STATISTICS_FILE).is_file():
                    prompts = [
                        each.text if each.text is not None else each.task_prompt
                        for each in sample_rows(examples, NUM_PROMPTS, self._seed)
                    ]
                    vectors = PromptStates(self._model, self._base.tokenizer)
                    note_domain(home, prompts, vectors, base_fingerprint=self._base.fingerprint)
                self.workspace.ledger.append(
                    {
                        "domain": name,
                        "position": len(self.domains) + 1,
                        "method": METHOD.name,
                        "recipe": METHOD.recipe,
                        "data": source,
                        "data_fingerprint": fingerprint,
                        "num_train": len(examples),
                        "learning_rate": self._training.learning_rate,
                    }
                )
        write_keywords(self.workspace, name, keywords)
        self._router = None
        self.switch_to(name)
        return home

    def switch_to(self, name: str | None) -> None:
        """Let a subject answer from now on, or (None) the base; nothing is loaded.

        Raises:
            UnknownNameError: No such subject was learnt.
        """
        if name is not None:
            name = adapter_name_of(name)
            if name not in self.domains:
                raise UnknownNameError.of("subject", name, self.domains, where=f"{self.workspace.root}")
        self.current = name

    def auto_detect_domain(self, question: str) -> str | None:
        """The subject that a question belongs to; None where it fits none.

        The first time, the base writes text that is of no subject (a minute on a slow processor).

        Raises:
            AdapterStateError: Nothing was learnt yet.
        """
        if not self.domains:
            raise AdapterStateError(
                "no subject was learnt yet", got=str(self.workspace.root), hint="train_domain(name, data)"
            )
        if self._router is None:
            self._router = Router.load(self.workspace, self._model, self._base.tokenizer, tell=self._tell)
        return self._router.route(question).domain

    def answer(self, question: str, *, on_text: Callable[[str], None] | None = None) -> str:
        """Answer by the subject that was switched to.

        Args:
            question: What is asked.
            on_text: Given each piece of the answer while it is written.

        Raises:
            DataError: The base's chat template refuses the question.
        """
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", 1 << 20)
        room = max(longest - self._decoding.max_new_tokens, 16)
        prompt = encode_conversation([Message("user", question)], self._base.tokenizer, room)
        if self.current is None:
            self._model.set_active_adapters([])
        else:
            acting = acting_adapters(self.workspace)
            opened = OpenedModel(self._model, self._base, tuple(acting), self.workspace, acting)
            opened.activate(self.current)
        text, _ = stream_answer(self._model, self._base.tokenizer, prompt, self._decoding, on_text)
        return text

    def answer_with_domain(self, question: str, *, on_text: Callable[[str], None] | None = None) -> str:
        """Find the subject of a question, switch to it (or to the base), and answer.

        Raises:
            AdapterStateError: Nothing was learnt yet.
            DataError: The base's chat template refuses the question.
        """
        self.switch_to(self.auto_detect_domain(question))
        return self.answer(question, on_text=on_text)

    @property
    def _model(self) -> Any:
        return self._learner.module

    def _check_workspace(self) -> None:
        self.workspace.remember_base(self._base.fingerprint, self._base.description)
        self.workspace.remember_settings({"seed": self._seed, "method": METHOD.model_dump(mode="json")})

    def _learn(self, name: str, home: Path, rows: TokenDataset) -> None:
        number = len(self.domains) + 1
        seed = self._seed * 1000 + number
        self._learner.prepare(self._tell)
        if home.is_dir():  # trained, and stopped before its memory was made
            if name not in self._model.adapter_names:
                self._learner.resume(number, name, home)
        else:
            if name in self._model.adapter_names:  # training was stopped in this very process
                raise AdapterStateError(
                    f"the training of {name!r} was stopped", got="the same object", hint="make it anew"
                )
            set_seed(seed)
            self._learner.begin(number, name, tensor_rows(sample_rows(rows.tokens, START_ROWS, seed)))
            train_domain(
                self._model,
                self._base.tokenizer,
                rows,
                self._training,
                method=METHOD.name,
                domain=name,
                learning_rate=self._training.learning_rate,
                seed=seed,
                folder=self.workspace.checkpoints(name),
                observer=self._observer,
            )
            with atomic_directory(home) as folder:
                self._learner.finish(name, folder)
            shutil.rmtree(self.workspace.checkpoints(name), ignore_errors=True)
        if not self._learner.remembers(name, home):
            self._tell(f"{name}: making the gradient memory")
            count = num_memory_examples(len(rows) * int(self._training.epochs or 1.0), 1000)
            self._learner.remember(number, name, home, tensor_rows(sample_rows(rows.tokens, count, seed)))
