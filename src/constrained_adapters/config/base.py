"""What every setting model of this package is made from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values are checked again when assigned."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, allow_inf_nan=False
    )

    def changed(self) -> set[str]:
        """Names of the settings that differ from their default.

        Not those that were given: a file that a run wrote names them all.
        """
        fields = type(self).model_fields
        return {
            name
            for name, field in fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }
