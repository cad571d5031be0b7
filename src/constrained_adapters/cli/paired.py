"""Which models ``crma compare`` puts against each other, with their scores item by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from constrained_adapters.assessment.record import load_assessment
from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.load_run import load_run
from constrained_adapters.errors import UnknownNameError
from constrained_adapters.report.measures import focus_method
from constrained_adapters.results import ItemScores, MethodResult


@dataclass(frozen=True)
class Side:
    """One model: how it is called, and its items by set (none in records older than them)."""

    label: str
    items: dict[str, ItemScores]


def find_pairs(paths: Sequence[Path], method: str | None) -> list[tuple[Side, Side]]:
    """Return what is compared.

    One run: the method that its report speaks about against each other one. One record of ``crma eval``: what
    was adapted against the base, text of no domain left out. Several of either: methods of one name in the
    first and each other, or, where there are none, what each report speaks about.

    Raises:
        WorkspaceError: A path holds neither results nor a record.
        UsageError: A method is asked for of a record of ``crma eval``.
        UnknownNameError: A run has no method of the name asked for.
    """
    found = [_sides(path, method, several=len(paths) > 1) for path in paths]
    if len(found) == 1:
        first, *rest = found[0].values()
        return [(first, other) for other in rest]
    pairs = []
    for others in found[1:]:
        common = [name for name in found[0] if name in others]
        names = [(name, name) for name in common] or [(next(iter(found[0])), next(iter(others)))]
        pairs += [(found[0][one], others[other]) for one, other in names]
    return pairs


def without_items(labels: Sequence[str]) -> str:
    """Say that there are no scores to compare pair by pair, and how to get them."""
    return (
        f"{' and '.join(labels)}: no scores of single items in this record, so no comparison pair by pair.\n"
        "  Try: crma eval --run DIR --method NAME --output FILE.json for both, crma compare A.json B.json"
    )


def _sides(path: Path, method: str | None, *, several: bool) -> dict[str, Side]:
    """By name, the one that is spoken about first."""
    if _is_assessment(path):
        refuse_idle({"--method": method}, "on a record of 'crma eval', which is of one method")
        record = load_assessment(path)
        text_of_none = {each.name for each in record.sets if each.group == "general"}
        final, *rest = reversed(record.models)
        return {
            name: Side(
                f"{path.stem}: {name}" if several else name,
                {part: items for part, items in record.items[name].items() if part not in text_of_none},
            )
            for name in ([final] if several else [final, *rest])
        }
    result, folder = load_run(path)
    methods = {each.name: each for each in result.methods}
    if method is not None and method not in methods:
        raise UnknownNameError.of("method", method, methods, where=f"run {folder}")
    focus = methods[method] if method else focus_method(result.methods)
    ordered: list[MethodResult] = [focus, *(each for each in result.methods if each is not focus)]
    if several and method:
        ordered = [focus]
    return {
        each.name: Side(f"{folder}: {each.name}" if several else each.name, each.items) for each in ordered
    }


def _is_assessment(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("kind") == "assessment"
