"""The cells of a plan: one method, one order, one seed, one setting; in the order in which they run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from constrained_adapters.benchmark.plan import Plan, PlanMethod, Setting
from constrained_adapters.config.run import RunConfig
from constrained_adapters.errors import UnknownNameError

Phase = Literal["sweep", "test"]


@dataclass(frozen=True)
class Cell:
    """One run of one method.

    Args:
        phase: ``"sweep"`` scores the validation split, ``"test"`` the test split.
        method: Its name in the plan.
        order: Number of the order, from 1.
        seed: Of the run.
        setting: The swept settings that it has.
        config: The run, with paths as the plan has them and without its output.
    """

    phase: Phase
    method: str
    order: int
    seed: int
    setting: Setting
    config: RunConfig

    @property
    def key(self) -> str:
        """What its files are called: ``test/lora/order-1-seed-0``."""
        if self.phase == "sweep":
            return f"sweep/{self.method}/{setting_label(self.setting)}"
        return f"test/{self.method}/order-{self.order}-seed-{self.seed}"


@dataclass(frozen=True)
class Restriction:
    """Which part of a plan is wanted; None: all of it."""

    methods: tuple[str, ...] | None = None
    orders: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def check(self, plan: Plan) -> None:
        """Refuse what the plan does not have.

        Raises:
            UnknownNameError: A method, the number of an order, or a seed.
        """
        orders = range(1, len(plan.orders) + 1)
        for kind, wanted, known in (
            ("method", self.methods, [method.name for method in plan.methods]),
            ("order", self.orders, orders),
            ("seed", self.seeds, plan.seeds),
        ):
            for value in wanted or ():
                if value not in known:
                    raise UnknownNameError.of(kind, str(value), map(str, known), where=f"--{kind}s")

    def takes_method(self, name: str) -> bool:
        """Whether cells of this method are wanted."""
        return self.methods is None or name in self.methods

    def takes(self, cell: Cell) -> bool:
        """Whether a cell is wanted; a sweep's order and seed are the plan's own."""
        if cell.phase == "sweep":
            return self.takes_method(cell.method)
        right_order = self.orders is None or cell.order in self.orders
        return (
            self.takes_method(cell.method) and right_order and (self.seeds is None or cell.seed in self.seeds)
        )


def sweep_cells(plan: Plan) -> list[Cell]:
    """The runs that settings are chosen by, method by method; none where there is nothing to choose."""
    cells: list[Cell] = []
    for method in plan.methods:
        settings = method.swept_settings()
        if len(settings) > 1:
            cells += [_cell(plan, "sweep", method, 1, plan.seeds[0], setting) for setting in settings]
    return cells


def table_cells(plan: Plan, chosen: Mapping[str, Setting]) -> list[Cell]:
    """The runs of the table: all methods on one order and seed before the next.

    Args:
        plan: The plan.
        chosen: The setting of each method; methods that are not in it are left out.
    """
    return [
        _cell(plan, "test", method, order, seed, chosen[method.name])
        for seed in plan.seeds
        for order in range(1, len(plan.orders) + 1)
        for method in plan.methods
        if method.name in chosen
    ]


def setting_label(setting: Setting) -> str:
    """A setting as the name of a file.

    >>> setting_label({"learning_rate": 0.001, "replay_ratio": 0.1}), setting_label({})
    ('learning_rate=0.001,replay_ratio=0.1', 'default')
    """
    label = ",".join(f"{name}={value}" for name, value in setting.items())
    return re.sub(r"[^\w.,=+-]", "_", label) or "default"


def _cell(plan: Plan, phase: Phase, method: PlanMethod, order: int, seed: int, setting: Setting) -> Cell:
    names = plan.orders[order - 1]
    if phase == "sweep":
        names = names[: plan.sweep.domains]
    split: Literal["validation", "test"] = "validation" if phase == "sweep" else "test"
    config = plan.run_config(method, setting, names, seed=seed, split=split)
    return Cell(phase, method.name, order, seed, setting, config)


def describe(cell: Cell, *, setting_known: bool = True) -> str:
    """A cell in one line, for a list."""
    swept = f", {setting_label(cell.setting).replace(',', ', ')}" if cell.setting else ""
    swept = swept if setting_known else ", as the sweep chooses"
    order = " → ".join(domain.name for domain in cell.config.domains)
    return f"{cell.phase}: {cell.method}, {order}, seed {cell.seed}{swept}"


def methods_of(cells: Iterable[Cell]) -> Sequence[str]:
    """The methods that cells belong to, each once, in their order."""
    return list(dict.fromkeys(cell.method for cell in cells))
