"""Domains undone: a run gone back to the state after an earlier domain, or one domain left out of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from constrained_adapters.config.run import MethodConfig, RunConfig
from constrained_adapters.config.yaml_file import dump_config, read_config
from constrained_adapters.errors import AdapterStateError, UnknownNameError
from constrained_adapters.recipes import SHARED, Answers, find_recipe
from constrained_adapters.routing.build import OWN_TEXT_FILE
from constrained_adapters.routing.preferences import PREFERENCES_FILE
from constrained_adapters.training.adapters import BASE_MEMORY
from constrained_adapters.training.before import FILE as DIAGNOSIS_FILE
from constrained_adapters.training.lessons import GOLDEN_FILE
from constrained_adapters.workspace import (
    Undo,
    Workspace,
    atomic_write_text,
    carry_out,
    find_workspaces,
    finished_domains,
    interrupted,
    undo_of,
)

OF_THE_BASE = frozenset({BASE_MEMORY, GOLDEN_FILE, OWN_TEXT_FILE, PREFERENCES_FILE, SHARED})
"""What a method's memory folder holds that no undone domain has part in. All else there (sums of Fishers,
stored gradients, kept and written examples) is of several domains in one file: it goes, and the next run
makes it again from the domains that stand, each in the state in which it was learnt."""

Agree = Callable[[Sequence[Undo]], bool]
"""Told what will go; nothing does where it answers False."""


def rollback(
    run: str | Path, to: str | None = None, *, method: str | None = None, agree: Agree | None = None
) -> list[Undo]:
    """Go back to the state after a domain: what was learnt later is deleted.

    Gone are the later domains' adapters, checkpoints, trackers and rows of R, what the memories of a method
    hold of several domains in one file, and the results and the report that were made of them. The next
    ``crma run`` makes again what is missing, and goes on with the same domains or with others. Methods that
    train one state on and keep only the last of it (full, ewc, osf …), and those that learn all domains in
    one turn, begin anew then; what the base alone gave stays. An interrupted rollback is completed by the
    next call, or by the next run.

    Args:
        run: Its folder, or that of one of its methods.
        to: The last domain that stays; left out: the one before the last that is learnt.
        method: Which of the run's methods; left out: all of them.
        agree: Asked before anything is deleted; left out, it is done at once.

    Returns:
        What went, a method each; empty where there was nothing to undo, or it was not agreed to.

    Raises:
        WorkspaceError: There is no run here, another process is writing it, or it cannot be written.
        UnknownNameError: The run has no such domain or method.
        AdapterStateError: The domain is not learnt, or there is none before the last one.
    """
    with _locked(run, method) as (workspaces, completed):
        if completed and to is None:
            return completed
        last = _target(workspaces, to, run)
        undos = {each: _rollback_of(each, last) for each in workspaces if last in _order(each)}
        return completed + _done(undos, None, agree)


def remove(
    domain: str, run: str | Path, *, method: str | None = None, agree: Agree | None = None
) -> list[Undo]:
    """Leave one domain out of a run, on purpose: its adapter, its memory and its examples are deleted.

    Only where each domain has an adapter that the others can do without. Nothing is trained for it: the next
    ``crma run``, whose crma.yaml must have lost the domain too, measures the model as it stands. What later
    domains learnt while this adapter was active stays as they learnt it.

    Args:
        domain: Its name.
        run: The folder of a run, or of one of its methods.
        method: Which of the run's methods; left out: all of them.
        agree: Asked before anything is deleted; left out, it is done at once.

    Returns:
        What went, a method each; empty where it was not agreed to.

    Raises:
        WorkspaceError: There is no run here, another process is writing it, or it cannot be written.
        UnknownNameError: The run has no such domain or method.
        AdapterStateError: It is the only domain, or a method has no adapter for it that could be left out.
    """
    name = unicodedata.normalize("NFC", domain)
    with _locked(run, method) as (workspaces, completed):
        having = [each for each in workspaces if name in _order(each)]
        if not having:
            if any(name in undo.removed for undo in completed):
                return completed
            raise _unknown(domain, workspaces, run)
        for each in having:
            _check_removable(each, name, run)
        return completed + _done({each: _removal_of(each, name) for each in having}, name, agree)


@contextmanager
def _locked(run: str | Path, method: str | None) -> Iterator[tuple[list[Workspace], list[Undo]]]:
    """All workspaces that are meant, and what was interrupted in them and is completed now."""
    workspaces = find_workspaces(run, method)
    begun = [undo for each in workspaces if (undo := interrupted(each)) is not None]
    with ExitStack() as stack:
        for each in workspaces:
            stack.enter_context(each.lock())
        yield [each for each in workspaces if each.settings_file.is_file()], begun


def _done(undos: Mapping[Workspace, Undo | None], forgotten: str | None, agree: Agree | None) -> list[Undo]:
    """Carry out those that there are, once they are agreed to."""
    wanted = {workspace: undo for workspace, undo in undos.items() if undo is not None}
    if not wanted or (agree is not None and not agree(list(wanted.values()))):
        return []
    for run in dict.fromkeys(each.root.absolute().parent for each in wanted if _is_of_run(each)):
        # Made of what goes; first, so that an interruption leaves none of it behind.
        for name in ("results.json", "report.html", *([DIAGNOSIS_FILE] if forgotten else [])):
            (run / name).unlink(missing_ok=True)
        if forgotten is not None:
            _forget_in_file(run, forgotten, [each.root.absolute() for each in wanted])
    for workspace, undo in wanted.items():
        carry_out(workspace, undo)
    return list(wanted.values())


# -- which domains ------------------------------------------------------------------------------


def _is_of_run(workspace: Workspace) -> bool:
    """Whether ``crma run`` made it; a folder of subjects learnt one by one has no list of domains."""
    return "domains" in workspace.read_settings()


def _order(workspace: Workspace) -> list[str]:
    """The domains of a method, learnt or not, in the order in which they are."""
    if _is_of_run(workspace):
        return [str(each["name"]) for each in workspace.read_settings()["domains"]]
    begun = sorted(path.name for path in (workspace.root / "adapters").glob("[!.]*") if path.is_dir())
    return list(dict.fromkeys([*finished_domains(workspace), *begun]))


def _target(workspaces: Sequence[Workspace], to: str | None, run: str | Path) -> str:
    learnt = max((finished_domains(each) for each in workspaces), key=len, default=())
    if to is None:
        if len(learnt) < 2:
            raise AdapterStateError(
                "there is no earlier domain to go back to",
                got=f"learnt: {', '.join(learnt) or '(none)'} ({run})",
                expected="two learnt domains or more",
                hint="crma run crma.yaml --fresh begins anew; --to DOMAIN drops what is half learnt after it",
            )
        return learnt[-2]
    name = unicodedata.normalize("NFC", to)
    if not any(name in _order(each) for each in workspaces):
        raise _unknown(to, workspaces, run)
    if not any(name in finished_domains(each) for each in workspaces):
        raise AdapterStateError(
            f"the domain {to!r} is not learnt, so there is no state after it",
            got=f"learnt: {', '.join(learnt) or '(none)'} ({run})",
            expected="a learnt domain",
            hint=f"--to {learnt[-1]}" if learnt else "crma run goes on with the run",
        )
    return name


def _unknown(domain: str, workspaces: Sequence[Workspace], run: str | Path) -> UnknownNameError:
    known = dict.fromkeys(name for each in workspaces for name in _order(each))
    return UnknownNameError.of("domain", domain, known, where=f"run {run}")


# -- what goes ----------------------------------------------------------------------------------


def _rollback_of(workspace: Workspace, last: str) -> Undo | None:
    """What goes with the domains after ``last``; None where there are none."""
    order = _order(workspace)
    place = order.index(last) + 1
    later = order[place:]
    if not later:
        return None
    if not _recipe(workspace)[0].resizable:
        stays, later = order[:place], order
        rows: Sequence[int] = workspace.rows()
        learnt = [name for name in finished_domains(workspace) if name in stays]
    else:
        learnt, rows = [], [row for row in workspace.rows() if row > place]
    return undo_of(workspace, "rollback", later, _traces(workspace, later, rows), learnt)


def _removal_of(workspace: Workspace, domain: str) -> Undo:
    place = _order(workspace).index(domain) + 1
    paths = _traces(workspace, [domain], [row for row in workspace.rows() if row >= place])
    # A domain that is half learnt is so on top of the removed one.
    halves = sorted((workspace.root / "checkpoints").glob("[!.]*"))
    return undo_of(workspace, "remove", [domain], list(dict.fromkeys([*paths, *halves])))


def _traces(workspace: Workspace, domains: Sequence[str], rows: Sequence[int]) -> list[Path]:
    """All that is of these domains, the last first, and what is of several in one file."""
    shared = [path for path in sorted(workspace.memory.glob("*")) if path.name not in OF_THE_BASE]
    own = [
        place(name)
        for name in reversed(domains)
        for place in (workspace.adapter, workspace.checkpoints, workspace.trackers)
    ]
    return [*shared, *(workspace.evaluation(row) for row in reversed(rows)), *own]


# -- what can be left out -----------------------------------------------------------------------


def _recipe(workspace: Workspace) -> tuple[Answers, Mapping[str, Any]]:
    method = workspace.read_settings().get("method", {})
    return find_recipe(MethodConfig(recipe=str(method.get("recipe", "crma")))), method


def _check_removable(workspace: Workspace, domain: str, run: str | Path) -> None:
    order = _order(workspace)
    recipe, method = _recipe(workspace)
    if order == [domain]:
        raise AdapterStateError(
            f"{domain!r} is the only domain of the run",
            got=str(workspace.root),
            expected="a domain beside others",
            hint="crma run crma.yaml --fresh, or remove the folder",
        )
    if domain not in finished_domains(workspace) and not workspace.adapter(domain).is_dir():
        return  # nothing stands on what is not learnt
    first = order[0] == domain
    reason = _why_inseparable(recipe, first and method.get("shared_rank") != 0)
    if reason is not None:
        before = "" if first else f"crma rollback {run} --to {order[order.index(domain) - 1]}; then "
        again = "crma run --fresh" if first else "crma run"
        raise AdapterStateError(
            f"{domain!r} cannot be left out: {reason}",
            got=f"method {workspace.root.name!r}, recipe {recipe.name!r}",
            expected="a method that gives each domain an adapter of its own; --method NAME chooses one",
            hint=f"{before}{again} with a crma.yaml without it",
        )


def _why_inseparable(recipe: Answers, shared: bool) -> str | None:
    """Why what one domain taught cannot be taken out of the rest; None where it can."""
    if recipe.in_one_turn:
        return "all domains were learnt together"
    if recipe.trained == "columns":
        return "the columns of later domains read its own"
    if recipe.trains_on or not recipe.resizable:
        return "later domains trained on the same weights"
    if recipe.shared and shared:
        return "the shared adapter was learnt with it"
    return None


def _forget_in_file(run: Path, domain: str, undone: Sequence[Path]) -> None:
    """Take a domain out of the settings that a run wrote down, unless another of its methods has it still."""
    file = run / "crma.yaml"
    others = [Workspace(path.parent) for path in run.glob("*/settings.json") if path.parent not in undone]
    if not file.is_file() or any(domain in _order(each) for each in others):
        return
    config = read_config(file)
    domains = [each for each in config.domains if each.name != domain]
    methods = [_without(each, domain) for each in config.methods]
    changed: RunConfig = config.model_copy(update={"domains": domains, "methods": methods})
    atomic_write_text(file, dump_config(changed))


def _without(method: MethodConfig, domain: str) -> MethodConfig:
    named = {name: getattr(method, name) for name in ("domain_layers", "domain_ranks")}
    left = {
        name: {key: value for key, value in table.items() if key != domain} or None
        for name, table in named.items()
        if table is not None
    }
    return method.model_copy(update=left)
