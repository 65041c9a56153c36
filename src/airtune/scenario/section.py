"""What all tables of a scenario have in common: strict types, and numbers with a range."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the scenario file: frozen, and unknown keys are errors."""

    # strict: true is not 1 and "3" is not 3; TOML already has the types.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
