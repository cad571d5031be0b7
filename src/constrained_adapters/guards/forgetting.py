"""The forgetting guard: watches old domains while a new one is learnt, and acts when one gets worse.

Like every callback it sees only what Trainer shows it, so it works with anybody's Trainer: probe rows go
through the model every few steps, within a share of the time, and each step is looked at once at most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from pydantic import ValidationError
from transformers import TrainerControl, TrainerState, TrainingArguments

from constrained_adapters.config.errors import config_error
from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.errors import ConfigError
from constrained_adapters.guards.figures import FiguresCallback
from constrained_adapters.guards.last_good import LastGood
from constrained_adapters.guards.probes import ProbeRow, Probes, Reading, encode_probe, warn_of_trained
from constrained_adapters.guards.time_share import TimeShare
from constrained_adapters.workspace import atomic_write_json

STATE_FILE = "forgetting_guard.json"
"""Beside each of Trainer's checkpoints: what the guard has seen so far, figures only."""
LEAST_NATS = 0.05
"""A rise is measured against at least so much: of a loss near nothing, a tenth means nothing."""


@final
class ForgettingGuard(FiguresCallback):
    """Stops, strengthens or rolls back a training that makes the model worse on old domains.

    At the first check, before the first step, the present model is taken as what each old domain is compared
    with, unless ``baseline`` says how good the model was when the domain was learnt.

    A check that would cost more than its share of the time waits until it does not; the first reading and the
    last are always taken. So which steps are looked at depends on the machine; ``max_time_ratio=1`` looks at
    each that is due, and so does a training in several processes.

    Args:
        old: For each old domain some rows, none of them trained on.
        new: Some rows of the domain in training; for the early sign.
        baseline: For old domains the loss on these rows when they were learnt, nats per label.
        strengthen: Makes the constraint of this training stronger and says by how much; needed by ``action =
            "strengthen"`` unless the model has ``strengthen_constraint``, as a ``CRMAModel`` has.
        **settings: As :class:`~constrained_adapters.config.guard.GuardConfig`.

    Raises:
        ConfigError: A setting is unknown or out of range, or names no old domain.

    Warns:
        UserWarning: When training begins, where rows to watch are trained on.

    Example::

        guard = ForgettingGuard({"law": law_examples}, medicine_examples, action="roll_back")
        guard.add_to(trainer)  # or Trainer(callbacks=[guard]): then its figures reach no tracker
    """

    def __init__(
        self,
        old: Mapping[str, Sequence[ProbeRow]],
        new: Sequence[ProbeRow],
        *,
        baseline: Mapping[str, float] | None = None,
        strengthen: Callable[[], Mapping[str, float]] | None = None,
        **settings: Any,
    ) -> None:
        try:
            self.settings = GuardConfig(**settings)
        except ValidationError as error:
            raise config_error(error, GuardConfig, where="ForgettingGuard") from None
        named = self.settings.max_increase
        unknown = sorted(set(named) - set(old)) if isinstance(named, dict) and old else []
        if unknown:
            raise ConfigError(
                f"max_increase names {unknown[0]!r}, which is no old domain",
                got=f"max_increase={named}",
                expected=", ".join(sorted(old)),
            )
        self.events: list[dict[str, Any]] = []
        """What it did: ``step``, ``guard``, ``action``, ``reason`` and ``numbers``."""
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        """``probe_old_nats``, ``probe_new_nats``, ``probe_mixed_nats``, ``start_kl_nats`` and, for each old
        domain, ``drift_percent_NAME``, by step."""
        self._rows, self._new_rows = dict(old), list(new)
        self._baseline: dict[str, float] = dict(baseline or {})
        self._strengthen = strengthen
        self._probes: Probes | None = None
        self._last: Reading | None = None
        self._good, self._good_reading = LastGood(), Reading(0, {}, None, 0.0, 0.0, None)
        self._share = TimeShare(self.settings.max_time_ratio, max_tokens=1, max_checks=1)
        self._begun = 0.0
        self._due = self.settings.every_steps
        self._acted_at: dict[str, float] = {}
        self._new_figures = False

    # -- what it says ----------------------------------------------------------------------------

    @property
    def last_new_nats(self) -> float | None:
        """The new domain's loss at the last check: after training, the baseline of later guards."""
        return self._last.new if self._last else None

    @property
    def time_ratio(self) -> float:
        """Seconds of all checks over the seconds since training began, 0 … 1."""
        elapsed = time.perf_counter() - self._begun
        return self._share.spent / elapsed if self._begun and elapsed > 0 else 0.0

    def figures(self, model: Any) -> Mapping[str, float]:
        """The last check's figures, once."""
        if self._last is None or not self._new_figures:
            return {}
        self._new_figures = False
        return {f"guard/{name}": values[-1] for name, (_, values) in self.curves.items()}

    # -- when it looks ---------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the first reading; after a restart, go on with what was seen before the checkpoint."""
        model = kwargs["model"]
        self._begun = self._begun or time.perf_counter()
        if self._probes is None:
            self._probes = self._encoded(kwargs.get("processing_class"))
            loader = kwargs.get("train_dataloader")
            warn_of_trained(self._probes, getattr(loader, "dataset", None))
        if self.settings.action == "strengthen" and self._rows and self._strengthener(model) is None:
            raise ConfigError(
                "there is no constraint that could be strengthened",
                got=f"action = 'strengthen' with a {type(model).__name__}",
                expected="a CRMAModel under its constraint, or strengthen=protect(trainer).strengthen",
                hint="action='roll_back'",
            )
        if state.global_step:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self._resume(folder / STATE_FILE, state.global_step, model)
        if self._last is None:
            self._take(model, state.global_step, first=True)
        self._keep_good(kwargs, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, where a check is due and affordable or the training ends, and act."""
        step = state.global_step
        self._share.train_seconds = time.perf_counter() - self._begun - self._share.spent
        last = step >= state.max_steps
        # Several processes must decide alike: their clocks may not, so there every check that is due is made.
        affordable = args.world_size > 1 or self._share.is_affordable(1)
        if not last and (step < self._due or not affordable):
            return
        self._due = (step // self.settings.every_steps + 1) * self.settings.every_steps
        reading = self._take(kwargs["model"], step)
        control.should_log = True
        begun = time.perf_counter()
        worse = self._worse(reading)
        if worse:
            self._act(reading, worse, control, last=last, **kwargs)
        elif not last:
            self._keep_good(kwargs, step)
        self._share.note_other(time.perf_counter() - begun)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last reading, where something else ended the training between two checks."""
        if self._last is not None and self._last.step != state.global_step:
            self._take(kwargs["model"], state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what was seen into Trainer's checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            kept = {"events": self.events, "curves": self.curves, "baseline": self._baseline}
            last = vars(self._last) if self._last else None
            atomic_write_json(folder / STATE_FILE, {**kept, "acted_at": self._acted_at, "last": last})

    # -- what it does ----------------------------------------------------------------------------

    def _take(self, model: Any, step: int, *, first: bool = False) -> Reading:
        assert self._probes is not None, "on_train_begin makes them"
        begun = time.perf_counter()
        # With a baseline for each the old domains need no reading before anything is trained.
        reading = self._probes.read(
            model, step, first=first, old=not first or not set(self._rows) <= set(self._baseline)
        )
        self._share.note_check(time.perf_counter() - begun, 1)
        for name, nats in reading.old.items():
            self._baseline.setdefault(name, nats)
        named = {
            "probe_old_nats": reading.old_all,
            "probe_new_nats": reading.new,
            "probe_mixed_nats": reading.mixed if reading.old else None,
            "start_kl_nats": reading.kl,
        }
        rises = {f"drift_percent_{name}": 100 * self._rise(reading, name) for name in reading.old}
        for name, value in {**named, **rises}.items():
            if value is not None:
                steps, values = self.curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
        self._last, self._new_figures = reading, True
        return reading

    def _rise(self, reading: Reading, name: str) -> float:
        """Of an old domain's loss, as a share of what it was when the domain was learnt."""
        before = self._baseline[name]
        return (reading.old[name] - before) / max(before, LEAST_NATS)

    def _worse(self, reading: Reading) -> dict[str, float]:
        """The old domains over their limits; after a strengthening those that have got worse still."""
        rises = {name: self._rise(reading, name) for name in reading.old}
        return {
            name: rise
            for name, rise in rises.items()
            if rise > max(self.settings.limit(name), self._acted_at.get(name, 0.0))
        }

    def _act(
        self,
        reading: Reading,
        worse: Mapping[str, float],
        control: TrainerControl,
        *,
        last: bool,
        model: Any,
        optimizer: Any,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        action, numbers = self.settings.action, {f"rise_{name}": rise for name, rise in worse.items()}
        reason = "; ".join(
            f"the loss of {name} is {rise:.1%} over what it was ({self.settings.limit(name):.1%} allowed)"
            for name, rise in worse.items()
        )
        done = sum(event["action"] == action for event in self.events)
        if action == "roll_back":
            numbers["to_step"] = float(self._good.step or 0)
            numbers["learning_rate"] = self._good.put_back(
                model, optimizer, lr_scheduler, rate_factor=self.settings.rate_factor
            )
            self._last = replace(self._good_reading, step=reading.step)
            self._note(reading.step, action, reason, numbers)
        if last:
            if action != "roll_back":
                self._note(reading.step, "alarm", f"{reason}; the training was over", numbers)
            return
        if action == "strengthen" and done < self.settings.max_actions:
            strengthen = self._strengthener(model)
            assert strengthen is not None, "on_train_begin refuses it"
            raised = strengthen()
            if raised:
                self._acted_at |= worse
                self._note(reading.step, action, reason, {**numbers, **raised})
                return
            reason += "; there is no constraint that could be strengthened"
        if action == "stop" or done >= self.settings.max_actions or action == "strengthen":
            control.should_training_stop = True
            more = f"; after {done} times '{action}'" if done else ""
            self._note(reading.step, "stop", reason + more, numbers)

    def _keep_good(self, of: Mapping[str, Any], step: int) -> None:
        if self.settings.action == "roll_back" and self._rows and self._last is not None:
            self._good.take(of["model"], of["optimizer"], step)
            self._good_reading = self._last

    def _note(self, step: int, action: str, reason: str, numbers: Mapping[str, float]) -> None:
        self.events.append(
            {
                "step": step,
                "guard": "forgetting",
                "action": action,
                "reason": reason,
                "numbers": dict(numbers),
            }
        )

    def _strengthener(self, model: Any) -> Callable[[], Mapping[str, float]] | None:
        own: Callable[[], Mapping[str, float]] | None = getattr(model, "strengthen_constraint", None)
        return self._strengthen or own

    def _encoded(self, tokenizer: Any) -> Probes:
        most = self.settings.probe_rows
        old = {name: encode_probe(rows, name, tokenizer, most=most) for name, rows in self._rows.items()}
        return Probes(old, encode_probe(self._new_rows, "the new domain", tokenizer, most=most))

    def _resume(self, file: Path, step: int, model: Any) -> None:
        """Forget what came after a checkpoint; in a new process, go back to what there was at it."""
        if self._last is None and file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.events, self._baseline = kept["events"], {**self._baseline, **kept["baseline"]}
            self.curves = {name: (steps, values) for name, (steps, values) in kept["curves"].items()}
            self._acted_at = kept["acted_at"]
            self._last = Reading(**kept["last"]) if kept["last"] else None
            strengthen = self._strengthener(model)
            for event in self.events:
                if event["action"] == "strengthen" and strengthen is not None:
                    strengthen()  # a checkpoint of Trainer does not know of it
        self.events = [event for event in self.events if event["step"] <= step]
        for name, (steps, values) in self.curves.items():
            count = sum(each <= step for each in steps)
            self.curves[name] = (steps[:count], values[:count])
        self._due = (step // self.settings.every_steps + 1) * self.settings.every_steps
