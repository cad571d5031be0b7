"""The sections of ``crma.yaml``.

All models refuse unknown keys. A ``crma.yaml`` is read by
:func:`constrained_adapters.config.yaml_file.read_config`, which adds file and line to each error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from constrained_adapters.config.base import Settings
from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.crma import Auto, ConstraintType, Rank, Strength, Weight, check_auto_strength
from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.config.names import DomainName, check_name


class BaseConfig(Settings):
    """Which base model, and how it is loaded."""

    model: str = "embedded"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    quantization: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    trust_remote_code: bool = False


class DomainConfig(Settings):
    """One domain: its name and where its examples come from."""

    name: DomainName
    data: str | None = None
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder of them, ``packaged:NAME`` or a hub
    data set."""
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    """Files of a split that stands already, instead of ``data``."""
    prompt: str | None = None
    answer: str | None = None
    messages: str | None = None
    text: str | None = None
    choices: str | None = None
    """Names of columns; left out, they are detected."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    max_train: int | None = Field(default=None, ge=1)
    max_validation: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    keywords: list[str] | None = None
    """A prompt that has one of them is routed to this domain."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.train is None):
            raise ValueError(
                f"domain {self.name!r} needs either 'data' or 'train' (with 'validation' and 'test')"
            )
        return self


class AdapterConfig(Settings):
    """The adapter that each domain gets."""

    rank: Rank | Auto = 16
    residual_scaling: float = Field(default=2.0, gt=0.0)
    layers: list[str] | Literal["auto"] = "auto"


class TrainingConfig(Settings):
    """How each domain is trained."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine", "staged"] = "cosine"
    stage_ratios: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(default=None, min_length=1)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    max_length_tokens: int = Field(default=256, ge=8)
    share_prefixes: bool = True
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    gradient_checkpointing: bool = False
    optimizer: str = "adamw_torch"
    checkpoint_every_steps: int = Field(default=100, ge=1)
    report_to: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give 'steps' or 'epochs', not both")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", 3.0)
        return self

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if self.schedule == "staged" and self.stage_ratios is None:
            object.__setattr__(self, "stage_ratios", [0.1, 0.3, 1.0])
        if self.schedule != "staged" and self.stage_ratios is not None:
            raise ValueError("'stage_ratios' has no effect without 'schedule: staged'")
        return self


class MethodConfig(Settings):
    """One method that is taught the sequence: recipes joined by ``+``, and what differs from their rows."""

    recipe: str
    name: str = ""
    learning_rate: float | None = Field(default=None, gt=0)
    constraint_strength: Strength | Auto | None = None
    constraint_type: ConstraintType | None = None
    gradient_memory_size: int | None = Field(default=None, ge=1)
    protect_base: bool | None = None
    base_text: str | None = None
    penalty_weight: Weight | dict[str, Weight] | None = None
    replay_ratio: float | None = Field(default=None, ge=0, le=1)
    replay_capacity: int | None = Field(default=None, ge=1)
    replay_capacity_bytes: int | None = Field(default=None, ge=1)
    replay_selection: Literal["reservoir", "highest_loss", "diverse"] | None = None
    generated_ratio: float | None = Field(default=None, ge=0, le=1)
    generated_examples: int | None = Field(default=None, ge=1)
    prompt_weight: float | None = Field(default=None, gt=0)
    general_ratio: float | None = Field(default=None, ge=0, le=1)
    general_text: str | None = None
    golden_ratio: float | None = Field(default=None, ge=0, le=1)
    golden_set: str | None = None
    ewc_decay: float | None = Field(default=None, ge=0, le=1)
    gem_margin: Weight | None = None
    gem_rows: int | None = Field(default=None, ge=1)
    ogd_directions: int | None = Field(default=None, ge=1)
    frozen_ratio: float | None = Field(default=None, ge=0, le=1)
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    distillation_weight: Weight | None = None
    distillation_temperature: float | None = Field(default=None, gt=0)
    distillation_top_k: int | None = Field(default=None, ge=1)
    domain_layers: dict[DomainName, list[str]] | None = None
    domain_ranks: dict[DomainName, Rank] | None = None
    rate_by_importance: Literal["layer", "parameter"] | None = None
    slowest_rate_ratio: float | None = Field(default=None, gt=0, le=1)
    shared_rank: Annotated[int, Field(ge=0, le=4096)] | None = None
    num_layers: int | None = Field(default=None, ge=0)
    width: int | None = Field(default=None, ge=1)
    stm_threshold: float | None = Field(default=None, gt=1)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    @field_validator("recipe")
    @classmethod
    def _evenly_spaced(cls, recipe: str) -> str:
        return " + ".join(part.strip() for part in recipe.split("+"))

    @model_validator(mode="after")
    def _auto_suits_type(self) -> Self:
        check_auto_strength(self.constraint_strength, self.constraint_type)
        return self

    @model_validator(mode="after")
    def _default_name(self) -> Self:
        object.__setattr__(self, "name", check_name(self.name or self.recipe))
        return self


Metric = Literal["loss", "exact_match", "choice_accuracy", "token_f1"]


class EvaluationConfig(Settings):
    """What is scored after each domain."""

    split: Literal["validation", "test"] = "test"
    metrics: list[Metric] | None = Field(default=None, min_length=1)
    max_items: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    general: str | None = "packaged:general"
    general_items: int = Field(default=40, ge=1)
    num_samples: int = Field(default=3, ge=0)
    max_new_tokens: int = Field(default=24, ge=1)


class RunConfig(Settings):
    """A whole ``crma.yaml``."""

    title: str = "constrained-adapters run"
    output: Path = Path("crma-run")
    seed: int = Field(default=0, ge=0)
    private: bool | Literal["encrypted"] = False
    diagnosis: Literal["data", "full", "off"] = "data"
    base: BaseConfig = Field(default_factory=BaseConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    methods: list[MethodConfig] = Field(default_factory=lambda: [MethodConfig(recipe="crma")], min_length=1)
    domains: list[DomainConfig] = Field(min_length=1)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    guard: GuardConfig | None = None
    prevent_collapse: bool | PreventCollapseConfig = False

    @property
    def collapse_settings(self) -> PreventCollapseConfig | None:
        """What ``prevent_collapse`` asks for; None where it is off."""
        return PreventCollapseConfig() if self.prevent_collapse is True else self.prevent_collapse or None

    @field_validator("domains", "methods")
    @classmethod
    def _unique(cls, items: list[Any]) -> list[Any]:
        names = [item.name.casefold() for item in items]
        twice = sorted({item.name for item in items if names.count(item.name.casefold()) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(map(repr, twice))} (case alone is no difference)")
        return items
