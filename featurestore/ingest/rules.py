"""The contract of a field as vectorised rules: each marks the rows that break it. Null passes every rule but one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import FLOATS, Bytes, String
from featurestore.field import Field
from featurestore.ingest.breach import Mask


@dataclass(frozen=True, slots=True)
class Rule:
    """A named demand on the canonical values of a field; `breaches` marks the rows that break it."""

    name: str
    says: str
    breaches: Callable[[pa.Array], Mask]


def field_rules(field: Field) -> Iterator[Rule]:
    """The rules a field declares, in the order in which a row's breach is named."""
    if not field.nullable:
        yield Rule("not_null", f"{field.name} is null", _nulls)
    yield from _bounds(field)
    if field.allowed_values is not None:
        allowed = pa.array(list(field.allowed_values), arrow_type(field.dtype))
        yield Rule(
            "allowed_values",
            f"{field.name} is none of the allowed values",
            lambda column: _broken(pc.is_in(column, value_set=allowed), column),
        )
    if field.pattern is not None:
        whole = rf"\A(?:{field.pattern})\z"
        yield Rule(
            "pattern",
            f"{field.name} does not match {field.pattern}",
            lambda column: _broken(pc.match_substring_regex(column, whole), column),
        )
    yield from _lengths(field)


def _bounds(field: Field) -> Iterator[Rule]:
    tests = {
        "ge": (field.ge, pc.greater_equal, "below the least allowed"),
        "gt": (field.gt, pc.greater, "not above"),
        "le": (field.le, pc.less_equal, "above the greatest allowed"),
        "lt": (field.lt, pc.less, "not below"),
    }
    for name, (bound, holds, words) in tests.items():
        if bound is not None:
            limit = pa.scalar(bound, arrow_type(field.dtype))
            yield Rule(name, f"{field.name} is {words} {bound}", _bound_breach(field, limit, holds))


def _bound_breach(field: Field, limit: pa.Scalar, holds: Callable[..., pa.Array]) -> Callable[[pa.Array], Mask]:
    def breaches(column: pa.Array) -> Mask:
        kept = holds(column, limit)
        # Every comparison with NaN is false, so NaN breaks the bound unless the field allows it.
        if field.allow_nan and field.dtype in FLOATS:
            kept = pc.or_(kept, pc.is_nan(column))
        return _broken(kept, column)

    return breaches


def _lengths(field: Field) -> Iterator[Rule]:
    measures = {String: pc.utf8_length, Bytes: pc.binary_length}
    measure = measures.get(field.dtype, pc.list_value_length)  # type: ignore[call-overload]
    if field.min_length is not None:
        least = field.min_length
        yield Rule(
            "min_length",
            f"{field.name} is shorter than {least}",
            lambda column: _broken(pc.greater_equal(measure(column), least), column),
        )
    if field.max_length is not None:
        most = field.max_length
        yield Rule(
            "max_length",
            f"{field.name} is longer than {most}",
            lambda column: _broken(pc.less_equal(measure(column), most), column),
        )


def _nulls(column: pa.Array) -> Mask:
    return column.is_null().to_numpy(zero_copy_only=False)


def _broken(kept: pa.Array, column: pa.Array) -> Mask:
    """Rows where the rule is false; where the value is null it holds."""
    if kept.false_count == 0:
        return np.zeros(len(kept), dtype=np.bool_)
    broken = pc.and_(pc.invert(kept.fill_null(True)), column.is_valid())
    return broken.to_numpy(zero_copy_only=False)
