"""Checkpoints of a healthy model, kept where Trainer's rotation does not reach, and checked before use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import final

from constrained_adapters.errors import TrainingError
from constrained_adapters.workspace import atomic_write_json

FOLDER = "collapse_guard"
"""Beside Trainer's own checkpoints, in its output folder."""
MANIFEST = "healthy.json"
"""In each kept checkpoint, written last: its files with their sizes."""
KEPT = 2
NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_PREFIX = "checkpoint-"


@final
class HealthyCheckpoints:
    """The last healthy checkpoints of one training, newest last.

    A kept checkpoint shares its files with Trainer's own by hard links where the file system has them, so
    that keeping it takes no room until Trainer deletes its own.

    Args:
        output: Trainer's output folder.
    """

    def __init__(self, output: Path) -> None:
        self._output, self.folder = output, output / FOLDER

    def clear(self) -> None:
        """Throw away what an earlier training left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, step: int, *, move: bool = False) -> Path:
        """Keep Trainer's checkpoint of this step; the oldest beyond two is dropped.

        Args:
            step: Of a checkpoint that Trainer has just written.
            move: Whether Trainer's own is not wanted beside it.

        Raises:
            TrainingError: The checkpoint lacks what a training needs to go on from it.
        """
        source, target = self._output / f"{_PREFIX}{step}", self.folder / f"{_PREFIX}{step}"
        missing = [name for name in NEEDED if not (source / name).is_file()]
        if missing:
            raise TrainingError(
                "a checkpoint cannot be gone back to",
                got=f"{source} has no {', '.join(missing)}",
                expected="optimizer, scheduler and random state beside the model",
                hint="save_only_model=False; DeepSpeed and FSDP checkpoints are not supported here",
            )
        torn = target.with_name(f"torn-{step}")
        for old in (torn, target):
            shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if move:
            source.rename(torn)
        else:
            shutil.copytree(source, torn, copy_function=_link)
        sizes = {
            str(path.relative_to(torn)): path.stat().st_size
            for path in sorted(torn.rglob("*"))
            if path.is_file()
        }
        atomic_write_json(torn / MANIFEST, sizes)
        torn.rename(target)
        for each in self.steps()[:-KEPT]:
            shutil.rmtree(self.folder / f"{_PREFIX}{each}", ignore_errors=True)
        return target

    def steps(self) -> list[int]:
        """Of the kept checkpoints, ascending; also of those that are damaged by now."""
        names = (path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*"))
        return sorted(int(name) for name in names if name.isdigit())

    def newest(self, before: int | None = None) -> tuple[int, Path]:
        """The newest checkpoint that is whole, with its step; damaged ones are passed over.

        Args:
            before: One of fewer steps, where there is any.

        Raises:
            TrainingError: None is whole.
        """
        problems = []
        steps = self.steps()[::-1]
        older = [step for step in steps if before is not None and step < before]
        for step in [*older, *(step for step in steps if step not in older)]:
            path = self.folder / f"{_PREFIX}{step}"
            problem = _problem(path)
            if problem is None:
                return step, path
            problems.append(f"{path}: {problem}")
        raise TrainingError(
            "there is no healthy checkpoint to go back to; the training was left as it is",
            got="; ".join(problems) or f"no checkpoint in {self.folder}",
            expected="at least one whole checkpoint from before the collapse",
            hint="leave the folder alone while training runs",
        )

    def drop_after(self, step: int, saved: Sequence[int]) -> list[str]:
        """Remove checkpoints, kept or Trainer's own, of more steps: they hold the collapsed model.

        Trainer would write them anew, and a run that was killed would otherwise go on from them.

        Args:
            step: Of the checkpoint that is gone back to.
            saved: Steps at which Trainer has saved in this training; others are none of ours.

        Returns:
            Names of what was removed.
        """
        removed = []
        for folder in (self.folder, self._output):
            for path in sorted(folder.glob(f"{_PREFIX}*")):
                number = path.name.removeprefix(_PREFIX)
                own = folder == self.folder or (number.isdigit() and int(number) in saved)
                if own and number.isdigit() and int(number) > step:
                    shutil.rmtree(path, ignore_errors=True)
                    removed.append(str(path.relative_to(self._output)))
        return removed


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _problem(path: Path) -> str | None:
    """What is wrong with a kept checkpoint; None where every file is there in its size."""
    try:
        sizes: dict[str, int] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"no readable {MANIFEST}"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            return f"{name} is gone"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None
