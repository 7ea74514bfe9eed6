"""One column of a feature view with its contract."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurestore.dtypes import DType, Float32
from featurestore.location import Location, definition_site


@dataclass(frozen=True, kw_only=True)
class Field:
    """A named, typed column and the rules its values keep.

    Bounds are rounded to `dtype` here, once, and compared in it, so `le=0.1` on a float32 admits the float32
    nearest to 0.1. NaN breaks any bound unless `allow_nan`. `pattern` is RE2 and must match the whole string.
    Lengths count Unicode code points of a string, bytes of a bytes value and elements of a list.
    `default` fills the field only in rows written before the field existed. `on_violation` overrides the view's.
    """

    name: str
    dtype: DType
    nullable: bool = True
    ge: object = None
    gt: object = None
    le: object = None
    lt: object = None
    allow_nan: bool = False
    allowed_values: Sequence[object] | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    default: object = None
    on_violation: str | None = None
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    at: Location = field(default_factory=definition_site, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for bound in ("ge", "gt", "le", "lt"):
            object.__setattr__(self, bound, _rounded(getattr(self, bound), self.dtype))
        if self.allowed_values is not None and not isinstance(self.allowed_values, str):
            object.__setattr__(self, "allowed_values", tuple(_rounded(v, self.dtype) for v in self.allowed_values))

    @property
    def bounded(self) -> bool:
        """Whether any bound is declared."""
        return any(bound is not None for bound in (self.ge, self.gt, self.le, self.lt))


def _rounded(value: object, dtype: DType) -> object:
    if dtype == Float32 and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        try:
            return float(struct.unpack("<f", struct.pack("<f", value))[0])
        except OverflowError:
            return value  # does not fit: validation says so, with file and line
    return value
