"""The collapse guard: notices that a model's answers become one and the same, and goes back in time."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import SaveStrategy

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.errors import config_error
from constrained_adapters.errors import AdapterStateError, ConfigError
from constrained_adapters.guards.answer_watch import AnswerWatch
from constrained_adapters.guards.collapse_detector import Verdict
from constrained_adapters.guards.collapse_events import event_line, new_event, report
from constrained_adapters.guards.healthy_checkpoints import HealthyCheckpoints
from constrained_adapters.guards.remedies import EmbeddingNoise, LowerRate, reordered
from constrained_adapters.guards.restarting import find_trainer, restart_training, restore
from constrained_adapters.models.dropout import TrainingDropout
from constrained_adapters.workspace import atomic_write_json

STATE_FILE = "guard.json"


@dataclass
class _Standing:
    """How far the guard has gone; what is kept for a run that is killed."""

    alarms: int = 0
    rate_factor: float = 1.0
    low_rate_until: int = 0
    order_seed: int | None = None
    rows_done: int = 0
    noise: bool = False
    last_kept: int = 0
    saved: list[int] = field(default_factory=list)


@final
class PreventCollapse(TrainerCallback):
    """A callback for anybody's Trainer or SFTTrainer that rescues a model whose answers collapse.

    Now and then the model answers fixed open questions in one batch, within a share of the training's time.
    Where several measures of diversity fall past their limits (or one stays there), training goes back to the
    last healthy checkpoint, through Trainer's own resuming, and on from there: at the n-th alarm with the
    first n remedies; after the last it ends early with the healthy model and a report. Dropout acts while
    training, and is taken off afterwards. The parts that need the Trainer's loss, rates and data (label
    smoothing, stages, general text) are put on by
    :func:`~constrained_adapters.training.prevent_collapse.prevent_collapse`.

    Give it to the Trainer when that is made: ``Trainer(..., callbacks=[PreventCollapse()])``. Checkpoints of
    healthy moments are kept in ``output_dir/collapse_guard`` until the training is over.

    Args:
        config: All settings; or give single ones.
        tokenizer: Needed where the Trainer has no ``processing_class``.
        tell: Told of each return to a checkpoint, and of the end; a warning where none is given.
        settings: Of :class:`~constrained_adapters.config.collapse.PreventCollapseConfig`.

    Raises:
        ConfigError: A setting is unknown, out of range, or contradicts another.
    """

    def __init__(
        self,
        config: PreventCollapseConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tell: Callable[[str], None] | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise ConfigError(
                "settings are given twice", got=f"config and {', '.join(settings)}", expected="one of them"
            )
        try:
            self.config = config or PreventCollapseConfig(**settings)
        except ValidationError as error:
            raise config_error(error, PreventCollapseConfig, where="PreventCollapse") from None
        self.events: list[dict[str, Any]] = []
        """What happened, in order: ``step``, ``guard``, ``action``, ``reason``, ``numbers``."""
        self.watch: AnswerWatch | None = None
        """The readings; None before training begins."""
        self._tokenizer, self._tell = tokenizer, tell or _warn
        self._trainer: Any = None
        self._places: HealthyCheckpoints | None = None
        self._standing = _Standing()
        self._rate = LowerRate()
        self._hooks: list[TrainingDropout | EmbeddingNoise] = []
        self._alarm: dict[str, Any] | None = None
        self._saving = False
        self._dataset: Any = None
        self._mark = 0.0

    # ---- to whom it belongs

    def bind(self, trainer: Any) -> None:
        """Watch this trainer; a Trainer that is made with this callback does so by itself.

        Raises:
            ConfigError: The trainer cannot be gone back in.
            AdapterStateError: The guard watches another one already.
        """
        if self._trainer is not None:
            raise AdapterStateError(
                "this guard watches a Trainer already",
                got="one PreventCollapse for two Trainers",
                hint="make one for each",
            )
        restart_training(trainer, self)
        self._trainer = trainer

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find out whose callback this is."""
        trainer = find_trainer(self)
        if trainer is not None:
            self.bind(trainer)

    # ---- one training, which may be several calls of train()

    def begin(self, trainer: Any, resume_from: str | bool | None) -> None:
        """Training is about to begin: from nothing, or from where a run that was killed had come to."""
        self._places = HealthyCheckpoints(Path(str(trainer.args.output_dir)))
        self._dataset = trainer.train_dataset
        self.events, self._standing, self._alarm, self.watch = [], _Standing(), None, None
        kept = self._read_state() if resume_from else None
        if kept is None:
            self._places.clear()
            return
        self.events, self._standing = kept["events"], _Standing(**kept["standing"])
        self._reorder(trainer)

    def restart(self, trainer: Any) -> Path | None:
        """Where the training goes on after an alarm; None where it is over."""
        assert self._places is not None
        if self._alarm is None:
            self._finish(trainer.state.global_step)
            return None
        alarm, self._alarm = self._alarm, None
        assert self.watch is not None
        standing = self._standing
        # A further alarm casts doubt on the newest: the older one, where there are two.
        step, place = self._places.newest(before=standing.last_kept if standing.alarms > 1 else None)
        remedies = self.config.remedies[: standing.alarms]
        stops = standing.alarms > len(self.config.remedies)
        removed = self._places.drop_after(step, standing.saved)
        standing.saved = [each for each in standing.saved if each <= step]
        self.watch.go_back(step)
        standing.last_kept = step
        event = {
            **alarm,
            "action": "stopped" if stops else "rolled_back",
            "to_step": step,
            "remedies": [] if stops else remedies,
            "removed": removed,
        }
        self.events.append(event)
        if stops:
            restore(trainer, place)
            self._finish(step)
            self._tell(self.report())
            return None
        self._tell(event_line(event))
        self._apply(remedies, step, trainer)
        self._write_state()
        return place

    def release(self) -> None:
        """Training is over, or broke off: nothing of the guard stays on the model."""
        self._take_off()
        if self._trainer is not None:
            self._trainer.train_dataset = self._dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put dropout on; take the model's own start, or go on from what was kept.

        Raises:
            AdapterStateError: The callback was added after the Trainer was made.
            ConfigError: There is no tokenizer.
            ModelError: The model cannot generate.
        """
        if self._trainer is None or self._places is None:
            raise AdapterStateError(
                "PreventCollapse does not know its Trainer",
                got="add_callback() on a Trainer that stood already",
                expected="Trainer(..., callbacks=[PreventCollapse()]), or prevent_collapse(trainer)",
            )
        model, settings = kwargs["model"], self.config
        rates = (settings.attention_dropout, settings.residual_dropout, settings.mlp_dropout)
        if any(rates):
            self._hooks.append(TrainingDropout(model, attention=rates[0], residual=rates[1], mlp=rates[2]))
        if self._standing.noise:
            self._hooks.append(EmbeddingNoise(model, settings.noise_alpha))
        self._mark = time.perf_counter()
        if not settings.guard or self.watch is not None:
            return
        tokenizer = self._tokenizer or kwargs.get("processing_class")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ConfigError(
                "the collapse guard needs the tokenizer to ask its questions",
                got=f"processing_class={type(tokenizer).__name__}",
                expected="Trainer(..., processing_class=tokenizer), or PreventCollapse(tokenizer=tokenizer)",
            )
        self.watch = AnswerWatch(settings, tokenizer)
        kept = self._read_state() if state.global_step else None
        if kept is not None:
            self.watch.restore(kept["watch"], state.global_step)
            return
        self.watch.begin(model, state.global_step)
        if state.global_step == 0:
            begun = time.perf_counter()
            self._trainer._save_checkpoint(model, trial=None)
            self._places.keep(0, move=True)
            self.watch.clock.note_other(time.perf_counter() - begun)
        self._standing.last_kept = state.global_step
        self._write_state()
        self._mark = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take dropout and noise off."""
        self._take_off()

    # ---- each step

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lower the rate, where that is in force."""
        self._rate.lower(kwargs["optimizer"], state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the scheduler its own rate back."""
        self._rate.restore(kwargs["optimizer"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The rate that was really taken stands in the log."""
        entry = state.log_history[-1] if state.log_history else {}
        if "learning_rate" in entry and self._rate.acts(state.global_step - 1):
            entry["learning_rate"] *= self._rate.factor

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look at the answers, where it is time to; keep a checkpoint, or go back."""
        if self.watch is None:
            return control
        self.watch.clock.note_step(time.perf_counter() - self._mark)
        step = state.global_step
        if self.watch.is_due(step, state.max_steps):
            verdict = self.watch.check(kwargs["model"], step, state.max_steps)
            self._act(verdict, args, state, control)
            self._write_state()
        self._mark = time.perf_counter()
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what Trainer has written of a healthy moment."""
        self._standing.saved.append(state.global_step)
        if not self._saving or self.watch is None or self._places is None:
            return
        begun = time.perf_counter()
        self._places.keep(state.global_step, move=args.save_strategy == SaveStrategy.NO)
        self._saving = False
        standing = self._standing
        standing.last_kept = state.global_step
        if standing.alarms and state.global_step > standing.low_rate_until:
            standing.alarms = 0  # rescued: what comes later is a new story
        self._write_state()
        self.watch.clock.note_other(time.perf_counter() - begun)
        self._mark = time.perf_counter()

    # ---- what it found

    @property
    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Each measure over the steps."""
        return {} if self.watch is None else self.watch.curves()

    def report(self) -> str:
        """What happened, for people, a line an event."""
        return report(self.events)

    def _act(
        self, verdict: Verdict, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        assert self.watch is not None and self._places is not None
        step = state.global_step
        if verdict.state == "healthy":
            every = min(self.config.checkpoint_every_steps, -(-state.max_steps // 4))
            if step - self._standing.last_kept >= every and step < state.max_steps:
                self._saving = control.should_save = True
            return
        last = self.watch.readings[-1]
        reason = verdict.reason(last, self.watch.start_reading(last.num_tokens))
        event = new_event(step, "suspected", reason, self.watch.numbers())
        if verdict.state == "suspect":
            self.events.append(event)
            return
        self._places.newest()  # raises while nothing is changed
        self._standing.alarms += 1
        self._alarm = event
        control.should_training_stop, control.should_save, control.should_evaluate = True, False, False

    def _apply(self, remedies: list[Any], step: int, trainer: Any) -> None:
        standing, settings = self._standing, self.config
        if "lower_rate" in remedies:
            standing.rate_factor = settings.rate_factor**standing.alarms
            standing.low_rate_until = step + settings.low_rate_steps
        if "new_order" in remedies:
            args = trainer.args
            in_order = args.train_sampling_strategy == "sequential"
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
            standing.order_seed = 1_000 * (args.data_seed or args.seed) + standing.alarms
            standing.rows_done = step * batch if in_order else 0
        standing.noise = "embedding_noise" in remedies
        self._reorder(trainer)

    def _reorder(self, trainer: Any) -> None:
        """Put what is kept of the remedies in force."""
        standing = self._standing
        self._rate = LowerRate(standing.rate_factor, standing.low_rate_until)
        if standing.order_seed is not None:
            dataset = reordered(self._dataset, seed=standing.order_seed, num_done=standing.rows_done)
            trainer.train_dataset = self._dataset if dataset is None else dataset

    def _finish(self, step: int) -> None:
        """Write down what looking cost, and give the room on disk back."""
        assert self._places is not None
        self._places.clear()
        if self.watch is None:
            return
        clock, number = self.watch.clock, len(self.watch.history)
        reason = f"{number} looks at the answers took {clock.taken:.1%} of the time"
        numbers = {
            "checks": number,
            "seconds": clock.spent,
            "time_ratio": clock.taken,
            "train_seconds": clock.train_seconds,
        }
        self.events.append(new_event(step, "finished", reason, numbers))
        if number < 2:
            self._tell(
                f"the collapse guard has seen the start only: one more look would have taken over "
                f"{self.config.time_share:.0%} of this short training; check_every_steps looks all the same"
            )

    def _take_off(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _write_state(self) -> None:
        """Written whole or not at all: a run that is killed finds the last check or the one before."""
        assert self._places is not None and self.watch is not None
        self._places.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "standing": asdict(self._standing),
            "events": self.events,
            "watch": self.watch.to_dict(),
        }
        atomic_write_json(self._places.folder / STATE_FILE, state)

    def _read_state(self) -> dict[str, Any] | None:
        assert self._places is not None
        path = self._places.folder / STATE_FILE
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
