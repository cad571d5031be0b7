"""Trackers that ``training.report_to`` names, through Trainer's own integrations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from constrained_adapters.errors import MissingExtraError, UnknownNameError

_FOLDER = "TENSORBOARD_LOGGING_DIR"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that Trainer does not know, or that is not installed, before anything is trained.

    Raises:
        UnknownNameError: Trainer knows none of this name.
        MissingExtraError: Its package is not installed.
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UnknownNameError.of("tracker", name, INTEGRATION_TO_CALLBACK, where="training.report_to")
        if name not in get_available_reporting_integrations():
            if name == "tensorboard":
                raise MissingExtraError.of(name, "track", "for 'report_to'")
            raise MissingExtraError(
                f"{name} is needed for 'report_to'",
                got=f"{name} is not installed",
                hint=f"pip install {name.partition('_')[0]}",
            )


@contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """Trainers made in this context write TensorBoard's files to ``folder``, or where the environment says.

    Trainer's own default lies beside the checkpoints, which are gone when a domain is learnt.
    """
    if _FOLDER in os.environ:
        yield
        return
    os.environ[_FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[_FOLDER]
