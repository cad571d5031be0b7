"""Every setting: :class:`CRMAConfig` for the library and the strict models of ``crma.yaml``.

All models refuse unknown keys. A ``crma.yaml`` is read by
:func:`constrained_adapters.yaml_config.read_config`, which adds file and line to each error.
"""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from constrained_adapters.collapse_config import PreventCollapseConfig
from constrained_adapters.guard_config import GuardConfig
from constrained_adapters.setting_base import Settings
from constrained_adapters.setting_errors import config_error

ConstraintType = Literal["fisher", "diagonal", "gem", "agem", "orthogonal", "none"]
Auto = Literal["auto"]
Rank = Annotated[int, Field(ge=1, le=4096)]
Strength = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]

STRICTEST_AUTO = 0.99
"""The highest strength that ``constraint_strength="auto"`` may choose."""

PENALTY_WEIGHT = 100.0
"""λ of the penalty that ``fisher`` puts on what stays open."""

RESERVED_NAMES = frozenset({"base", "auto", "general", "default"})


def check_domain_name(name: str) -> str:
    """Return a domain's name, NFC-normalised, or say why it cannot be one.

    Letters and digits of any script, ``_``, ``-`` and inner spaces are allowed: the name is a
    folder, an adapter and later a model's name on the server.

    >>> check_domain_name("数学")
    '数学'
    >>> check_domain_name("../x")
    Traceback (most recent call last):
    ...
    ValueError: '../x' cannot be a domain's name: use letters, digits, '_', '-' and inner spaces

    Raises:
        ValueError: The name cannot be a domain's.
    """
    normal = check_name(name, "domain")
    if normal.lower() in RESERVED_NAMES or hasattr(dict, normal):
        raise ValueError(f"{name!r} is a reserved name: choose another, such as '{normal}_domain'")
    return normal


def check_name(name: str, kind: str = "method") -> str:
    """Return what can name a folder, NFC-normalised; a method may have a name that no domain may, and ``+``.

    Raises:
        ValueError: It has characters that a folder's name should not have.
    """
    normal = unicodedata.normalize("NFC", name)
    signs = "_-+ " if kind == "method" else "_- "
    allowed = all(
        char.isalnum() or char in signs or unicodedata.category(char).startswith("M") for char in normal
    )
    if (
        not normal
        or not allowed
        or normal != normal.strip()
        or normal[0] in "-_+"
        or len(normal.encode()) > 100
    ):
        or_plus = ", '+'" if "+" in signs else ""
        raise ValueError(
            f"{name!r} cannot be a {kind}'s name: use letters, digits, '_', '-'{or_plus} and inner spaces"
        )
    return normal


DomainName = Annotated[str, AfterValidator(check_domain_name)]


class CRMAConfig(Settings):
    """Settings of the CRMA adapters of one base model.

    A CRMA adapter is a LoRA adapter: ``ΔW = residual_scaling · B · A`` on ``domain_specific_layers``
    (A: r × d_in, B: d_out × r), trained under a constraint from the memories of the finished domains.

    Attributes:
        base_model_name: A hub name, a folder, or ``"embedded"`` for the packaged default model.
        adapter_dim: Rank r of each adapter, or ``"auto"``: chosen for each domain from its own examples.
        constraint_strength: Share of what each memory protects that no step may touch, 0 … 1.
            0 is plain LoRA, bit for bit; 1 closes every direction, so nothing is learnt. ``"auto"``: the
            strictest that leaves the domain room to learn; see :mod:`constrained_adapters.model.auto`.
        gradient_memory_size: Most examples per domain that its memory is made from.
        residual_scaling: The factor in front of B · A.
        domain_specific_layers: Names of the adapted linear layers, or ``"auto"`` for the attention
            projections that suit the architecture.
        penalty_weight: With type ``fisher``: λ of the penalty on what stays open, see
            :mod:`constrained_adapters.constraints.output_change`; 0 switches it off.
        use_gradient_constraint: False switches the constraint off (as strength 0 does).
        constraint_type: How the memory binds the step; see :mod:`constrained_adapters.constraints`.
        protect_base: Also keep a memory of the base's own knowledge, from text that it writes itself.
        layers_to_transform: Indices of the decoder layers that are adapted; None adapts all.
        dtype: Weights of the base: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        quantization: ``"4bit"`` or ``"8bit"`` (bitsandbytes; GPU or CPU), or None.
        gradient_checkpointing: Trade time for memory while training.
        init_std: Standard deviation of the start values of B; those of A are 1/√d_in.

    Raises:
        ConfigError: An unknown field or a value out of range.

    >>> CRMAConfig(base_model_name="embedded", constraint_strength=0.8).adapter_dim
    64
    """

    base_model_name: str
    adapter_dim: Rank | Auto = 64
    constraint_strength: Strength | Auto = 0.8
    penalty_weight: Weight = PENALTY_WEIGHT
    gradient_memory_size: int = Field(default=1000, ge=1)
    residual_scaling: float = Field(default=0.2, gt=0.0)
    domain_specific_layers: list[str] | Literal["auto"] = Field(default=["q_proj", "v_proj", "o_proj"])
    use_gradient_constraint: bool = True
    constraint_type: ConstraintType = "fisher"
    protect_base: bool = True
    layers_to_transform: list[int] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["4bit", "8bit"] | None = None
    gradient_checkpointing: bool = False
    init_std: float = Field(default=1e-4, gt=0.0)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(error, type(self), where="CRMAConfig") from None

    @model_validator(mode="after")
    def _warn_about_strength(self) -> Self:
        if self.effective_strength == 1.0:
            warnings.warn(
                "constraint_strength=1.0 closes every direction that a memory knows: "
                "later domains learn nothing",
                stacklevel=4,
            )
        elif 0.0 < self.effective_strength < 0.7:
            warnings.warn(
                f"constraint_strength={self.effective_strength} is under 0.7: "
                "expect finished domains to be forgotten",
                stacklevel=4,
            )
        return self

    @model_validator(mode="after")
    def _auto_suits_type(self) -> Self:
        check_auto_strength(self.constraint_strength, self.constraint_type)
        return self

    @property
    def effective_strength(self) -> float:
        """The strength that acts: 0 where the constraint is switched off or of type none.

        For ``"auto"`` the strictest that may be chosen: memories are kept for it.
        """
        if not self.use_gradient_constraint or self.constraint_type == "none":
            return 0.0
        return STRICTEST_AUTO if self.constraint_strength == "auto" else self.constraint_strength


def check_auto_strength(strength: float | str | None, constraint_type: ConstraintType | None) -> None:
    """Refuse ``"auto"`` where no directions are closed whose share of a gradient could be measured.

    Raises:
        ValueError: The type is one that acts on predicted gradients.
    """
    if strength == "auto" and constraint_type in {"gem", "agem", "diagonal"}:
        raise ValueError(
            f"constraint_strength 'auto' suits the types fisher and orthogonal only, not "
            f"{constraint_type!r}: give a number"
        )


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
    max_grad_norm: float = Field(default=1.0, gt=0)
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


class EvaluationConfig(Settings):
    """What is scored after each domain."""

    split: Literal["validation", "test"] = "test"
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
