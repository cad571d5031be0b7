"""Lines for pipes, bars for terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from constrained_adapters.cli import progress
from constrained_adapters.cli.progress import BarObserver, LineObserver, show_progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def act(observer, clock) -> None:
    observer.started(2, ["law", "数学"])
    observer.message("device: cpu, because there is no GPU")
    observer.stage("crma", "law", "training")
    for step in range(1, 5):
        clock.now += 10
        observer.steps("crma", "law", step, 4, 2.5 / step)
    observer.row("crma", 1, {"law": {"exact_match": 0.5, "loss": 1.0}, "数学": {"exact_match": 0.0}})


def test_a_pipe_gets_lines_now_and_then(capsys, clock):
    with show_progress() as observer:
        act(observer, clock)
    assert capsys.readouterr().err.splitlines() == [
        "2 methods, 2 domains: law → 数学",
        "device: cpu, because there is no GPU",
        "crma · law: training",
        "crma · law: step 2 of 4, loss 1.250, 20 s left",
        "crma · law: step 4 of 4, loss 0.625, 0 s left",
        "crma · law: after 1 domain: law 50 %, 数学 0 %",
    ]


def test_quiet_keeps_to_finished_domains(capsys, clock):
    with show_progress(quiet=True) as observer:
        act(observer, clock)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "crma · law: after 1 domain: law 50 %, 数学 0 %"


def test_rows_without_exact_match_show_the_loss(capsys):
    observer = LineObserver()
    observer.row("lora", 0, {"books": {"loss": 2.25}})
    assert capsys.readouterr().err == "lora: before training: books 2.250 nats\n"


def test_a_terminal_gets_bars_that_know_where_a_stopped_run_goes_on(clock):
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=80)) as bars:
        observer = BarObserver(bars)
        act(observer, clock)
        whole, now = bars.tasks
        assert (now.completed, now.total) == (4, 4)
        assert now.description == "crma · law  loss 0.625"
        assert (whole.completed, whole.total) == (1, 4)
        observer.stage("lora", "数学", "training")  # its first domain stands from an earlier call
        assert whole.completed == 2
        assert (bars.tasks[1].description, bars.tasks[1].total) == ("lora · 数学: training", None)
        observer.row("lora", 2, {})
        assert whole.completed == 3
        observer.stage("lora", "law", "scoring")  # never backwards
        assert whole.completed == 3
        observer.message("[red] stays as it is")
    assert "[red] stays as it is" in screen.getvalue()
    assert "after 1 domain: law 50 %" in screen.getvalue()


def test_a_terminal_is_noticed(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with show_progress() as observer:
        assert type(observer) is BarObserver
    with show_progress(quiet=True) as observer:
        assert type(observer) is LineObserver


def test_the_next_run_of_a_benchmark_begins_its_own_bar(clock):
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, width=80)) as bars:
        observer = BarObserver(bars)
        act(observer, clock)
        observer.started(1, ["law", "数学", "Право"])
        whole = next(task for task in bars.tasks if task.description == "whole run")
        assert len(bars.tasks) == 2
        assert (whole.completed, whole.total) == (0, 3)
        observer.row("crma", 1, {})
        assert whole.completed == 1
