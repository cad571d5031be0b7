"""Settings are chosen on the validation split, one for each method, and written down with their reasons.

The rule: the lowest final loss, which is the mean over the domains of the sweep of the loss after the
last of them (nats per answer token). Loss moves where exact match stands still, and the last row of R
holds both what was learned and what was kept. Equal losses are told apart by exact match, then by the
order in the plan. A setting whose run failed, or whose loss is not finite, is never chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from constrained_adapters.benchmark.cells import Cell, methods_of, sweep_cells
from constrained_adapters.benchmark.plan import Plan, Setting
from constrained_adapters.benchmark.store import Store, read_json
from constrained_adapters.report.measures import row_mean
from constrained_adapters.workspace import atomic_write_json

RULE = "lowest mean final loss on the validation split; ties by exact match, then by the plan's order"


def choose(plan: Plan, store: Store) -> None:
    """Write ``chosen.json``: the setting of each method whose sweep is finished, and what it rests on."""
    methods: dict[str, Any] = {}
    cells = sweep_cells(plan)
    failures = store.failures()
    for name in methods_of(cells):
        own = [cell for cell in cells if cell.method == name]
        if all(store.is_done(cell) or cell.key in failures for cell in own):
            candidates = [_candidate(cell, store) for cell in own]
            best = _best(candidates)
            methods[name] = {"setting": best, "candidates": candidates}
    known = read_json(store.chosen_file)
    content = {"rule": RULE, "methods": methods, **_circumstances(cells)}
    if methods and content != known:
        atomic_write_json(store.chosen_file, content)


def chosen_settings(plan: Plan, store: Store) -> dict[str, Setting]:
    """The setting of each method: the chosen one, or the only one that it has.

    Methods whose sweep is not finished, or was made with other values than the plan has now, and
    methods of which every setting failed, are left out.

    Raises:
        WorkspaceError: ``chosen.json`` is damaged.
    """
    written = (read_json(store.chosen_file) or {}).get("methods", {})
    chosen: dict[str, Setting] = {}
    for method in plan.methods:
        swept = method.swept_settings()
        if len(swept) == 1:
            chosen[method.name] = swept[0]
            continue
        entry = written.get(method.name)
        tried = [candidate["setting"] for candidate in entry["candidates"]] if entry else []
        if entry and tried == swept and entry["setting"] is not None:
            chosen[method.name] = entry["setting"]
    return chosen


def _circumstances(cells: Sequence[Cell]) -> dict[str, Any]:
    if not cells:
        return {}
    domains = [domain.name for domain in cells[0].config.domains]
    return {"split": "validation", "domains": domains, "seed": cells[0].seed}


def _candidate(cell: Cell, store: Store) -> dict[str, Any]:
    if not store.is_done(cell):
        return {"setting": cell.setting, "final_loss_nats": None, "exact_match": None, "failed": True}
    result = store.read(cell).result
    last = len(result.domains)
    return {
        "setting": cell.setting,
        "final_loss_nats": row_mean(result, "loss", last),
        "exact_match": row_mean(result, "exact_match", last),
    }


def _best(candidates: Sequence[dict[str, Any]]) -> Setting | None:
    """The winner by the rule; None where nothing finished with a finite loss."""
    able = [candidate for candidate in candidates if candidate["final_loss_nats"] is not None]
    if not able:
        return None
    best: Setting = min(able, key=_rank)["setting"]
    return best


def _rank(candidate: dict[str, Any]) -> tuple[float, float]:
    exact = candidate["exact_match"]
    return candidate["final_loss_nats"], -exact if exact is not None else math.inf
