"""Callbacks of the stock Trainer: curves that survive a restart, progress, and whole checkpoints."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from constrained_adapters.guards.figures import FiguresCallback
from constrained_adapters.training.observer import RunObserver

WHOLE = "whole"
"""Name of the file that is written last into a checkpoint; without it, the checkpoint is a torn one."""


class CurveRecorder(TrainerCallback, ExportableState):
    """Keeps the constraint's measurements and the seconds of each step, across restarts."""

    def __init__(self, steps: list[int] | None = None, curves: dict[str, list[float]] | None = None) -> None:
        self.step_numbers: list[int] = steps or []
        self.curves: dict[str, list[float]] = curves or {"seconds": []}
        self._begun = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"steps": self.step_numbers, "curves": self.curves}, "attributes": {}}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write down this step."""
        self.step_numbers.append(state.global_step)
        self.curves["seconds"].append(time.perf_counter() - self._begun)
        for name, value in getattr(kwargs["model"], "last_measurements", {}).items():
            self.curves.setdefault(name, []).append(value)


class ProgressTeller(TrainerCallback):
    """Tells an observer about each step."""

    def __init__(self, observer: RunObserver, method: str, domain: str) -> None:
        self._observer, self._method, self._domain = observer, method, domain

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass the loss on."""
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            self._observer.steps(self._method, self._domain, state.global_step, state.max_steps, loss)


class CheckpointSealer(TrainerCallback):
    """Marks each checkpoint as whole once everything is in it, so that a torn one is never resumed from."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the mark."""
        (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / WHOLE).touch()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; torn ones are removed."""
    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE).is_file():
            whole.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole)[1] if whole else None


class ConstraintFigures(FiguresCallback):
    """Logs what the constraints measured at the last step, such as conflict and removed share."""

    def figures(self, model: Any) -> dict[str, float]:
        """``constraint/NAME``; empty where nothing binds the steps."""
        measured = getattr(model, "last_measurements", {})
        return {f"constraint/{name}": float(value) for name, value in measured.items()}
