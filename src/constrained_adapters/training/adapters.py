"""Learners whose domains become LoRA adapters of one :class:`CRMAModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from constrained_adapters.data.tokens import Tokens, tensor_rows
from constrained_adapters.memory.kfac import KFACMemory
from constrained_adapters.model import CRMAModel
from constrained_adapters.model.remembering import MEMORY_FILE
from constrained_adapters.training.isolation import Isolation
from constrained_adapters.training.learner import Rows
from constrained_adapters.training.penalties import Penalty
from constrained_adapters.workspace import atomic_write_bytes

BASE_MEMORY = "base.safetensors"


class AdapterLearner:
    """One adapter a domain, each on top of the earlier ones.

    Args:
        model: Without adapters; it ends with one per domain. Its config says how CRMA's memories bind a step.
        memory_folder: Of the method's workspace.
        seed: Of the text that the base writes for its own memory.
        use: ``together``: after each domain all adapters so far are active, one model for every domain.
            ``alone``: each domain is scored with its own adapter; one not learnt yet, and text of no domain,
            on the base. ``once``: there is one adapter only, learnt in the place of the first domain.
        start: Of each adapter: as drawn, or, where steps are bound, in the open directions that its domain
            uses most.
        penalty: Binds the steps beside, or instead of, CRMA's own constraint.
        isolation: Makes a shared adapter and each domain's own in its own layers; needs ``alone``.
        base_rows: What the base's memory is made of; empty: text that it writes.
    """

    def __init__(
        self,
        model: CRMAModel,
        memory_folder: Path,
        *,
        seed: int,
        use: Literal["together", "alone", "once"] = "together",
        start: Literal["random", "inputs"] = "random",
        penalty: Penalty | None = None,
        isolation: Isolation | None = None,
        base_rows: Sequence[Tokens] = (),
    ) -> None:
        self._model, self._folder, self._seed, self._use = model, memory_folder, seed, use
        self._start, self._penalty, self._isolation = start, penalty, isolation
        self._base_rows = base_rows
        self._names: list[str] = []
        self._tell: Callable[[str], None] = _say_nothing

    @property
    def module(self) -> Any:
        """The model with its active adapters."""
        return self._model

    @property
    def _protects(self) -> bool:
        return self._model.crma_config.effective_strength > 0.0

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Make, or read, the memory of the base's own knowledge, where the constraint wants one."""
        self._tell = tell
        if not (self._protects and self._model.crma_config.protect_base):
            return
        path = self._folder / BASE_MEMORY
        if path.is_file():
            self._model.base_memory = self._model.load_memory(path)
            return
        rows = tensor_rows(self._base_rows)
        tell("making the memory of what the base knows" + ("" if rows else ", from text that it writes"))
        memory: KFACMemory = self._model.make_base_memory(rows or None, seed=self._seed)
        atomic_write_bytes(path, memory.to_bytes())
        self._model.base_memory = memory

    def begin(self, number: int, domain: str, rows: Rows) -> None:
        """Add the domain's adapter, choose what is left to choose and where it starts, and bind its steps."""
        earlier = list(self._names)
        self.show(number - 1, 0)  # what is chosen rests on what was learnt, not on what was scored last
        if self._isolation is None:
            self._model.create_adapter(domain, domain_id=number, probe_rows=rows)
        else:
            self._isolation.create(self._model, number, domain)
        chosen = self._model.chosen(domain)
        if chosen is not None and chosen.reason:
            self._tell(f"{domain}: {chosen.reason}")
        self._names.append(domain)
        self.show(number, number)
        if self._start == "inputs" and self._protects:
            self._model.start_from(domain, rows)
        self._model.enable_constrained_training(self._protects)
        if self._penalty is not None:
            self._penalty.bind(self._model, domain, earlier)

    def finish(self, domain: str, folder: Path) -> None:
        """Freeze the adapter and write it."""
        if self._penalty is not None:
            self._penalty.release()
        self._model.enable_constrained_training(False)
        self._model.freeze_adapter(domain)
        self._model.save_adapter(folder, domain)
        if self._isolation is not None:
            self._isolation.finish(self._model)

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Load the adapter, with its memory."""
        if self._isolation is not None:
            self._isolation.resume(self._model)
        self._model.load_adapter(home, domain)
        self._names.append(domain)
        self.show(number, number)

    def remembers(self, domain: str, home: Path) -> bool:
        """Whether CRMA's memory lies in ``home`` and the penalty's has the domain, where they are wanted."""
        return not self._wants_memory(home) and (self._penalty is None or self._penalty.remembers(domain))

    def remember(self, number: int, domain: str, home: Path, rows: Rows) -> None:
        """Measure the memories that are wanted, at the present weights."""
        self.show(number, number)
        if self._wants_memory(home):
            memory = self._model.update_gradient_memory(domain, rows, max_examples=len(rows))
            atomic_write_bytes(home / MEMORY_FILE, memory.to_bytes())
        if self._penalty is not None and not self._penalty.remembers(domain):
            self._penalty.remember(self._model, domain, rows, seed=number)

    def _wants_memory(self, home: Path) -> bool:
        """Whether CRMA's memory is not made yet; of the only domain learnt nobody asks for one."""
        return self._protects and self._use != "once" and not (home / MEMORY_FILE).is_file()

    def show(self, row: int, number: int) -> None:
        """Activate the adapters that take part."""
        if self._use != "alone":
            self._model.set_active_adapters(self._names[:row])
        elif 1 <= number <= row:
            shared = [] if self._isolation is None else self._isolation.shared_names
            self._model.set_active_adapters([*shared, self._names[number - 1]])
        else:
            self._model.set_active_adapters([])

    def shown_since(self, row: int, number: int) -> int:
        """``together``: never before. ``once``: since row 1. ``alone``: since the domain was learnt."""
        if self._use == "together":
            return row
        if self._use == "once":
            return min(row, 1)
        return number if number <= row else 0

    def settle(self, homes: Sequence[Path]) -> None:
        """Nothing: every adapter is needed."""

    def describe(self) -> dict[str, float]:
        """Facts of CRMA's constraint and of the penalty."""
        facts = self._model.constraint_facts()
        return facts if self._penalty is None else {**facts, **self._penalty.describe()}

    def predicted_increase_nats(self, domain: str) -> dict[str, float]:
        """By CRMA's memories."""
        return self._model.predicted_increase_nats(domain)

    def release(self) -> None:
        """Take all adapters off the base."""
        self._model.unload()


def _say_nothing(text: str) -> None:
    """Until :meth:`AdapterLearner.prepare` has been told whom to tell."""
