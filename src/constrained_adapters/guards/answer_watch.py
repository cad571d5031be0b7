"""Looks at a model's answers to fixed prompts now and then, within a share of the time."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, final

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.evaluation.diversity import Diversity, measure_diversity
from constrained_adapters.evaluation.fixed_prompts import FixedAnswers, FixedPrompts
from constrained_adapters.guards.collapse_detector import CollapseDetector, Reading, Verdict
from constrained_adapters.guards.open_questions import OPEN_QUESTIONS
from constrained_adapters.guards.time_share import TimeShare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@final
class AnswerWatch:
    """The eyes of the collapse guard.

    Args:
        config: What to ask, how often, and the limits.
        tokenizer: Of the model.

    Raises:
        DataError: The tokenizer cannot render a prompt.
    """

    def __init__(self, config: PreventCollapseConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config = config
        self._prompts = FixedPrompts(config.prompts or OPEN_QUESTIONS, tokenizer)
        self.detector = CollapseDetector(config)
        self.clock = TimeShare(config.time_share, config.max_new_tokens, config.max_checks)
        self.start: FixedAnswers | None = None
        self.readings: list[Reading] = []
        """Of the training as it stands: without those of steps that are undone."""
        self.history: list[Reading] = []
        """All of this process, in the order of time."""
        self.texts: dict[int, list[str]] = {}
        """What was written at each check of this process, by step; never on disk."""
        self._due: int | None = None
        self._num_tokens = config.max_new_tokens

    def begin(self, model: Any, step: int) -> None:
        """Take the model's own start.

        Raises:
            ModelError: The model cannot generate.
        """
        answers = self._prompts.answers(model, self._config.max_new_tokens)
        self.clock.note_check(answers.seconds, len(answers.entropies))
        self.start = answers
        self.texts[step] = self._prompts.texts(answers)
        self._note(self._reading(answers, step, self._config.max_new_tokens))
        self._due = None

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether a check is due after ``step`` steps, and affordable."""
        every = self._config.check_every_steps
        if every is not None:
            return step % every == 0 or step == num_steps
        if self._due is None:
            self._plan(step - 1, num_steps)
        if self._due is None or step < self._due:
            return False
        if self.clock.is_affordable(self._num_tokens):
            return True
        self._due = step + 1
        return False

    def check(self, model: Any, step: int, num_steps: int) -> Verdict:
        """Ask, measure and judge; says when to look next."""
        assert self.start is not None, "begin() comes first"
        answers = self._prompts.answers(model, self._num_tokens)
        self.clock.note_check(answers.seconds, len(answers.entropies))
        reading = self._reading(answers, step, self._num_tokens)
        verdict = self.detector.judge(reading, self.start_reading(self._num_tokens))
        self._note(reading)
        self.texts[step] = self._prompts.texts(answers)
        self._plan(step, num_steps, sooner=verdict.state == "suspect")
        return verdict

    def start_reading(self, num_tokens: int) -> Reading:
        """The model's own start, as if it had been cut to this length."""
        assert self.start is not None
        return self._reading(self.start.cut(num_tokens), 0, num_tokens)

    def numbers(self) -> dict[str, float]:
        """All measures of the last reading."""
        last = self.readings[-1]
        return self.detector.numbers_of(last, self.start_reading(last.num_tokens))

    def go_back(self, step: int) -> None:
        """The model is again what it was after ``step`` steps; later readings are of what is undone."""
        self.readings = [reading for reading in self.readings if reading.step <= step]
        self.detector.reset()
        self._due = None

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Each measure over the steps; step 0 is the start."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for reading in self.readings:
            for name, value in reading.numbers().items():
                steps, values = found.setdefault(name, ([], []))
                steps.append(reading.step)
                values.append(value)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which :meth:`restore` goes on; of texts only the tokens of the start."""
        assert self.start is not None
        return {
            "start": {"tokens": self.start.tokens, "entropies": self.start.entropies},
            "readings": [asdict(reading) for reading in self.readings],
            "detector": {"raised": sorted(self.detector.raised), "streak": self.detector.streak},
            "clock": {
                name: getattr(self.clock, name)
                for name in ("checks", "spent", "train_seconds", "per_token", "step_seconds")
            },
        }

    def restore(self, kept: dict[str, Any], until_step: int) -> None:
        """Go on from what :meth:`to_dict` kept; readings of later steps are of a training that is undone."""
        start = kept["start"]
        self.start = FixedAnswers(
            tuple(map(tuple, start["tokens"])), tuple((t, n) for t, n in start["entropies"]), 0.0
        )
        self.readings = [
            Reading(**{**each, "diversity": Diversity(**each["diversity"])})
            for each in kept["readings"]
            if each["step"] <= until_step
        ]
        self.detector.raised = set(kept["detector"]["raised"])
        self.detector.streak = kept["detector"]["streak"]
        for name, value in kept["clock"].items():
            setattr(self.clock, name, value)

    def _note(self, reading: Reading) -> None:
        self.readings.append(reading)
        self.history.append(reading)

    def _plan(self, step: int, num_steps: int, *, sooner: bool = False) -> None:
        if self._config.check_every_steps is not None:
            return  # fixed steps, and answers of one length: the same whatever the clock says
        plan = self.clock.plan(step, num_steps, sooner=sooner)
        self._due, self._num_tokens = plan.step, plan.num_tokens

    def _reading(self, answers: FixedAnswers, step: int, num_tokens: int) -> Reading:
        return Reading(
            step=step,
            diversity=measure_diversity(self._prompts.texts(answers)),
            output_entropy_nats=answers.mean_entropy_nats,
            num_tokens=num_tokens,
        )
