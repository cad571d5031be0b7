"""Reads from a run's folder where it stands. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from constrained_adapters.config.yaml_file import read_config
from constrained_adapters.errors import WorkspaceError
from constrained_adapters.workspace import Workspace, finished_domains


@dataclass(frozen=True)
class MethodStatus:
    """Where one method stands.

    Args:
        name: The method's name.
        learnt: Domains that are trained and remembered, and were scored.
        state: ``done``, ``not begun``, or what is being or was last done.
        accuracy: Mean exact match on the domains learnt so far, 0 … 1.
        changed: Date of the last ledger entry.
    """

    name: str
    learnt: tuple[str, ...]
    state: str
    accuracy: float | None
    changed: str | None


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands; ``command`` goes on with it, None where nothing is left or it is running."""

    title: str
    folder: Path
    domains: tuple[str, ...]
    methods: tuple[MethodStatus, ...]
    report: Path | None
    command: str | None


def read_status(folder: Path) -> RunStatus:
    """Read a run's folder; nothing is written.

    Raises:
        WorkspaceError: There is no run in this folder, or its ledger is damaged.
        ConfigError: Its crma.yaml is damaged.
    """
    settings = folder / "crma.yaml"
    if not settings.exists():
        raise WorkspaceError(
            "there is no run here",
            got=f"no {settings}",
            expected="a folder that 'crma run' wrote",
            hint="crma status DIR",
        )
    config = read_config(settings)
    domains = tuple(domain.name for domain in config.domains)
    workspaces = [(method.name, Workspace(folder / method.name)) for method in config.methods]
    methods = tuple(_method_status(name, workspace, domains) for name, workspace in workspaces)
    running = any(workspace.running_pid() is not None for _, workspace in workspaces)
    report = folder / "report.html"
    finished = report.exists() and all(method.state == "done" for method in methods)
    command = None if running or finished else f"crma run {settings}"
    return RunStatus(config.title, folder, domains, methods, report if report.exists() else None, command)


def _method_status(name: str, workspace: Workspace, domains: tuple[str, ...]) -> MethodStatus:
    rows = workspace.rows()
    num_scored = min(rows[-1], len(domains)) if rows else 0
    # Where a domain was removed, those after it are learnt and are scored again by the next run.
    finished = tuple(domain for domain in finished_domains(workspace) if domain in domains)
    learnt = max(domains[:num_scored], finished, key=len)
    entries = workspace.ledger.entries()
    return MethodStatus(
        name=name,
        learnt=learnt,
        state=_state(workspace, domains, num_scored, len(learnt)),
        accuracy=_accuracy(workspace, domains[:num_scored]) if num_scored else None,
        changed=str(entries[-1].get("date", "")) or None if entries else None,
    )


def _state(workspace: Workspace, domains: tuple[str, ...], num_scored: int, num_learnt: int) -> str:
    if num_scored == len(domains):
        return "done"
    if num_scored < num_learnt and workspace.running_pid() is None:
        return f"to be scored again from {domains[num_scored]} on"
    step = max(
        (
            int(p.name.rpartition("-")[2])
            for p in workspace.checkpoints(domains[num_scored]).glob("checkpoint-*[0-9]")
        ),
        default=None,
    )
    where = f"at {domains[num_scored]}" + ("" if step is None else f", step {step} saved")
    pid = workspace.running_pid()
    if pid is not None:
        return f"running (process {pid}) {where}"
    return f"stopped {where}" if workspace.root.exists() else "not begun"


def _accuracy(workspace: Workspace, learnt: tuple[str, ...]) -> float | None:
    scores = workspace.read_evaluation(workspace.rows()[-1]).get("scores", {})
    found = [scores[name]["exact_match"] for name in learnt if "exact_match" in scores.get(name, {})]
    return sum(found) / len(found) if found else None
