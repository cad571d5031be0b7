"""A Trainer whose ``train`` goes on from an earlier checkpoint as often as a guard asks for it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer, TrainerCallback, TrainerState

from constrained_adapters.errors import ConfigError


class Restarts(Protocol):
    """What decides whether a training that has ended goes on from somewhere."""

    def begin(self, trainer: Any, resume_from: str | bool | None) -> None:
        """Training is about to begin."""

    def restart(self, trainer: Any) -> Path | None:
        """Training has ended: the checkpoint to go on from, or None where it is over."""

    def release(self) -> None:
        """Training is over, or broke off."""


def restart_training(trainer: Any, guard: Restarts) -> None:
    """Let ``trainer.train()`` ask a guard, whenever it ends, whether to go on from a checkpoint.

    It goes on through Trainer's own resuming, which restores model, optimizer, scheduler, random state and
    the place in the data; so nothing is half restored.

    Raises:
        ConfigError: Parameters are sharded, several processes train, or checkpoints hold the model only.
    """
    args = trainer.args
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.world_size > 1:
        raise ConfigError(
            "the collapse guard watches one process that holds the whole model",
            got=f"{args.world_size} processes, or DeepSpeed or FSDP",
            expected="one process",
        )
    if args.save_only_model:
        raise ConfigError(
            "no training can be gone back to from a model alone",
            got="save_only_model=True",
            expected="checkpoints with optimizer, scheduler and random state",
            hint="save_only_model=False",
        )
    train = trainer.train

    def restarting(resume_from_checkpoint: str | bool | None = None, *rest: Any, **named: Any) -> Any:
        guard.begin(trainer, resume_from_checkpoint)
        try:
            while True:
                output = train(resume_from_checkpoint, *rest, **named)
                place = guard.restart(trainer)
                if place is None:
                    return output
                resume_from_checkpoint = str(place)
        finally:
            guard.release()

    trainer.train = restarting


def restore(trainer: Any, place: Path) -> None:
    """Give a Trainer that has ended the model, optimizer, scheduler, random state and log of a checkpoint.

    Args:
        trainer: Whose ``train`` has returned.
        place: A whole checkpoint.
    """
    trainer._load_from_checkpoint(str(place))
    trainer._load_optimizer_and_scheduler(str(place))
    trainer._load_rng_state(str(place))
    trainer.state = TrainerState.load_from_json(str(place / "trainer_state.json"))


def find_trainer(callback: TrainerCallback) -> Any:
    """The Trainer that is calling this callback, or None.

    A Trainer tells its callbacks everything but itself, and only itself can train again; so it is
    looked for among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    return None
