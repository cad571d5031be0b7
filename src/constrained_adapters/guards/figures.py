"""Figures of a callback on their way to the trackers that ``report_to`` names, such as TensorBoard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class FiguresCallback(TrainerCallback, ABC):
    """A callback with figures of its own, which are logged with Trainer's.

    Trainer hands one dict of figures from callback to callback, the trackers' first. So this one has to stand
    before them: :meth:`add_to` puts it there, ``Trainer(callbacks=[…])`` behind them, where it acts as well
    but its figures reach no tracker.
    """

    def add_to(self, trainer: Trainer) -> Self:
        """Put this callback in front of the trainer's others."""
        others = [each for each in trainer.callback_handler.callbacks if each is not self]
        trainer.callback_handler.callbacks[:] = [self, *others]
        return self

    @abstractmethod
    def figures(self, model: Any) -> Mapping[str, float]:
        """What is to be logged now, by name; empty where nothing is new."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the figures to those of a step; the summary at the end of a training is left alone."""
        if logs is not None and "loss" in logs:
            logs.update(self.figures(kwargs.get("model")))
