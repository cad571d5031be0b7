"""What ``crma run`` shows while it works: bars with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 20.0
Scores = dict[str, dict[str, float]]


class LineObserver:
    """Plain lines on stderr, for pipes and log files.

    Args:
        quiet: Only finished domains and messages.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._domains: list[str] = []
        self._begun = self._shown = 0.0

    def started(self, total_methods: int, domains: list[str]) -> None:
        """The run begins."""
        self._domains = list(domains)
        methods = f"{total_methods} method{'s' * (total_methods != 1)}"
        self.write(f"{methods}, {len(domains)} domains: {' → '.join(domains)}")

    def stage(self, method: str, domain: str | None, text: str) -> None:
        """A method turns to something else."""
        self._begun = self._shown = time.monotonic()
        if not self._quiet:
            self.write(f"{_place(method, domain)}: {text}")

    def steps(self, method: str, domain: str | None, done: int, total: int, loss: float | None) -> None:
        """``done`` of ``total`` steps of the stage are made; at most one line in 20 seconds."""
        now = time.monotonic()
        if self._quiet or now - self._shown < SECONDS_BETWEEN_LINES or not done:
            return
        self._shown = now
        left = (now - self._begun) / done * (total - done)
        shown = "" if loss is None else f", loss {loss:.3f}"
        self.write(f"{_place(method, domain)}: step {done} of {total}{shown}, {left:.0f} s left")

    def row(self, method: str, row: int, scores: Scores) -> None:
        """All domains are scored after ``row`` domains."""
        learnt = self._domains[row - 1] if 0 < row <= len(self._domains) else None
        self.write(f"{_place(method, learnt)}: {_summary(row, scores)}")

    def message(self, text: str) -> None:
        """Something worth a line, such as a choice that was made and why."""
        self.write(text)

    def write(self, line: str) -> None:
        """Print one line."""
        typer.echo(line, err=True)


class BarObserver(LineObserver):
    """Two bars on a terminal: the whole run, and the stage at hand. Lines scroll above them."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._whole: TaskID | None = None
        self._now = progress.add_task("starting", total=None)
        self._finished: dict[str, float] = {}

    def started(self, total_methods: int, domains: list[str]) -> None:
        """The run begins."""
        super().started(total_methods, domains)
        if self._whole is not None:  # the next run of a benchmark
            self._progress.remove_task(self._whole)
            self._finished = {}
        self._whole = self._progress.add_task("whole run", total=total_methods * len(domains))

    def stage(self, method: str, domain: str | None, text: str) -> None:
        """A method turns to something else."""
        # A new bar, since one that has a total cannot lose it again.
        self._progress.remove_task(self._now)
        self._now = self._progress.add_task(f"{_place(method, domain)}: {text}", total=None)
        if domain in self._domains:
            self._advance(method, self._domains.index(domain))

    def steps(self, method: str, domain: str | None, done: int, total: int, loss: float | None) -> None:
        """``done`` of ``total`` steps of the stage are made."""
        shown = "" if loss is None else f"  loss {loss:.3f}"
        self._progress.update(
            self._now, completed=done, total=total, description=f"{_place(method, domain)}{shown}"
        )

    def row(self, method: str, row: int, scores: Scores) -> None:
        """All domains are scored after ``row`` domains."""
        super().row(method, row, scores)
        self._advance(method, row)

    def write(self, line: str) -> None:
        """Print one line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False)

    def _advance(self, method: str, num_domains: float) -> None:
        # Counted per method, so that a run that goes on begins where it stopped.
        self._finished[method] = max(num_domains, self._finished.get(method, 0))
        if self._whole is not None:
            self._progress.update(self._whole, completed=sum(self._finished.values()))


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[LineObserver]:
    """Give the observer that suits stderr: bars on a terminal, lines in a pipe or where ``quiet``."""
    if quiet or not sys.stderr.isatty():
        yield LineObserver(quiet=quiet)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    # Scoring stands between the steps: the estimate looks back far enough to see both.
    with Progress(
        *columns, console=Console(stderr=True), speed_estimate_period=600, transient=True
    ) as progress:
        yield BarObserver(progress)


def _place(method: str, domain: str | None) -> str:
    return method if domain is None else f"{method} · {domain}"


def _summary(row: int, scores: Scores) -> str:
    when = "before training" if row == 0 else f"after {row} domain{'s' * (row > 1)}"
    parts = [
        f"{name} {100 * score['exact_match']:.0f} %"
        for name, score in scores.items()
        if "exact_match" in score
    ]
    if not parts:
        parts = [f"{name} {score['loss']:.3f} nats" for name, score in scores.items() if "loss" in score]
    return f"{when}: {', '.join(parts)}"
