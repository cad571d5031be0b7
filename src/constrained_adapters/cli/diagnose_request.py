"""What ``crma diagnose`` is asked: files, a crma.yaml, or new data for a finished run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from constrained_adapters.adapters.lora import lora_layers
from constrained_adapters.cli.idle import refuse_idle
from constrained_adapters.cli.init import relative_source
from constrained_adapters.cli.run_folder import chosen_workspace
from constrained_adapters.config.errors import config_error
from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.config.names import check_domain_name
from constrained_adapters.config.run import BaseConfig, DomainConfig, MethodConfig, RunConfig
from constrained_adapters.config.yaml_file import dump_config, read_config
from constrained_adapters.data.load import load_domain
from constrained_adapters.diagnosis.advice import advice_yaml
from constrained_adapters.diagnosis.diagnose import Diagnosis, diagnose, diagnose_sequence
from constrained_adapters.diagnosis.probe import Probe
from constrained_adapters.diagnosis.risk import worst
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.errors import ConfigError, DataError, UsageError
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.models.load import load_base
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.recipes import find_recipe

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """The command line's wishes; fields as its options.

    Raises:
        UsageError: Neither new data nor a crma.yaml is given, or both are, or an option would not act.
    """

    config: Path | None
    new: str | None
    old: tuple[str, ...]
    base: str
    run: Path | None
    method: str | None
    settings: DiagnosisSettings
    seed: int

    def __post_init__(self) -> None:
        if (self.config is None) == (self.new is None):
            raise UsageError(
                "a diagnosis needs new data, or a crma.yaml whose sequence is diagnosed",
                got="neither" if self.new is None else f"--new {self.new} and {self.config}",
                hint="crma diagnose --old law.jsonl --new medicine.jsonl, or: crma diagnose crma.yaml",
            )
        if self.config is not None and self.run is not None:
            raise UsageError(
                "either a crma.yaml or a finished run",
                got=f"{self.config} and --run {self.run}",
                hint="one of them",
            )
        if self.run is None:
            refuse_idle({"--method": self.method}, "without --run")
        if self.config is not None or self.run is not None:
            other = None if self.base == "embedded" else self.base
            refuse_idle({"--base": other}, "beside a crma.yaml or --run, which name the base")
        if self.old and (self.config is not None or self.run is not None):
            raise UsageError(
                "--old has no effect beside a crma.yaml or --run, which name the old domains",
                got=f"--old {self.old[0]}",
                hint="leave it out",
            )

    def diagnose(self, tell: Tell) -> list[Diagnosis]:
        """Load what is needed and measure."""
        if self.run is not None:
            return [self._of_run(tell)]
        if self.config is not None:
            return self._of_config(tell)
        return [self._of_files(tell)]

    def advised_yaml(self, found: Sequence[Diagnosis], folder: Path) -> str:
        """A crma.yaml for ``folder`` that follows the advice on the riskiest of the domains."""
        advice = next(each.advice for each in found if each.level == worst(one.level for one in found))
        assert advice is not None, "a model was asked"
        if self.run is not None:
            return f"# The run in {self.run} with one domain more: its own settings stay.\n" + dump_config(
                self._run_config.model_copy(
                    update={"domains": [*self._run_config.domains, self._sources[-1]]}
                )
            )
        if self.config is not None:
            config = read_config(self.config)
            changes = {
                "methods": [MethodConfig(recipe=advice.recipe, **dict(advice.method))],
                "guard": GuardConfig(**dict(advice.guard)) if advice.guard else None,
            }
            reasons = "".join(f"#   - {reason}\n" for reason in advice.reasons)
            return f"# Because of:\n{reasons}\n" + dump_config(config.model_copy(update=changes))
        entries = [
            {"name": each.name, "data": relative_source(str(each.data), folder)} for each in self._sources
        ]
        return advice_yaml(
            advice,
            entries,
            base={"model": relative_source(self.base, folder)},
            title=" → ".join(each.name for each in self._sources),
        )

    @cached_property
    def _sources(self) -> list[DomainConfig]:
        """The old data's settings, then the new data's, each under a name of its own."""
        names: list[str] = []
        for source in (*self.old, self.new or ""):
            name = _name_of(source)
            names.append(name if name not in names else f"{name}_{len(names) + 1}")
        return [
            DomainConfig(name=name, data=source)
            for name, source in zip(names, (*self.old, self.new), strict=True)
        ]

    @cached_property
    def _run_config(self) -> RunConfig:
        root = chosen_workspace(self.run, self.method).root
        homes = [each for each in (root, root.parent) if (each / "crma.yaml").is_file()]
        return read_config((homes[0] if homes else root) / "crma.yaml")

    def _of_files(self, tell: Tell) -> Diagnosis:
        domains = [load_domain(each, self.seed) for each in self._sources]
        probe = self._base_probe(BaseConfig(model=self.base), {}, tell)
        *olds, new = [probe.domain(domain) for domain in domains]
        return diagnose(probe, olds, new)

    def _of_config(self, tell: Tell) -> list[Diagnosis]:
        config = read_config(self.config or "crma.yaml")
        domains = [load_domain(each, config.seed) for each in config.domains]
        length = {"max_length_tokens": config.training.max_length_tokens}
        probe = self._base_probe(config.base, length, tell)
        tell(f"measuring {len(domains)} domains, each against the earlier ones")
        return diagnose_sequence(probe, [probe.domain(domain) for domain in domains])

    def _of_run(self, tell: Tell) -> Diagnosis:
        new = load_domain(self._sources[-1], self.seed)
        config = self._run_config
        tell(f"loading the run in {self.run}")
        opened = open_workspace(chosen_workspace(self.run, self.method))
        opened.activate(opened.domains[-1])
        apart = [
            name
            for name in opened.domains
            if not set(opened.adapters[name]) <= set(opened.model.active_names)
        ]
        if apart:
            raise UsageError(
                "each domain of this run is answered by adapters of its own: a new one cannot hurt it",
                got=f"{apart[0]!r} is not answered by the adapters of {opened.domains[-1]!r}",
                hint="--method NAME of a method whose adapters act together",
            )
        layers: dict[str, Any] = dict(lora_layers(opened.model))
        length = {"max_length_tokens": config.training.max_length_tokens}
        probe = Probe(opened.model, opened.tokenizer, layers, self._sized(length), seed=self.seed)
        olds = []
        for domain in config.domains:
            if domain.name in opened.domains:
                try:
                    olds.append(probe.domain(load_domain(domain, config.seed), known=True))
                except DataError as error:
                    tell(f"{domain.name}: its data cannot be read ({error.what}); its memory speaks for it")
        memories = {name: opened.model.gradient_memory(name) for name in opened.domains}
        kept = {name: memory for name, memory in memories.items() if memory is not None}
        strength = opened.model.crma_config.effective_strength or 0.8
        name = opened.workspace.root.name
        recipe = next(each for each in config.methods if each.name == name)
        answers = find_recipe(recipe)
        return diagnose(
            probe,
            olds,
            probe.domain(new),
            memories=kept,
            strength=strength,
            going_on=recipe.recipe,
            protects=bool(answers.constraint != "none" or answers.bounds or answers.rehearsals),
        )

    def _base_probe(self, config: BaseConfig, changes: Mapping[str, Any], tell: Tell) -> Probe:
        tell(f"loading the base {config.model}")
        base = load_base(config)
        modules = {name: base.model.get_submodule(name) for name in resolve_targets(base.model)}
        return Probe(base.model, base.tokenizer, modules, self._sized(changes), seed=self.seed)

    def _sized(self, changes: Mapping[str, Any]) -> DiagnosisSettings:
        """The settings; what a run says itself stands in where nothing was set on the command line."""
        own = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        return DiagnosisSettings(**{**changes, **own})


def settings_of(pairs: Sequence[str]) -> DiagnosisSettings:
    """From ``NAME=VALUE`` to settings.

    Raises:
        ConfigError: An unknown name, or a value out of range.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator and value):
            raise ConfigError(
                "a setting is NAME=VALUE", got=f"--set {pair}", expected="--set high_increase=0.1"
            )
        values[name] = yaml.safe_load(value)
    try:
        return DiagnosisSettings(**values)
    except ValidationError as error:
        raise config_error(error, DiagnosisSettings, where="--set") from None


def _name_of(source: str) -> str:
    """A domain's name for a data source: its file's or set's own, without what a name may not have."""
    stem = source.removeprefix("packaged:") if source.startswith("packaged:") else Path(source).stem
    name = re.sub(r"[^\w -]+", "_", stem).strip(" _-") or "data"
    try:
        return check_domain_name(name)
    except ValueError:
        return f"{name}_data"
