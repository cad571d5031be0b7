"""Train whatever is trainable of a model on one domain, with the stock Trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from constrained_adapters.config.run import TrainingConfig
from constrained_adapters.data.tokens import TokenDataset, collate
from constrained_adapters.errors import TrainingError, UnknownNameError
from constrained_adapters.guards.figures import FiguresCallback
from constrained_adapters.objectives import CrossEntropy, LabelledDataset, Objective, collate_labelled
from constrained_adapters.schedules import warmup_argument
from constrained_adapters.training.callbacks import (
    CheckpointSealer,
    ConstraintFigures,
    CurveRecorder,
    ProgressTeller,
    last_whole_checkpoint,
)
from constrained_adapters.training.objective_trainer import ObjectiveTrainer
from constrained_adapters.training.observer import RunObserver
from constrained_adapters.training.trackers import tensorboard_in
from constrained_adapters.workspace.atomic import disk_errors

# By names of transformers; of a staged one ObjectiveTrainer makes the rates.
_SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "staged": "constant_with_warmup",
}


@dataclass
class TrainingRecord:
    """What training one domain left behind: curves by name, each (steps, values), and guards' events."""

    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    guard: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    step_seconds: float = 0.0


def train_domain(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: TokenDataset | LabelledDataset,
    settings: TrainingConfig,
    *,
    method: str,
    domain: str,
    learning_rate: float,
    seed: int,
    folder: Path,
    observer: RunObserver,
    in_order: bool = False,
    objective: Objective | None = None,
    rate_ratios: Mapping[str, float] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trackers: Path | None = None,
) -> TrainingRecord:
    """Train the model's trainable parameters; go on from the last whole checkpoint in ``folder``.

    Args:
        model: A causal language model of transformers or PEFT.
        tokenizer: Says how rows are padded.
        dataset: Rows as they are, or as the objective has prepared them.
        settings: ``training:`` of crma.yaml.
        method: Named to the observer.
        domain: Named to the observer and in errors.
        learning_rate: Peak.
        seed: Of the order of the rows.
        folder: Of the checkpoints.
        observer: Told about each step.
        in_order: Take the rows as they stand instead of shuffling them.
        objective: What is minimised; cross-entropy where none is given.
        rate_ratios: By name of a parameter, its rate in parts of the rate; 1 where none is given.
        callbacks: Further ones, such as guards; the ``curves`` and ``events`` of a guard are recorded.
        trackers: Where TensorBoard's files go; beside the checkpoints where none is given.

    Raises:
        TrainingError: The loss is not finite, or memory ran out.
        WorkspaceError: No space is left for a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorder = CurveRecorder()
    prepared = isinstance(dataset, LabelledDataset)
    with warnings.catch_warnings(), tensorboard_in(trackers or folder / "trackers"):
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        trainer = ObjectiveTrainer(
            objective=objective or CrossEntropy(),
            domain=domain,
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
            share_prefixes=settings.share_prefixes,
            stage_ratios=settings.stage_ratios,
            rate_ratios=rate_ratios,
            model=model,
            args=training_arguments(
                settings,
                learning_rate=learning_rate,
                seed=seed,
                folder=folder,
                on_cpu=model.get_input_embeddings().weight.device.type == "cpu",
                in_order=in_order,
                run_name=f"{method}: {domain}",
            ),
            train_dataset=dataset,
            data_collator=_collator(tokenizer, collate_labelled if prepared else collate),
            callbacks=[recorder, ProgressTeller(observer, method, domain), CheckpointSealer(), *callbacks],
        )
        _drop_printing(trainer)
        _log_figures_first(trainer)
        checkpoint = last_whole_checkpoint(folder)
        try:
            with disk_errors(folder), _without_bars():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"no memory is left while training domain {domain!r}",
                got=f"batch_size {settings.batch_size}, max_length_tokens {settings.max_length_tokens}",
                hint="smaller batch_size, more gradient_accumulation_steps, or gradient_checkpointing",
            ) from None
    return _record(trainer, domain)


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that Trainer does not have.

    Raises:
        UnknownNameError: There is none of this name.
    """
    known = [str(optimizer.value) for optimizer in OptimizerNames]
    if name not in known:
        raise UnknownNameError.of("optimizer", name, known, where="training.optimizer")


def training_arguments(
    settings: TrainingConfig,
    *,
    learning_rate: float,
    seed: int,
    folder: Path,
    on_cpu: bool,
    in_order: bool = False,
    run_name: str | None = None,
) -> TrainingArguments:
    """Translate ``training:`` of crma.yaml into Trainer's own arguments; ``on_cpu`` is where the base is."""
    steps = settings.steps
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=on_cpu,  # else Trainer takes a GPU that the base is not on, and refuses bf16 where none is
        max_steps=steps if steps is not None else -1,
        num_train_epochs=settings.epochs if settings.epochs is not None else 1.0,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=warmup_argument(settings.warmup_ratio),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        optim=settings.optimizer,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every_steps,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="sequential" if in_order else "random",
        report_to=settings.report_to or "none",
        run_name=run_name,
        disable_tqdm=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Writing whole models, transformers shows a bar for each checkpoint."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _collator(
    tokenizer: PreTrainedTokenizerBase, pad: Callable[[Any, int], dict[str, Any]]
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    return lambda features: pad(features, int(tokenizer.pad_token_id))


def _drop_printing(trainer: Trainer) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _log_figures_first(trainer: Trainer) -> None:
    """What adds figures to the logs stands before the trackers, which take them as they are then."""
    figures = [each for each in trainer.callback_handler.callbacks if isinstance(each, FiguresCallback)]
    for callback in [ConstraintFigures(), *figures]:
        callback.add_to(trainer)


def _record(trainer: Trainer, domain: str) -> TrainingRecord:
    recorder = next(c for c in trainer.callback_handler.callbacks if isinstance(c, CurveRecorder))
    record = TrainingRecord()
    terms = {name for entry in trainer.state.log_history for name in entry if name.startswith("loss_")}
    for name in ("loss", "learning_rate", "grad_norm", *sorted(terms)):
        points = [
            (int(entry["step"]), float(entry[name])) for entry in trainer.state.log_history if name in entry
        ]
        record.curves[name] = ([step for step, _ in points], [value for _, value in points])
    broken = next(
        (step for step, loss in zip(*record.curves["loss"], strict=True) if not math.isfinite(loss)), None
    )
    if broken is not None:
        raise TrainingError(
            f"the loss of domain {domain!r} is not finite at step {broken}",
            got="nan or infinity in the training's log",
            expected="a finite loss",
            hint="lower the learning rate",
        )
    seconds = recorder.curves["seconds"]
    for name, values in recorder.curves.items():
        if name != "seconds":
            record.curves[name] = (recorder.step_numbers[-len(values) :], values)
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "events") and hasattr(callback, "curves"):
            record.curves |= callback.curves
            record.events += callback.events
    record.seconds = sum(seconds)
    record.step_seconds = sorted(seconds)[len(seconds) // 2] if seconds else 0.0
    return record
