"""What every section of the settings is: frozen, without unknown settings, its values out of tracebacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic import Field as Setting

Positive = Annotated[int, Setting(ge=1)]


class Section(BaseModel):
    """One section of featurestore.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class OfFiles(Section):
    """A section that names files. A key put there itself would be shown and logged."""

    @model_validator(mode="before")
    @classmethod
    def _names_files(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, str) and ("-----BEGIN" in value or "\n" in value.strip()):
                raise ValueError(f"{name} holds the text of a file; set {name} to the path of the file instead")
        return values


def listed(value: Any) -> Any:
    """The environment has no lists: `RS256,ES256`."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
