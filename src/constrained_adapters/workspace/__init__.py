"""A method's folder on disk: adapters, memories, checkpoints, evaluations and the ledger.

Whatever is written here survives ``kill -9`` and a power cut at any moment: a reader finds the old
state or the new one, never half of one.
"""

from constrained_adapters.workspace.atomic import (
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    no_space_error,
    recover,
)
from constrained_adapters.workspace.finished import find_workspace, find_workspaces, finished_domains
from constrained_adapters.workspace.folder import Workspace, changed_settings
from constrained_adapters.workspace.ledger import Ledger
from constrained_adapters.workspace.undo import Undo, carry_out, interrupted, undo_of

__all__ = [
    "Ledger",
    "Undo",
    "Workspace",
    "atomic_directory",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "carry_out",
    "changed_settings",
    "find_workspace",
    "find_workspaces",
    "finished_domains",
    "interrupted",
    "no_space_error",
    "recover",
    "undo_of",
]
