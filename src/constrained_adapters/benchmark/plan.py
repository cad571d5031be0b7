"""The plan of a benchmark: which methods, with which settings, on which orders and seeds.

A plan is a YAML file, read as strictly as a ``crma.yaml``; ``base``, ``adapter``, ``training``,
``evaluation`` and ``domains`` are the sections of :class:`constrained_adapters.config.run.RunConfig`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from constrained_adapters.config.base import Settings
from constrained_adapters.config.errors import Location, config_error
from constrained_adapters.config.names import DomainName, check_name
from constrained_adapters.config.run import (
    AdapterConfig,
    BaseConfig,
    DomainConfig,
    EvaluationConfig,
    MethodConfig,
    RunConfig,
    TrainingConfig,
)
from constrained_adapters.config.yaml_file import read_settings
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes import check_methods, recipe_names

Setting = dict[str, Any]
"""Values of the swept settings of one cell, by the setting's name; empty where nothing is swept."""

Place = Callable[[Location], str]
"""Says where a setting stands: its file and line, from its location in the plan."""

_Swept = Annotated[list[Any], Field(min_length=1)]


class SweepConfig(Settings):
    """How the settings of each method are chosen: by runs on the first order and the first seed.

    They are scored on the validation split, and the lowest final loss wins
    (:mod:`constrained_adapters.benchmark.choice`).
    """

    domains: int | None = Field(default=None, ge=1)
    """Only the first so many domains of the order; None: all."""


class PlanMethod(Settings):
    """One method: its recipe, what is the same in all its cells, and what is swept."""

    recipe: str
    name: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of :class:`~constrained_adapters.config.run.MethodConfig` that hold in every cell."""
    learning_rates: list[float] | None = Field(default=None, min_length=1)
    sweep: dict[str, _Swept] = Field(default_factory=dict)
    """Other settings of the method, each with the values that are tried, all combinations."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _default_name(self) -> PlanMethod:
        object.__setattr__(self, "name", check_name(self.name or self.recipe))
        return self

    def swept_settings(self) -> list[Setting]:
        """Every combination of the swept values, the learning rate as the slowest; never empty."""
        rates = {} if self.learning_rates is None else {"learning_rate": self.learning_rates}
        axes = {**rates, **self.sweep}
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]

    def method_config(self, setting: Setting) -> MethodConfig:
        """The method of a run with this setting.

        Raises:
            pydantic.ValidationError: A setting that no method has, or a value out of range.
        """
        fields = {"recipe": self.recipe, "name": self.name, **self.settings, **setting}
        return MethodConfig.model_validate(fields, strict=True)


class Plan(Settings):
    """A whole plan; paths are as they are written, relative to :attr:`folder`."""

    title: str = "Benchmark"
    output: Path = Path()
    """Where cells, tables and workspaces go; the plan's own folder where it is left out."""
    base: BaseConfig = Field(default_factory=BaseConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig(num_samples=0))
    domains: list[DomainConfig] = Field(min_length=1)
    orders: list[list[DomainName]] = Field(min_length=1)
    """The orders in which the domains are taught; each has every domain once."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    methods: list[PlanMethod] = Field(min_length=1)
    sweep: SweepConfig = Field(default_factory=SweepConfig)

    _folder: Path = Path()

    @property
    def folder(self) -> Path:
        """The folder of the plan's file, absolute."""
        return self._folder

    @property
    def home(self) -> Path:
        """Where cells and tables go, absolute."""
        return (self._folder / self.output.expanduser()).resolve()

    def run_config(
        self,
        method: PlanMethod,
        setting: Setting,
        names: Sequence[str],
        *,
        seed: int,
        split: Literal["validation", "test"],
    ) -> RunConfig:
        """The run of one method over domains in an order, with paths as they are written in the plan.

        Raises:
            pydantic.ValidationError: A setting that no method has, or a value out of range.
        """
        config = RunConfig(
            seed=seed,
            base=self.base,
            adapter=self.adapter,
            training=self.training,
            methods=[method.method_config(setting)],
            domains=[domain for name in names for domain in self.domains if domain.name == name],
            evaluation=self.evaluation.model_copy(update={"split": split}),
        )
        return config.model_copy(deep=True)  # paths are made absolute in place when it runs


def read_plan(path: str | Path) -> Plan:
    """Read a plan and check all that can be known before anything is run.

    Raises:
        ConfigError: No such file, no YAML, an unknown key, a value out of range, an order without
            one of the domains, a name that is there twice: with file and line.
        UnknownNameError: A recipe, or a domain in an order, that there is not.
    """
    path = Path(path)
    if not path.is_file():
        hint = str(path / "plan.yaml") if (path / "plan.yaml").is_file() else None
        raise ConfigError("there is no such plan", got=str(path), expected="a plan.yaml", hint=hint)
    plan, where = read_settings(path, Plan)
    plan._folder = path.resolve().parent
    check_plan(plan, where)
    return plan


def check_plan(plan: Plan, where: Place) -> None:
    """Check what the fields alone do not say.

    Args:
        plan: As it was read.
        where: Finds the place of a setting.

    Raises:
        ConfigError: An order without one of the domains or with one twice; a name, a seed, an order
            or a swept value that is there twice; a setting that its recipe does not have.
        UnknownNameError: A recipe, or a domain in an order, that there is not.
    """
    if plan.evaluation.split != "test":
        raise ConfigError(
            "the split is not a plan's to choose: the sweep takes validation, the rest takes test",
            got=f"evaluation.split = {plan.evaluation.split!r} ({where(('evaluation', 'split'))})",
            hint="leave it out",
        )
    names = [domain.name for domain in plan.domains]
    _refuse_twice([name.casefold() for name in names], "domain", ("domains",), where)
    for index, order in enumerate(plan.orders):
        _check_order(order, names, ("orders", index), where)
    _refuse_twice([" → ".join(order) for order in plan.orders], "order", ("orders",), where)
    _refuse_twice(plan.seeds, "seed", ("seeds",), where)
    if plan.sweep.domains is not None and plan.sweep.domains > len(names):
        raise ConfigError(
            "the sweep has more domains than the plan",
            got=f"sweep.domains = {plan.sweep.domains} ({where(('sweep', 'domains'))})",
            expected=f"1 … {len(names)}",
        )
    for index, method in enumerate(plan.methods):
        _check_method(plan, method, ("methods", index), where)
    _refuse_twice([method.name.casefold() for method in plan.methods], "method", ("methods",), where)


def _check_order(order: Sequence[str], names: Sequence[str], location: Location, where: Place) -> None:
    for name in order:
        if name not in names:
            raise UnknownNameError.of("domain", name, names, where=f"orders, {where(location)}")
    missing = [name for name in names if name not in order]
    if missing or len(order) != len(names):
        problem = f"lacks {', '.join(missing)}" if missing else "has a domain twice"
        raise ConfigError(
            f"an order {problem}",
            got=f"{' → '.join(order) or 'no domain'} ({where(location)})",
            expected=f"each of {', '.join(names)} once",
        )


def _check_method(plan: Plan, method: PlanMethod, location: Location, where: Place) -> None:
    recipe_names(method.recipe, where=f"methods, {where(location)}")
    for key in ("recipe", "name"):
        if key in method.settings or key in method.sweep:
            raise ConfigError(
                f"{key!r} is no setting of a method",
                got=f"methods: {method.name} ({where(location)})",
                hint=f"{key!r} one level up, beside 'settings'",
            )
    rates = [] if method.learning_rates is None else ["learning_rate"]
    given = [*method.settings, *method.sweep, *rates]
    twice = sorted(key for key in set(given) if given.count(key) > 1)
    if twice:
        raise ConfigError(
            f"a method has the setting {twice[0]!r} twice",
            got=f"methods: {method.name} ({where(location)})",
            expected="each setting once: fixed in 'settings', or with its values in 'sweep'",
        )

    def place(inner: Location) -> str:
        for section in ("settings", "sweep"):
            if inner and inner[0] in getattr(method, section):
                return where((*location, section, inner[0]))
        return where((*location, "learning_rates"))

    swept = method.swept_settings()
    for setting in swept:
        if swept.count(setting) > 1:
            raise ConfigError(
                "a swept value is there twice", got=f"methods: {method.name} ({where(location)})"
            )
        try:
            config = plan.run_config(method, setting, plan.orders[0], seed=plan.seeds[0], split="test")
        except ValidationError as error:
            refused = config_error(error, MethodConfig, where=place)
            raise refused from None
        check_methods(config)


def _refuse_twice(values: Sequence[Any], kind: str, location: Location, where: Place) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"the same {kind} is there twice", got=f"{value} ({where((*location, index))})")
