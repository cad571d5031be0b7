"""Teach one language model domain after domain; forget nothing.

Names are loaded when they are first used, so ``import constrained_adapters`` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constrained_adapters.assistant.simple import SimpleDomainAdapter
    from constrained_adapters.config.crma import CRMAConfig
    from constrained_adapters.config.run import RunConfig
    from constrained_adapters.config.yaml_file import read_config
    from constrained_adapters.data.load import load_domain
    from constrained_adapters.guards.collapse import PreventCollapse
    from constrained_adapters.guards.forgetting import ForgettingGuard
    from constrained_adapters.model import CRMAModel
    from constrained_adapters.model.protect import protect
    from constrained_adapters.report.page import write_report
    from constrained_adapters.results import RunResult, load_results
    from constrained_adapters.training.prevent_collapse import prevent_collapse
    from constrained_adapters.training.run import run_config

_HOMES = {
    "CRMAConfig": "config.crma",
    "CRMAModel": "model",
    "ForgettingGuard": "guards.forgetting",
    "PreventCollapse": "guards.collapse",
    "RunConfig": "config.run",
    "RunResult": "results",
    "SimpleDomainAdapter": "assistant.simple",
    "load_domain": "data.load",
    "load_results": "results",
    "prevent_collapse": "training.prevent_collapse",
    "protect": "model.protect",
    "read_config": "config.yaml_file",
    "run_config": "training.run",
    "write_report": "report.page",
}

__all__ = [
    "CRMAConfig",
    "CRMAModel",
    "ForgettingGuard",
    "PreventCollapse",
    "RunConfig",
    "RunResult",
    "SimpleDomainAdapter",
    "load_domain",
    "load_results",
    "prevent_collapse",
    "protect",
    "read_config",
    "run_config",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
