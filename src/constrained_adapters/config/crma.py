"""The settings of the library's adapters."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from constrained_adapters.config.base import Settings
from constrained_adapters.config.errors import config_error

ConstraintType = Literal["fisher", "diagonal", "gem", "agem", "orthogonal", "none"]
Auto = Literal["auto"]
Rank = Annotated[int, Field(ge=1, le=4096)]
Strength = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]

STRICTEST_AUTO = 0.99
"""The highest strength that ``constraint_strength="auto"`` may choose."""

PENALTY_WEIGHT = 100.0
"""λ of the penalty that ``fisher`` puts on what stays open."""


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
