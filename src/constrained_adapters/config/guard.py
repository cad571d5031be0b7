"""``guard:`` of crma.yaml, and the arguments of the forgetting guard in anybody's own script."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constrained_adapters.config.base import Settings

Increase = Annotated[float, Field(gt=0.0)]
Action = Literal["stop", "strengthen", "roll_back"]


class GuardConfig(Settings):
    """What watches old domains while a new one is learnt, and what it does when one gets worse.

    Attributes:
        action: ``stop``: the training ends there. ``strengthen``: the constraint gets stronger and training
            goes on. ``roll_back``: weights and optimizer go back to the last check at which all was well, and
            on from there at a lower rate.
        max_increase: How much the loss of an old domain may rise, as a share of what it was when the domain
            was learnt; one number, or one for each domain (those left out may rise by 0.1).
        every_steps: A check is due after so many steps.
        max_time_ratio: Most of the training's time that checks may take; a check that would cost more waits.
        probe_rows: Examples of each domain that are looked at.
        rate_factor: Of ``roll_back``: the learning rate is multiplied by it each time.
        max_actions: After so many strengthenings or roll-backs the next one stops the training.

    Raises:
        ValueError: A setting has no effect on the action.
    """

    action: Action = "stop"
    max_increase: Increase | dict[str, Increase] = 0.1
    every_steps: int = Field(default=10, ge=1)
    max_time_ratio: float = Field(default=0.1, gt=0.0, le=1.0)
    probe_rows: int = Field(default=8, ge=1)
    rate_factor: float = Field(default=0.5, gt=0.0, lt=1.0)
    max_actions: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """A setting that would not act is refused."""
        idle = {"stop": {"rate_factor", "max_actions"}, "strengthen": {"rate_factor"}, "roll_back": set()}
        for name in sorted(idle[self.action] & self.changed()):
            raise ValueError(f"{name!r} has no effect with action: {self.action}")
        return self

    def limit(self, domain: str) -> float:
        """How much this domain's loss may rise, as a share.

        >>> GuardConfig(max_increase={"law": 0.2}).limit("law"), GuardConfig().limit("law")
        (0.2, 0.1)
        """
        if isinstance(self.max_increase, float):
            return self.max_increase
        return self.max_increase.get(domain, 0.1)
