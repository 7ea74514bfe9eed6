"""Whether a condition can never hold within the declared bounds, as far as ranges of numbers tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from sqlglot import exp

from featurestore.dtypes import FLOATS, is_numeric
from featurestore.field import Field
from featurestore.registry.validate_field import lower_bound, upper_bound

#: (least, greatest) value; an infinity leaves a side open.
Range = tuple[Fraction | float, Fraction | float]
_ANY: Range = (-math.inf, math.inf)
#: More than a few roundings of a float32 can move a value, as a share of it.
_ROUNDING = Fraction(1, 1_000_000)


def never_holds(node: exp.Expr, fields: Mapping[str, Field]) -> bool:
    """True only when no values within the bounds of `fields` make the condition true."""
    match node:
        case exp.Paren():
            return never_holds(node.this, fields)
        case exp.And():
            return never_holds(node.this, fields) or never_holds(node.expression, fields)
        case exp.Or():
            return never_holds(node.this, fields) and never_holds(node.expression, fields)
        case exp.Between():
            (low, high), floor, ceiling = (_range(part, fields) for part in (node.this, *_limits(node)))
            return bool(high < floor[0] or low > ceiling[1] or floor[0] > ceiling[1])
        case exp.LT() | exp.LTE() | exp.GT() | exp.GTE() | exp.EQ():
            return _apart(node, _range(node.this, fields), _range(node.expression, fields))
    return False


def _limits(node: exp.Between) -> tuple[exp.Expr, exp.Expr]:
    return node.args["low"], node.args["high"]


def _apart(node: exp.Expr, left: Range, right: Range) -> bool:
    match node:
        case exp.LT():
            return left[0] >= right[1]
        case exp.LTE():
            return left[0] > right[1]
        case exp.GT():
            return left[1] <= right[0]
        case exp.GTE():
            return left[1] < right[0]
    return left[0] > right[1] or left[1] < right[0]


def _range(node: exp.Expr, fields: Mapping[str, Field]) -> Range:
    match node:
        case exp.Paren():
            return _range(node.this, fields)
        case exp.Literal() if not node.is_string:
            return (Fraction(node.this),) * 2
        case exp.Column() if node.name in fields:
            return _declared(fields[node.name])
        case exp.Neg():
            low, high = _range(node.this, fields)
            return -high, -low
        case exp.Add():
            return _added(_range(node.this, fields), _range(node.expression, fields))
        case exp.Sub():
            low, high = _range(node.expression, fields)
            return _added(_range(node.this, fields), (-high, -low))
        case exp.Mul():
            (left, left_high), (right, right_high) = _range(node.this, fields), _range(node.expression, fields)
            if isinstance(left, Fraction) and isinstance(right, Fraction) and (left, right) == (left_high, right_high):
                return (left * right,) * 2
    return _ANY


def _added(left: Range, right: Range) -> Range:
    return _sum(left[0], right[0], -math.inf), _sum(left[1], right[1], math.inf)


def _sum(left: Fraction | float, right: Fraction | float, open_side: float) -> Fraction | float:
    return open_side if isinstance(left, float) or isinstance(right, float) else left + right


def _declared(field: Field) -> Range:
    """What the bounds admit. NaN, where it is allowed, is greater than every number; floats get room for rounding."""
    if not is_numeric(field.dtype) or (field.dtype in FLOATS and field.allow_nan):
        return _ANY
    lower, upper = lower_bound(field), upper_bound(field)
    low = -math.inf if lower is None or _infinite(lower[0]) else Fraction(lower[0])
    high = math.inf if upper is None or _infinite(upper[0]) else Fraction(upper[0])
    if field.dtype not in FLOATS:
        return low, high
    # An open side stays open.
    low = low - abs(low) * _ROUNDING if isinstance(low, Fraction) else low
    return low, high + abs(high) * _ROUNDING if isinstance(high, Fraction) else high


def _infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)
