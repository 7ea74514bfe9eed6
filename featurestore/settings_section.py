"""What every section of the settings is: frozen, without unknown settings, its values out of tracebacks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting

Positive = Annotated[int, Setting(ge=1)]


class Section(BaseModel):
    """One section of featurestore.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def listed(value: Any) -> Any:
    """The environment has no lists: `RS256,ES256`."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
