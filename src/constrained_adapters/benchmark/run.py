"""Runs the cells of a plan: what is done stays, what fails is written down, the rest goes on."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from constrained_adapters.benchmark.cells import Cell, Restriction, describe, sweep_cells, table_cells
from constrained_adapters.benchmark.choice import choose, chosen_settings
from constrained_adapters.benchmark.once import SayOnce
from constrained_adapters.benchmark.plan import Plan, Setting
from constrained_adapters.benchmark.store import Store
from constrained_adapters.benchmark.tables import write_tables
from constrained_adapters.config.yaml_file import with_absolute_paths
from constrained_adapters.errors import (
    AssetError,
    ConstrainedAdaptersError,
    DataError,
    MissingExtraError,
    ModelError,
    WorkspaceError,
)

if TYPE_CHECKING:
    from constrained_adapters.training.observer import RunObserver

WhichPhase = Literal["sweep", "test", "tables", "all"]

STOPS = (AssetError, DataError, MissingExtraError, ModelError, WorkspaceError)
"""What no other cell would fare better with: no data, no base, no disk. The benchmark stops there."""


@dataclass(frozen=True)
class Options:
    """How a plan is run.

    Args:
        phase: ``"all"``: one after the other.
        restriction: Which cells.
        time_limit_minutes: After so long no other cell is begun.
        keep_work: Keep the workspaces of finished cells: adapters, memories, ledgers.
        retry: Run cells again that failed before.
    """

    phase: WhichPhase = "all"
    restriction: Restriction = field(default_factory=Restriction)
    time_limit_minutes: float | None = None
    keep_work: bool = False
    retry: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Args:
        num_done: Cells that stand now, of those that were asked for.
        num_cells: Cells that were asked for and whose setting is known.
        failed: Keys of those that failed, now or before, with the reason.
        not_chosen: Methods that wait for the rest of their sweep.
        out_of_time: Whether the time limit ended it.
        table: The Markdown table, where it was written.
    """

    num_done: int
    num_cells: int
    failed: dict[str, str]
    not_chosen: list[str]
    out_of_time: bool
    table: Path | None


def run_benchmark(plan: Plan, options: Options, observer: RunObserver) -> Outcome:
    """Do what is not done yet of the phases that are wanted.

    Raises:
        UnknownNameError: The restriction names what the plan does not have.
        WorkspaceError: The plan changed under finished cells; no setting is chosen for the test; another
            process runs this benchmark; the disk is full.
        ConstrainedAdaptersError: The base or the data cannot be read.
    """
    options.restriction.check(plan)
    store = Store(plan.home)
    with store.lock():
        store.refuse_changed([*sweep_cells(plan), *table_cells(plan, chosen_settings(plan, store))])
        runner = _Runner(plan, store, options, SayOnce(observer))
        if options.phase in ("sweep", "all"):
            runner.run(sweep_cells(plan))
            choose(plan, store)
        if options.phase in ("test", "all"):
            cells = table_cells(plan, chosen_settings(plan, store))
            if options.phase == "test" and not any(map(options.restriction.takes, cells)):
                raise WorkspaceError(
                    "no method has its setting yet",
                    got=f"no finished sweep in {store.home}",
                    hint="--phase sweep first, or no --phase at all",
                )
            store.refuse_changed(cells)  # the choice may have changed just now
            runner.run(cells)
        table = write_tables(plan, store) if options.phase in ("tables", "all") else None
        return _outcome(plan, store, options, runner.out_of_time, table)


def list_cells(plan: Plan, options: Options) -> list[str]:
    """One line for each cell that the options ask for, and their number; runs and writes nothing.

    Raises:
        UnknownNameError: The restriction names what the plan does not have.
        WorkspaceError: A file of the benchmark is damaged.
    """
    options.restriction.check(plan)
    store = Store(plan.home)
    chosen = chosen_settings(plan, store)
    to_be_chosen = {method.name: method.swept_settings()[0] for method in plan.methods}
    cells = _wanted(plan, options, {**to_be_chosen, **chosen})
    failures = store.failures()
    lines, counts = [], dict.fromkeys(("done", "failed", "to do"), 0)
    for cell in cells:
        state = "done" if store.is_done(cell) else "failed" if cell.key in failures else "to do"
        counts[state] += 1
        known = cell.phase == "sweep" or cell.method in chosen
        lines.append(f"{state:<7}{describe(cell, setting_known=known)}")
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [*lines, f"{len(cells)} cells" + (f": {shown}" if shown else "")]


def _wanted(plan: Plan, options: Options, settings: Mapping[str, Setting]) -> list[Cell]:
    cells = sweep_cells(plan) if options.phase in ("sweep", "all") else []
    if options.phase != "sweep":
        cells += table_cells(plan, settings)
    return [cell for cell in cells if options.restriction.takes(cell)]


def _outcome(plan: Plan, store: Store, options: Options, out_of_time: bool, table: Path | None) -> Outcome:
    chosen = chosen_settings(plan, store)
    cells = _wanted(plan, options, chosen)
    failures = store.failures()
    waiting = [
        m.name for m in plan.methods if m.name not in chosen and options.restriction.takes_method(m.name)
    ]
    return Outcome(
        num_done=sum(store.is_done(cell) for cell in cells),
        num_cells=len(cells),
        failed={cell.key: failures[cell.key]["reason"] for cell in cells if cell.key in failures},
        not_chosen=waiting if options.phase != "sweep" else [],
        out_of_time=out_of_time,
        table=table,
    )


class _Runner:
    """Runs cells until the time is over."""

    def __init__(self, plan: Plan, store: Store, options: Options, observer: RunObserver) -> None:
        self._plan, self._store, self._options, self._observer = plan, store, options, observer
        self._begun = time.monotonic()
        self.out_of_time = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run the cells that are wanted and neither done nor failed."""
        wanted = [cell for cell in cells if self._options.restriction.takes(cell)]
        failures = self._store.failures()
        open_cells = [
            cell
            for cell in wanted
            if not self._store.is_done(cell) and (self._options.retry or cell.key not in failures)
        ]
        begun = time.monotonic()
        for index, cell in enumerate(open_cells):
            limit = self._options.time_limit_minutes
            if limit is not None and time.monotonic() - self._begun >= 60 * limit:
                self.out_of_time = True
                return
            # Cells differ in cost, so this is a guess, and said as one.
            left = (time.monotonic() - begun) / index * (len(open_cells) - index) if index else None
            guess = "" if left is None else f", about {left / 60:.0f} min left"
            self._observer.message(
                f"{cell.phase} {index + 1} of {len(open_cells)}: {cell.key.partition('/')[2]}{guess}"
            )
            self._run_one(cell)

    def _run_one(self, cell: Cell) -> None:
        from constrained_adapters.benchmark.shared import keep, lend
        from constrained_adapters.training.run import run_config
        from constrained_adapters.workspace import Workspace

        config = with_absolute_paths(cell.config.model_copy(deep=True), self._plan.folder)
        config.output = self._work_folder(cell)
        config.diagnosis = "off"  # the same data in every cell
        workspace = Workspace(config.output / cell.method)
        shared = self._store.work / "shared"
        lend(cell.config, workspace, shared)
        forget_peak_memory()
        try:
            self._store.write(cell, run_config(config, observer=self._observer))
        except STOPS:
            raise
        except Exception as error:
            self._write_failure(cell, error)
        finally:
            keep(cell.config, workspace, shared)
        if not self._options.keep_work:
            shutil.rmtree(config.output, ignore_errors=True)

    def _work_folder(self, cell: Cell) -> Path:
        """A folder of this cell with these settings; what it left with other settings goes."""
        stem = cell.key.replace("/", "--")
        content = json.dumps(cell.config.model_dump(mode="json"), sort_keys=True)
        folder = self._store.work / f"{stem}--{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        for other in self._store.work.iterdir():
            if other.name.rpartition("--")[0] == stem and other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    def _write_failure(self, cell: Cell, error: Exception) -> None:
        reason = _one_line(error)
        failure = {
            "error": type(error).__name__,
            "reason": reason,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._store.write_failures({**self._store.failures(), cell.key: failure})
        self._observer.message(f"{cell.key} failed: {reason}")


def _one_line(error: Exception) -> str:
    if isinstance(error, ConstrainedAdaptersError):
        return error.what + (f" ({error.got})" if error.got else "")
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def forget_peak_memory() -> None:
    """Let the peak that a run reports be its own, not that of a heavier cell before it in this process."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return  # a kernel without it: the peak is that of the process so far
