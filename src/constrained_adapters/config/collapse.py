"""``prevent_collapse`` of crma.yaml, and the arguments of the collapse guard in anybody's own script."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_adapters.config.base import Settings

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Remedy = Literal["lower_rate", "new_order", "embedding_noise"]

DEFAULT_PROMPTS = 16
"""How many there are where none are given."""
GENERAL_TEXT = "packaged:general"
FEWEST_PROMPTS = 8
"""With fewer, one answer moves a share by more than an eighth, and one odd answer looks like a trend."""


class PreventCollapseConfig(Settings):
    """What keeps a fine-tuning from ending in one phrase for every question, and what notices that it does.

    Prevention acts on every step; the guard looks at answers to fixed prompts now and then, and on an alarm
    goes back to the last healthy checkpoint and on from there with the first n ``remedies`` at the n-th
    alarm, then stops. A measure raises an alarm only where it is also clearly worse than the model's own
    start.

    Attributes:
        stage_ratios: Stages of the learning rate, of equal length, in parts of it, such as 0.1, 0.3, 1; null:
            the run's schedule.
        warmup_ratio: Share of the steps over which the rate rises from 0; null: the run's.
        label_smoothing: Share of each label that is spread over all tokens, such as 0.1; masked labels are
            left alone. This, general text, stages and dropout are off unless asked for: a healthy run loses
            too much by them (docs/adr/0005).
        general_ratio: Share of rows that are text of no domain, such as 0.1.
        general_text: Where it comes from, as ``data`` of a domain.
        attention_dropout: Of attention weights, while training.
        residual_dropout: Of what attention and MLP add to the residual stream, while training.
        mlp_dropout: Of the MLP's inner activations, while training.
        guard: Whether answers are looked at at all.
        prompts: Questions that are answered at each check, at least 8, none of them trained on; empty: 16
            open questions that come with this package.
        max_new_tokens: Longest answer; a check writes fewer where the time share asks for it.
        time_share: Most of the training's time that checks may take, from its start on.
        max_checks: Most checks of a run, spread evenly; the time share may allow fewer.
        check_every_steps: Fixed steps between checks, whatever they cost; null: as the time share allows.
        min_unique_trigram_ratio: Alarm below.
        max_self_bleu: Alarm above.
        min_entropy_ratio: Alarm where the output distribution's entropy falls below this part of the start's.
        max_identical_ratio: Alarm where more of the answers than this are the same.
        max_repetition_ratio: Alarm where more of an answer than this repeats itself.
        hysteresis: How far back inside its limit a raised measure must come to be lowered again, in parts of
            the limit.
        min_signals: Raised measures that are an alarm at once; fewer are one at the ``patience``-th check.
        patience: Checks in a row.
        checkpoint_every_steps: Most steps from one healthy checkpoint to the next; a run of under four times
            as many has four.
        remedies: In the order in which they are added.
        rate_factor: Of ``lower_rate``: multiplies the learning rate, once more at each further alarm.
        low_rate_steps: For how many steps; all that are left, where those are fewer.
        noise_alpha: Of ``embedding_noise``: size of the noise on the embedded tokens while training.

    Raises:
        ValueError: Settings contradict each other.
    """

    stage_ratios: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(default=None, min_length=1)
    warmup_ratio: Ratio | None = 0.3
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    general_ratio: float = Field(default=0.0, ge=0, lt=1)
    general_text: str = GENERAL_TEXT
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    mlp_dropout: float = Field(default=0.0, ge=0, lt=1)
    guard: bool = True
    prompts: list[str] = Field(default=[])
    max_new_tokens: int = Field(default=16, ge=8)
    time_share: float = Field(default=0.1, gt=0, lt=1)
    max_checks: int = Field(default=40, ge=1)
    check_every_steps: int | None = Field(default=None, ge=1)
    min_unique_trigram_ratio: Ratio = 0.3
    max_self_bleu: Ratio = 0.7
    min_entropy_ratio: Ratio = 0.25
    max_identical_ratio: Ratio = 0.5
    max_repetition_ratio: Ratio = 0.7
    hysteresis: float = Field(default=0.1, ge=0, lt=1)
    min_signals: int = Field(default=2, ge=1, le=5)
    patience: int = Field(default=2, ge=1)
    checkpoint_every_steps: int = Field(default=500, ge=1)
    remedies: list[Remedy] = Field(default=["lower_rate", "new_order", "embedding_noise"])
    rate_factor: float = Field(default=0.1, gt=0, lt=1)
    low_rate_steps: int = Field(default=500, ge=1)
    noise_alpha: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _enough_prompts(self) -> Self:
        different = len({prompt.strip() for prompt in self.prompts})
        if self.prompts and (different < FEWEST_PROMPTS or "" in {prompt.strip() for prompt in self.prompts}):
            raise ValueError(
                f"prompts: {different} different ones are too few for a stable estimate: give "
                f"{FEWEST_PROMPTS} or more, none of them empty, or leave 'prompts' out for the packaged ones"
            )
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        """A limit that every answer is past, or that a raised measure can never come back over."""
        smallest, back = 1.0 / (len(self.prompts) or DEFAULT_PROMPTS), self.hysteresis
        always = {
            "min_unique_trigram_ratio": self.min_unique_trigram_ratio * (1.0 + back) >= 1.0,
            "min_entropy_ratio": self.min_entropy_ratio * (1.0 + back) >= 1.0,
            "max_self_bleu": self.max_self_bleu == 0.0,
            "max_identical_ratio": self.max_identical_ratio * (1.0 - back) < smallest,
            "max_repetition_ratio": self.max_repetition_ratio == 0.0,
        }
        for name, broken in always.items():
            if broken:
                raise ValueError(
                    f"{name} = {getattr(self, name)} contradicts what healthy answers reach (with "
                    f"hysteresis {back}): they would be called collapsed for ever"
                )
        return self

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """A setting that would not act is refused."""
        given = self.changed()
        without = {
            "check_every_steps": {"time_share", "max_checks"} & given if self.check_every_steps else set(),
            "guard: false": _OF_GUARD & given if not self.guard else set(),
            "general_ratio: 0": {"general_text"} & given if self.general_ratio == 0.0 else set(),
            "remedies without lower_rate": {"rate_factor", "low_rate_steps"} & given
            if "lower_rate" not in self.remedies
            else set(),
            "remedies without embedding_noise": {"noise_alpha"} & given
            if "embedding_noise" not in self.remedies
            else set(),
        }
        for cause, idle in without.items():
            if idle:
                raise ValueError(f"'{min(idle)}' has no effect with {cause}")
        twice = sorted({name for name in self.remedies if self.remedies.count(name) > 1})
        if twice:
            raise ValueError(f"'remedies' names {twice[0]!r} twice")
        return self


_OF_GUARD = frozenset(
    {
        "check_every_steps",
        "checkpoint_every_steps",
        "hysteresis",
        "low_rate_steps",
        "max_checks",
        "max_identical_ratio",
        "max_new_tokens",
        "max_repetition_ratio",
        "max_self_bleu",
        "min_entropy_ratio",
        "min_signals",
        "min_unique_trigram_ratio",
        "noise_alpha",
        "patience",
        "prompts",
        "rate_factor",
        "remedies",
        "time_share",
    }
)
