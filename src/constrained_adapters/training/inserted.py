"""The learner of modules inserted into a frozen base: bottleneck adapters, progressive columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, final

from constrained_adapters.adapters.inserted import InsertedModel
from constrained_adapters.errors import ConfigError
from constrained_adapters.training.bound import UnderPenalty
from constrained_adapters.training.learner import NeedsNothing, Rows
from constrained_adapters.training.penalties import Penalty

InsertedUse = Literal["together", "alone", "onward", "once"]

ONLY_SET = "all"
"""Name of the set that is trained on through all domains."""


@final
class InsertedLearner(UnderPenalty, NeedsNothing):
    """Sets of inserted modules, domain after domain.

    Args:
        model: Without sets.
        use: ``together``: a new set a domain, which acts on top of the earlier ones, one model for every
            domain; of columns, the last is heard. ``alone``: a set a domain, each scored with its own; a
            domain not learnt yet, and text of no domain, on the base. ``onward``: one set, trained on from
            domain to domain. ``once``: one set, learnt in the place of the first domain.
        penalty: Binds the steps of ``onward``, where the weights of finished domains are those in training.

    Raises:
        ConfigError: A penalty is given for another use, or columns are to be trained on.
    """

    def __init__(
        self, model: InsertedModel, use: InsertedUse = "onward", penalty: Penalty | None = None
    ) -> None:
        super().__init__(penalty)
        if penalty is not None and use != "onward":
            raise ConfigError(
                "a penalty holds weights that are trained on, and here each domain has its own",
                got=f"use={use!r} with a penalty",
                expected="use='onward'",
                hint="leave the penalty out: what finished domains learnt is frozen",
            )
        if model.family.reads_earlier and use == "onward":
            raise ConfigError(
                f"{model.family.kind}: each domain's modules stay as they were learnt",
                got="use='onward'",
                expected="together, alone or once",
            )
        self.module, self._use = model, use

    def begin(self, number: int, domain: str, rows: Rows) -> None:
        """Make the domain's set, or go on with the one there is, and bind the steps."""
        if self._use != "onward" or not self.module.names:
            self.module.add(self._set_of(domain))
        self._show_learnt()
        self.bind(domain)

    def finish(self, domain: str, folder: Path) -> None:
        """Write the domain's set."""
        self.learnt(domain)
        self.module.save_set(self._set_of(domain), folder)

    def resume(self, number: int, domain: str, home: Path) -> None:
        """Read the set; of one that is trained on, its state after this domain."""
        if self._use == "onward" and self.module.names:
            self.module.reload_set(home, ONLY_SET)
        else:
            self.module.load_set(home, self._set_of(domain))
        self.learnt(domain)
        self._show_learnt()

    def show(self, row: int, number: int) -> None:
        """Let those sets act that take part."""
        if row == 0 or (self._use == "alone" and not 1 <= number <= row):
            self.module.activate([])
        elif self._use == "alone":
            self.module.activate([self.module.names[number - 1]])
        else:
            self.module.activate(self.module.names[:row])

    def shown_since(self, row: int, number: int) -> int:
        """``alone``: since the domain was learnt. ``once``: since row 1. The others: never before."""
        if self._use in {"together", "onward"}:
            return row
        if self._use == "once":
            return min(row, 1)
        return number if number <= row else 0

    def settle(self, homes: Sequence[Path]) -> None:
        """Nothing: a set is small, and what it was after each domain may be wanted again."""

    def release(self) -> None:
        """Take all hooks off the base."""
        self.module.unload()

    def _set_of(self, domain: str) -> str:
        return ONLY_SET if self._use == "onward" else domain

    def _show_learnt(self) -> None:
        """The newest set, where each domain has its own; else all."""
        names = self.module.names
        self.module.activate(names[-1:] if self._use == "alone" else names)
