"""The names that users import are a promise: adding or dropping one is done on purpose."""

from __future__ import annotations

import subprocess
import sys

import constrained_adapters

PUBLIC_NAMES = [
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


def test_public_names_are_these_and_all_of_them_load() -> None:
    assert constrained_adapters.__all__ == PUBLIC_NAMES
    assert all(hasattr(constrained_adapters, name) for name in PUBLIC_NAMES)
    assert not hasattr(constrained_adapters, "CRMAModell")


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, constrained_adapters; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
