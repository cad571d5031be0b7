"""Tasks of EleutherAI's lm-evaluation-harness (extra ``eval``) on a base and on what was made of it.

The harness formats, scores and averages; here its tasks are found, its scores put beside one another. Its
multiple-choice likelihood is summed over a choice's tokens (``acc``) or divided by its bytes (``acc_norm``).
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constrained_adapters.errors import DataError, MissingExtraError, UnknownNameError
from constrained_adapters.results import Estimate, TaskScore

if TYPE_CHECKING:
    from constrained_adapters.assessment.scoring import Scorer

INTERVAL = 1.96


@dataclass(frozen=True)
class Tasks:
    """Which tasks are asked for.

    Args:
        names: Names of tasks or groups; empty: all in ``folder``.
        folder: With the YAML files of tasks of the user's own. Relative ``data_files`` in them are relative
            to it. Without one, the harness's own tasks, whose data comes from a hub or its cache.
        max_items: Most items of a task.
        num_fewshot: Examples before each item; None: as the task says.
    """

    names: tuple[str, ...] = ()
    folder: Path | None = None
    max_items: int | None = None
    num_fewshot: int | None = None


def check_tasks(tasks: Tasks) -> list[str]:
    """Return the names of the tasks that will be scored, before a model is loaded.

    Raises:
        MissingExtraError: lm-eval is not installed.
        DataError: The folder holds no task.
        UnknownNameError: A task is neither in the folder nor the harness's own.
    """
    known = _manager(tasks).all_tasks if tasks.folder is None else _own_names(tasks.folder)
    for name in tasks.names:
        if name not in known:  # the harness has thousands of its own, too many to list
            listed = known if tasks.folder else difflib.get_close_matches(name, known)
            raise UnknownNameError.of(
                "task", name, listed, where=str(tasks.folder or "lm-evaluation-harness")
            )
    if not tasks.names and tasks.folder is None:
        raise DataError(
            "no task is named", got="neither a task nor a folder", hint="--task NAME, or --tasks DIR"
        )
    return list(tasks.names) or known


def score_tasks(tasks: Tasks, states: Mapping[str, Mapping[str, float]], scorer: Scorer) -> list[TaskScore]:
    """Score tasks with each state of a model; one line per task and metric.

    Args:
        tasks: Which.
        states: By the name of the model: adapters with their weights, none for the base.
        scorer: Holds the model, its tokenizer and how it is put into a state.

    Raises:
        MissingExtraError: lm-eval is not installed.
        DataError: A task's data cannot be read.
        UnknownNameError: There is no such task.
    """
    names = check_tasks(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found: dict[tuple[str, str], TaskScore] = {}
    for model, state in states.items():
        scorer.activate(state)
        scorer.tell(f"{', '.join(names)} with {', '.join(state) or 'the base alone'}")
        with _quiet():
            language_model = HFLM(
                pretrained=scorer.model,
                tokenizer=scorer.tokenizer,
                batch_size=scorer.scoring.batch_size,
                max_length=scorer.scoring.max_length,
            )
            results: Any = simple_evaluate(
                model=language_model,
                tasks=_loaded(tasks, names),
                num_fewshot=tasks.num_fewshot,
                limit=tasks.max_items,
                log_samples=False,
                bootstrap_iters=1000,  # of metrics that are no means; the harness's own default takes minutes
                task_manager=_manager(tasks),
            )
        for line in _lines(results):
            task, metric, num_items, estimate = line
            entry = found.setdefault(
                (task, metric), TaskScore(task=task, metric=metric, num_items=num_items, scores={})
            )
            entry.scores[model] = estimate
    return list(found.values())


def _lines(results: Mapping[str, Any]) -> Iterator[tuple[str, str, int, Estimate]]:
    """Each number of the harness's results: task, metric, items, mean and 1.96 standard errors around it."""
    for task, values in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            spread = INTERVAL * error if isinstance(error, int | float) else None
            name = metric if kind == "none" else f"{metric} ({kind})"
            low, high = (None, None) if spread is None else (value - spread, value + spread)
            yield task, name, int(counts.get("effective", 0)), Estimate(value=value, low=low, high=high)


def _loaded(tasks: Tasks, names: Sequence[str]) -> list[Any]:
    """The harness's tasks, with their data; read from their own folder, to which their paths are relative."""
    manager = _manager(tasks)
    folder = contextlib.nullcontext() if tasks.folder is None else contextlib.chdir(tasks.folder)
    try:
        with folder:
            loaded: dict[str, Any] = manager.load(list(names))["tasks"]
    except Exception as error:  # whatever datasets, jinja and the tasks' own code raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            "a task's data cannot be read",
            got=f"{type(error).__name__}: {first[:200]} ({', '.join(names)})",
            expected="tasks whose data lies in their folder, or in the cache of data sets",
            hint=None if tasks.folder else "--tasks DIR, with tasks on files of your own",
        ) from None
    return list(loaded.values())


def _manager(tasks: Tasks) -> Any:
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError.of("lm-eval", "eval", "to score tasks of lm-evaluation-harness") from None
    own = None if tasks.folder is None else str(tasks.folder)
    with _quiet():
        return TaskManager(include_path=own, include_defaults=tasks.folder is None)


def _own_names(folder: Path) -> list[str]:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads ``!function`` as its text: only names are looked for here."""

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    names = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
        except yaml.YAMLError as error:
            raise DataError("a task is no YAML", got=f"{path}: {error}") from None
        if isinstance(content, dict) and isinstance(content.get("task"), str):
            names.append(content["task"])
    if not names:
        raise DataError(
            "the folder holds no task of lm-evaluation-harness",
            got=str(folder) if folder.is_dir() else f"{folder}, which is no folder",
            expected="a .yaml file with 'task: NAME' and 'dataset_path: json'",
        )
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness tells much at the level of warnings."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
