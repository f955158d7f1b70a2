"""What every table of a scenario has in common."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """Frozen; a key that is not listed is a mistake, and so is a value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
