"""How a run routes wherever nothing else is said: kept with the run, for asking, chatting and serving."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from constrained_adapters.errors import ConfigError, WorkspaceError
from constrained_adapters.workspace import Workspace, atomic_write_json

PREFERENCES_FILE = "routing.json"
FALSE_CHOICE_RATE = 0.05


@dataclass(frozen=True)
class RoutingPreferences:
    """What a router goes by.

    Args:
        false_choice_rate: Share of the base's own text, 0 … 1, that may be taken for a domain's.
        embedding: Folder of an embedding model; None: the base's hidden states.

    Raises:
        ConfigError: The rate is no share.
    """

    false_choice_rate: float = FALSE_CHOICE_RATE
    embedding: Path | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.false_choice_rate <= 1.0:
            raise ConfigError(
                "the rate of false choices is no share", got=repr(self.false_choice_rate), expected="0 … 1"
            )


def write_preferences(workspace: Workspace, preferences: RoutingPreferences) -> None:
    """Keep them with the run.

    Raises:
        WorkspaceError: The file cannot be written.
    """
    embedding = None if preferences.embedding is None else str(preferences.embedding.expanduser().absolute())
    kept = {"version": 1, "false_choice_rate": preferences.false_choice_rate, "embedding": embedding}
    atomic_write_json(workspace.memory / PREFERENCES_FILE, kept)


def read_preferences(workspace: Workspace) -> RoutingPreferences:
    """What was kept with the run, or the defaults.

    Raises:
        WorkspaceError: The file is damaged.
    """
    file = workspace.memory / PREFERENCES_FILE
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        embedding = kept["embedding"]
        return RoutingPreferences(
            float(kept["false_choice_rate"]), None if embedding is None else Path(embedding)
        )
    except FileNotFoundError:
        return RoutingPreferences()
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            "the routing preferences of the run are damaged",
            got=f"{file}: {error}".splitlines()[0],
            hint="remove the file, and the defaults hold",
        ) from None
