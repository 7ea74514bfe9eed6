"""The rules of one field's contract: every fault as (what, way out), in the order a reader meets them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featurestore.dtypes import (
    FLOATS,
    INTEGERS,
    Bytes,
    DType,
    List,
    String,
    Vector,
    dtype_fault,
    is_numeric,
)
from featurestore.field import Field
from featurestore.labels import TIERS
from featurestore.registry.names import column_fault
from featurestore.registry.values import value_fault
from featurestore.view_rules import ON_VIOLATION

Fault = tuple[str, str]

#: Links are shown to everybody, so they carry no user name and no password.
_ADDRESS = re.compile(r"https?://[^\s/?#@]+([/?#]\S*)?")

LOWER, UPPER = ("ge", "gt"), ("le", "lt")
_TYPES = "Bool, Int32, Int64, Float32, Float64, String, Bytes, Timestamp, Date, Decimal(p, s), List(t) or Vector(t, n)"


def field_faults(field: Field) -> Iterator[Fault]:
    """All that is wrong with a field."""
    if fault := column_fault(field.name):
        yield fault
    if fault_of_type := dtype_fault(field.dtype):
        yield fault_of_type, f"choose {_TYPES}"
        return  # values cannot be checked against it
    for flag in ("nullable", "allow_nan"):
        if not isinstance(getattr(field, flag), bool):
            yield f"{flag}={getattr(field, flag)!r} is not a bool", "write True or False"
    if field.on_violation is not None and field.on_violation not in ON_VIOLATION:
        yield f"on_violation={field.on_violation!r} is unknown", f"choose {', '.join(map(repr, ON_VIOLATION))}"
    yield from label_faults(field)
    bounds_fit = True
    for fault in _bound_faults(field):
        bounds_fit = False
        yield fault
    yield from _allowed_faults(field, bounds_fit)
    pattern_faults = list(_pattern_faults(field))
    length_faults = list(_length_faults(field))
    yield from pattern_faults
    yield from length_faults
    if not pattern_faults and not length_faults:
        yield from _allowed_text_faults(field)
    if field.default is not None:
        if fault_of_value := value_fault(field.default, field.dtype):
            yield f"default={field.default!r} {fault_of_value}", f"give a value of {field.dtype}"
        elif bounds_fit and not pattern_faults and not length_faults:
            yield from _default_faults(field)


def label_faults(definition: Any) -> Iterator[Fault]:
    """What is wrong with the labels."""
    for name in ("description", "owner"):
        if not isinstance(getattr(definition, name, ""), str):
            yield f"{name}={getattr(definition, name)!r} is not a text", f'write {name}="..."'
    tier = getattr(definition, "tier", "")
    if tier != "" and tier not in TIERS:
        yield f"tier={tier!r} is unknown", f"choose {', '.join(map(repr, TIERS))}, or leave it out"
    tags = getattr(definition, "tags", {})
    if not isinstance(tags, Mapping) or not all(isinstance(text, str) for pair in tags.items() for text in pair):
        yield f"tags={tags!r} does not map texts to texts", 'write tags={"team": "weather"}'
    yield from _link_faults(getattr(definition, "links", {}))


def _link_faults(links: Any) -> Iterator[Fault]:
    way_out = 'write links={"runbook": "https://..."}'
    if not isinstance(links, Mapping) or not all(isinstance(name, str) and name for name in links):
        yield f"links={links!r} does not map names to addresses", way_out
        return
    for name, address in links.items():
        if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
            what = f"link {name!r} is {address!r}, which is not an http or https address without a login"
            yield what, way_out


def _bound_faults(field: Field) -> Iterator[Fault]:
    declared = {name: value for name in (*LOWER, *UPPER) if (value := getattr(field, name)) is not None}
    if field.allow_nan and field.dtype not in FLOATS:
        yield f"allow_nan=True on a {field.dtype}", "only float32 and float64 know NaN; leave it out"
    if declared and not is_numeric(field.dtype):
        yield f"{', '.join(declared)} on a {field.dtype}", "bounds are for numbers; use allowed_values, or the source"
        return
    sound = True
    for name, value in declared.items():
        fault = "is NaN" if isinstance(value, float) and math.isnan(value) else value_fault(value, field.dtype)
        if fault:
            sound = False
            yield f"bound {name}={value!r} {fault}", f"give a number that fits {field.dtype}"
    if sound and _admits_nothing(field):
        texts = ", ".join(f"{name}={value!r}" for name, value in declared.items())
        yield f"no value keeps the bounds {texts}", "mend one of them"


def lower_bound(field: Field) -> tuple[Any, bool] | None:
    """(the greatest lower bound, whether the value itself is excluded), or None; integers never exclude."""
    bounds = [(getattr(field, name), name == "gt") for name in LOWER if getattr(field, name) is not None]
    if not bounds:
        return None
    value, strict = max(bounds)
    return (value + 1, False) if strict and field.dtype in INTEGERS else (value, strict)


def upper_bound(field: Field) -> tuple[Any, bool] | None:
    """(the least upper bound, whether the value itself is excluded), or None; integers never exclude."""
    bounds = [(getattr(field, name), name == "lt") for name in UPPER if getattr(field, name) is not None]
    if not bounds:
        return None
    value, strict = min(bounds, key=lambda bound: (bound[0], not bound[1]))
    return (value - 1, False) if strict and field.dtype in INTEGERS else (value, strict)


def _admits_nothing(field: Field) -> bool:
    lower, upper = lower_bound(field), upper_bound(field)
    if lower is None or upper is None:
        return False
    return bool(lower[0] > upper[0] or (lower[0] == upper[0] and (lower[1] or upper[1])))


def _breaks_bounds(value: Any, field: Field) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return field.bounded and not field.allow_nan
    lower, upper = lower_bound(field), upper_bound(field)
    below = lower is not None and (value < lower[0] or (lower[1] and value == lower[0]))
    above = upper is not None and (value > upper[0] or (upper[1] and value == upper[0]))
    return bool(below or above)


def _allowed_faults(field: Field, bounds_fit: bool) -> Iterator[Fault]:
    values, dtype = field.allowed_values, field.dtype
    if values is None:
        return
    if isinstance(dtype, (List, Vector)):
        yield f"allowed_values on a {dtype}", "they are for single values; leave them out"
        return
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        yield f"allowed_values={values!r} is not a list", "write a list of values"
        return
    if not values:
        yield "allowed_values is empty, so no value is allowed", "list the values, or leave it out"
    for value in values:
        if value is None:
            yield "allowed_values holds None", "nullable=True allows null; take it out"
        elif fault := _allowed_fault(value, dtype):
            yield f"allowed value {value!r} {fault}", f"give values of {dtype}"
        elif bounds_fit and field.bounded and _breaks_bounds(value, field):
            yield f"allowed value {value!r} breaks the bounds", "take it out, or widen the bounds"
    kept = [value for value in values if value is not None and not _allowed_fault(value, dtype)]
    for value in (value for value, count in Counter(kept).items() if count > 1):
        yield f"allowed value {value!r} is listed twice", "list it once"


def _allowed_text_faults(field: Field) -> Iterator[Fault]:
    for value in field.allowed_values if isinstance(field.allowed_values, tuple) else ():
        if value is None or _allowed_fault(value, field.dtype) or field.dtype not in (String, Bytes):
            continue
        if field.pattern is not None and not _matches(field.pattern, value):
            yield f"allowed value {value!r} does not match the pattern {field.pattern!r}", "take it out, or mend one"
        elif _breaks_lengths(value, field):
            yield f"allowed value {value!r} has length {len(value)}, outside the lengths", "take it out, or mend them"


def _allowed_fault(value: Any, dtype: DType) -> str | None:
    return "is NaN" if isinstance(value, float) and math.isnan(value) else value_fault(value, dtype)


def _pattern_faults(field: Field) -> Iterator[Fault]:
    if field.pattern is None:
        return
    if field.dtype != String:
        yield f"pattern on a {field.dtype}", "patterns are for strings; leave it out"
    elif not isinstance(field.pattern, str):
        yield f"pattern={field.pattern!r} is not a text", 'write pattern="[A-Z]{3}"'
    elif fault := _regex_fault(field.pattern):
        yield f"pattern {field.pattern!r} is not RE2: {fault}", "RE2 knows no lookaround and no backreferences; mend it"
    elif _regex_fault(_NAMED_GROUP.sub("(", f"(?:{field.pattern})") * _PATTERN_COPIES):
        yield (
            f"pattern {field.pattern[:80]!r} is too large a program, and would slow every load",
            "repeat less: in place of counts such as {1,500}, write + and declare max_length",
        )


def _length_faults(field: Field) -> Iterator[Fault]:
    sound = True
    for name in ("min_length", "max_length"):
        value = getattr(field, name)
        if value is None:
            continue
        if field.dtype not in (String, Bytes) and not isinstance(field.dtype, List):
            sound = False
            yield f"{name} on a {field.dtype}", "lengths are for string, bytes and list; leave it out"
        elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
            sound = False
            yield f"{name}={value!r} is not a length", "give a whole number from 0"
    if sound and field.min_length is not None and field.max_length is not None and field.min_length > field.max_length:
        yield f"min_length={field.min_length} is above max_length={field.max_length}", "mend one of them"


def _default_faults(field: Field) -> Iterator[Fault]:
    value: Any = field.default
    shown = f"default={value!r}"
    way_out = "choose a default that keeps the contract"
    if is_numeric(field.dtype) and _breaks_bounds(value, field):
        yield f"{shown} breaks the bounds", way_out
    if isinstance(field.allowed_values, tuple) and value not in _rounded_like(field):
        yield f"{shown} is not an allowed value", way_out
    if field.pattern is not None and not _matches(field.pattern, value):
        yield f"{shown} does not match the pattern {field.pattern!r}", way_out
    if _breaks_lengths(value, field):
        yield f"{shown} has length {len(value)}, outside min_length and max_length", way_out


def _breaks_lengths(value: Any, field: Field) -> bool:
    too_short = field.min_length is not None and len(value) < field.min_length
    return too_short or (field.max_length is not None and len(value) > field.max_length)


def _rounded_like(field: Field) -> tuple[object, ...]:
    """The allowed values, with the default itself where rounding to the dtype makes it one of them."""
    allowed = tuple(field.allowed_values or ())
    rounded = Field(name=field.name, dtype=field.dtype, allowed_values=[field.default]).allowed_values
    return (*allowed, field.default) if rounded and rounded[0] in allowed else allowed


# ------------------------------------------------------------------ RE2, in the gate's own engine

#: RE2 takes time in proportion to text x program, and refuses a program that does not fit its 8 MiB; a pattern may take
#: a 16th of that, so that many of it must fit: measured, at most some 20 us a byte, and 0.002 for usual patterns.
_PATTERN_COPIES = 16
_NAMED_GROUP = re.compile(r"\(\?P?<[A-Za-z_]\w*>")


def _regex_fault(pattern: str) -> str | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        # As it stands first: `a)|(?:b` would close the group that holds it to the whole text.
        for text in (pattern, rf"\A(?:{pattern})\z"):
            pc.match_substring_regex(pa.array([""]), text)
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        return str(error).removeprefix("Invalid regular expression: ")
    return None


def _matches(pattern: str, value: str) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    return bool(pc.match_substring_regex(pa.array([value]), rf"\A(?:{pattern})\z")[0].as_py())
