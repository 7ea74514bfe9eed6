"""A condition of a contract, from its SQL to a tree of the listed subset that every row can be judged by.

Parsed once, checked by kinds (numbers with numbers, texts with texts, nothing cast silently), and rewritten so that
each row has one answer: integers are added and multiplied without overflow as far as 128 bits reach, and a division
by zero is null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

from featurestore.compiler.names import CREATED, EVENT
from featurestore.dtypes import Bool, Bytes, Date, DType, Int32, Int64, List, String, Timestamp, Vector
from featurestore.errors import suggest
from featurestore.feature_view import FeatureView

_NUMBER, _TEXT, _BYTES, _BOOL, _TIME, _DATE, _DURATION, _LIST, _NULL = (
    "number",
    "text",
    "bytes",
    "boolean",
    "timestamp",
    "date",
    "duration",
    "list",
    "null",
)
_KINDS: Mapping[DType, str] = {Bool: _BOOL, String: _TEXT, Bytes: _BYTES, Timestamp: _TIME, Date: _DATE}

#: Bits of the integers that a type holds, without the sign; types of the engine likewise.
_BITS: Mapping[DType, int] = {Int32: 31, Int64: 63}
_CAST_BITS = {exp.DataType.Type.INT: 31, exp.DataType.Type.BIGINT: 63}

_ORDERED = frozenset({_NUMBER, _TEXT, _BYTES, _TIME, _DATE, _DURATION})
_ORDERINGS = (exp.GT, exp.GTE, exp.LT, exp.LTE)
_EQUALITIES = (exp.EQ, exp.NEQ, exp.NullSafeEQ, exp.NullSafeNEQ)
ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
#: Where integers can become larger than their type.
_GROWING = (*ARITHMETIC, exp.Neg, exp.Abs)
#: Functions that the parser takes further arguments for, with how many have a meaning here.
_ARGUMENTS_MAX: Mapping[type[exp.Expr], int] = {exp.Length: 1, exp.Floor: 1, exp.Ceil: 1, exp.Round: 2}
_COUNT = re.compile(r"-?[0-9]{1,9}")
_UNITS = frozenset({"SECOND", "SECONDS", "MINUTE", "MINUTES", "HOUR", "HOURS", "DAY", "DAYS"})
#: Functions of numbers that give numbers.
_NUMERIC = (exp.Neg, exp.Abs, exp.Floor, exp.Ceil, exp.Round)
_CASTS = {
    exp.DataType.Type.INT: _NUMBER,
    exp.DataType.Type.BIGINT: _NUMBER,
    exp.DataType.Type.FLOAT: _NUMBER,
    exp.DataType.Type.DOUBLE: _NUMBER,
    exp.DataType.Type.DECIMAL: _NUMBER,
    exp.DataType.Type.VARCHAR: _TEXT,
    exp.DataType.Type.TEXT: _TEXT,
    exp.DataType.Type.TIMESTAMPTZ: _TIME,
    exp.DataType.Type.DATE: _DATE,
}
_CASTABLE = frozenset({(_NUMBER, _NUMBER), (_BOOL, _NUMBER), (_NUMBER, _TEXT), (_TIME, _DATE), (_DATE, _TIME)})
#: Names, values and operators of one condition: the engine takes a depth of 1000.
NODES_MAX = 500
SUBSET = (
    "comparisons, AND, OR, NOT, + - * / %, IS [NOT] NULL, IS [NOT] DISTINCT FROM, IN (...), BETWEEN, CASE, CAST, "
    "coalesce, nullif, abs, floor, ceil, round, isnan, length, lower, upper, starts_with, INTERVAL and literals"
)


@dataclass
class ConditionFault(Exception):
    """Why a text is no condition of a view, and the way out."""

    what: str
    way_out: str


def columns_of(view: FeatureView) -> dict[str, DType]:
    """What the conditions of a view may name, with its type."""
    fields = {name: field.dtype for name, field in view.fields.items()}
    return {**view.join_keys, **fields, EVENT: Timestamp, CREATED: Timestamp}


def parse_condition(sql: str, columns: Mapping[str, DType]) -> exp.Expr:
    """The condition as a tree over `columns`; ConditionFault when it is no boolean of the listed subset."""
    try:
        (tree,) = parse(sql, dialect="duckdb")
    except (SqlglotError, ValueError) as error:
        raise ConditionFault(
            f"{sql!r} is not one SQL expression ({_line(error)})",
            'write a SQL boolean; quote a field whose name is a word of SQL, as in "order"',
        ) from error
    except RecursionError as error:
        raise _too_long() from error
    if tree is None:
        raise ConditionFault("it is empty", "write a SQL boolean over the fields")
    if len(list(islice(tree.walk(), NODES_MAX + 1))) > NODES_MAX:
        raise _too_long()
    kind = _Checker(columns).kind(tree)
    if kind not in (_BOOL, _NULL):
        raise ConditionFault(f"{sql!r} is a {kind}, not a boolean", "compare it with something")
    if tree.find(exp.Column) is None:
        raise ConditionFault(f"{sql!r} names no field", "name one: a condition is about a row")
    return tree


def _too_long() -> ConditionFault:
    return ConditionFault("it is too long, or nested too deeply", "write several conditions")


def condition_columns(tree: exp.Expr) -> list[str]:
    """The columns that a condition names, each once, as it names them first."""
    return list(dict.fromkeys(found.name for found in tree.find_all(exp.Column, bfs=False)))


def computable(tree: exp.Expr, columns: Mapping[str, DType]) -> exp.Expr:
    """The same condition, null where it cannot be computed, for DuckDB."""
    tree = exp.paren(tree.copy())
    for quotient in list(tree.find_all(exp.Div, exp.Mod)):
        divisor = quotient.expression
        divisor.replace(exp.Nullif(this=divisor.copy(), expression=exp.Literal.number(0)))
    for term in _terms(tree, columns):
        if term.need > 31:
            wide = "BIGINT" if term.need <= 63 else "INT128"
            for leaf in term.leaves:
                leaf.replace(exp.cast(leaf.copy(), wide, dialect="duckdb"))
    for column in tree.find_all(exp.Column):
        column.this.set("quoted", True)
    return exp.Anonymous(this="TRY", expressions=[tree])


@dataclass(frozen=True, slots=True)
class _Term:
    """A value of numbers: the `bits` of the integer that it is (0: it is none), the most that a step towards it can
    `need`, and the integers that it is made of.
    """

    bits: int
    need: int = 0
    leaves: tuple[exp.Expr, ...] = ()


def _terms(tree: exp.Expr, columns: Mapping[str, DType]) -> list[_Term]:
    """The whole computations of a tree, innermost first."""
    inside: set[int] = set()
    terms = [
        _term(node, columns, inside) for node in tree.walk() if isinstance(node, _GROWING) and id(node) not in inside
    ]
    return terms[::-1]


def _term(node: exp.Expr, columns: Mapping[str, DType], inside: set[int]) -> _Term:
    """The term of a node; it and what it is made of come to `inside`."""
    inside.add(id(node))
    if not (operands := _operands(node)):
        bits = _leaf_bits(node, columns)
        return _Term(bits, bits, (node,) if bits else ())
    parts = [_term(operand, columns, inside) for operand in operands]
    most = max(part.bits for part in parts)
    match node:
        case exp.Mul():
            bits = sum(part.bits for part in parts)
        case exp.Add() | exp.Sub() | exp.Mod() | exp.Neg() | exp.Abs():
            bits = most + 1
        case _:
            bits = most
    # Beside a number with a fraction an integer takes its type, and a quotient has one.
    if isinstance(node, exp.Div) or not all(part.bits for part in parts):
        bits = 0
    need = max(bits, *(part.need for part in parts))
    return _Term(bits, need, tuple(leaf for part in parts for leaf in part.leaves))


def _operands(node: exp.Expr) -> list[exp.Expr]:
    """What a value is computed of, or chosen from."""
    match node:
        case exp.Case():
            default = node.args.get("default")
            return [branch.args["true"] for branch in node.args["ifs"]] + ([] if default is None else [default])
        case exp.Coalesce():
            return [node.this, *node.expressions]
        case exp.Paren() | exp.Neg() | exp.Abs() | exp.Nullif():
            return [node.this]
    return [node.this, node.expression] if isinstance(node, ARITHMETIC) else []


def _leaf_bits(node: exp.Expr, columns: Mapping[str, DType]) -> int:
    match node:
        case exp.Column():
            return _BITS.get(columns[node.name], 0)
        case exp.Literal():
            bits = 0 if node.is_string or not node.this.isdigit() else max(int(node.this).bit_length(), 1)
            return bits if bits < 128 else 0
        case exp.Cast():
            return _CAST_BITS.get(node.to.this, 0)
        case exp.Length():
            return 31
        case exp.Floor() | exp.Ceil() | exp.Round():
            return _term(node.this, columns, set()).bits
    return 0


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].partition(". Line")[0]


@dataclass(frozen=True, slots=True)
class _Checker:
    """Gives each node its kind; ConditionFault for what is outside of the subset or does not fit together."""

    columns: Mapping[str, DType]

    def kind(self, node: exp.Expr) -> str:
        match node:
            case exp.Paren():
                return self.kind(node.this)
            case exp.Column():
                return self._column(node)
            case exp.Literal():
                return _TEXT if node.is_string else _NUMBER
            case exp.Boolean():
                return _BOOL
            case exp.Null():
                return _NULL
            case exp.Interval():
                return self._interval(node)
            case exp.And() | exp.Or() | exp.Not():
                return self._all(node, _BOOL, node.iter_expressions())
            case exp.Is():
                return self._is(node)
            case exp.In() | exp.Between():
                return self._within(node)
            case exp.Case():
                return self._case(node)
            case exp.Cast() if not isinstance(node, exp.TryCast):
                return self._cast(node)
        if isinstance(node, (*_EQUALITIES, *_ORDERINGS)):
            return self._comparison(node)
        if isinstance(node, ARITHMETIC):
            return self._arithmetic(node)
        return self._function(node)

    def _column(self, node: exp.Column) -> str:
        if node.table:
            raise ConditionFault(f"it names {node.sql('duckdb')!r}, a column of a table", "name the field alone")
        if node.name not in self.columns:
            raise ConditionFault(f"it names {node.name!r}{suggest(node.name, list(self.columns))}", "name a field")
        dtype = self.columns[node.name]
        return _LIST if isinstance(dtype, (List, Vector)) else _KINDS.get(dtype, _NUMBER)

    def _interval(self, node: exp.Interval) -> str:
        unit = node.args.get("unit")
        # The engine cuts fractions off.
        count = isinstance(node.this, exp.Literal) and _COUNT.fullmatch(node.this.this)
        if not count or unit is None or unit.name.upper() not in _UNITS:
            raise ConditionFault(
                f"{node.sql('duckdb')!r} has no fixed length",
                "write INTERVAL and a whole number, of at most 9 digits, of SECOND, MINUTE, HOUR or DAY",
            )
        return _DURATION

    def _all(self, node: exp.Expr, kind: str, inner: Iterator[exp.Expr]) -> str:
        for one in inner:
            found = self.kind(one)
            if found not in (kind, _NULL):
                raise ConditionFault(
                    f"{one.sql('duckdb')!r} is a {found} where {node.sql('duckdb')!r} needs a {kind}",
                    "compare it with something" if kind == _BOOL else "cast it, or compare like with like",
                )
        return kind

    def _one(self, node: exp.Expr, inner: Iterator[exp.Expr]) -> str:
        """The one kind of several expressions."""
        kinds = [kind for one in inner if (kind := self.kind(one)) != _NULL]
        if len(set(kinds)) > 1:
            raise ConditionFault(
                f"{node.sql('duckdb')!r} mixes {' and '.join(dict.fromkeys(kinds))}; a value is never coerced",
                "compare like with like; a moment is TIMESTAMPTZ '2013-01-01 00:00:00+00', a day is DATE '2013-01-01'",
            )
        return kinds[0] if kinds else _NULL

    def _comparison(self, node: exp.Expr) -> str:
        kind = self._one(node, iter((node.this, node.expression)))
        if kind == _LIST or (isinstance(node, _ORDERINGS) and kind not in (*_ORDERED, _NULL)):
            raise ConditionFault(f"{node.sql('duckdb')!r} compares {kind}s", "compare numbers, texts or times")
        return _BOOL

    def _is(self, node: exp.Is) -> str:
        kind = self.kind(node.this)
        if isinstance(node.expression, exp.Null):
            return _BOOL
        if isinstance(node.expression, exp.Boolean) and kind == _BOOL:
            return _BOOL
        raise ConditionFault(f"{node.sql('duckdb')!r} is not of the subset", "write IS NULL, or IS NOT NULL")

    def _within(self, node: exp.Expr) -> str:
        if isinstance(node, exp.In):
            if not node.expressions or any(node.args.get(name) for name in ("query", "unnest", "field")):
                raise ConditionFault(f"{node.sql('duckdb')!r} has no list of values", "write IN (1, 2, 3)")
            members = node.expressions
        elif node.args.get("symmetric"):
            raise ConditionFault(f"{node.sql('duckdb')!r} is not of the subset", "write BETWEEN with the lesser first")
        else:
            members = [node.args["low"], node.args["high"]]
        kind = self._one(node, iter((node.this, *members)))
        if kind == _LIST or (isinstance(node, exp.Between) and kind not in (*_ORDERED, _NULL)):
            raise ConditionFault(f"{node.sql('duckdb')!r} compares {kind}s", "compare numbers, texts or times")
        return _BOOL

    def _case(self, node: exp.Case) -> str:
        branches = node.args["ifs"]
        if node.this is None:
            self._all(node, _BOOL, (branch.this for branch in branches))
        else:
            self._one(node, iter((node.this, *(branch.this for branch in branches))))
        default = node.args.get("default")
        values = [branch.args["true"] for branch in branches] + ([default] if default is not None else [])
        return self._one(node, iter(values))

    def _cast(self, node: exp.Cast) -> str:
        target, source = _CASTS.get(node.to.this), self.kind(node.this)
        literal = source == _TEXT and isinstance(node.this, exp.Literal) and target in (_TIME, _DATE)
        if target is None or not (literal or source in (target, _NULL) or (source, target) in _CASTABLE):
            raise ConditionFault(
                f"{node.sql('duckdb')!r} casts a {source} to {node.to.sql('duckdb')}",
                "cast numbers to INTEGER, BIGINT, FLOAT, DOUBLE, DECIMAL or VARCHAR, times to DATE or TIMESTAMPTZ",
            )
        return target

    def _arithmetic(self, node: exp.Expr) -> str:
        left, right = self.kind(node.this), self.kind(node.expression)
        if isinstance(node, exp.Sub) and left == right and left in (_TIME, _DATE):
            return _DURATION if left == _TIME else _NUMBER
        if isinstance(node, (exp.Add, exp.Sub)) and (left, right) == (_TIME, _DURATION):
            return _TIME
        return self._all(node, _NUMBER, iter((node.this, node.expression)))

    def _function(self, node: exp.Expr) -> str:
        arguments = node.iter_expressions()
        most = _ARGUMENTS_MAX.get(type(node))
        if most is not None and len(list(node.iter_expressions())) > most:
            raise ConditionFault(f"{node.key} has too many arguments", f"give it {most}")
        match node:
            case exp.Coalesce() | exp.Nullif():
                return self._one(node, arguments)
            case exp.IsNan():
                self._all(node, _NUMBER, arguments)
                return _BOOL
            case exp.Lower() | exp.Upper():
                return self._all(node, _TEXT, arguments)
            case exp.StartsWith():
                self._all(node, _TEXT, arguments)
                return _BOOL
            case exp.Length():
                if self.kind(node.this) not in (_TEXT, _LIST):
                    raise ConditionFault(f"{node.sql('duckdb')!r} measures no text or list", "measure a text or a list")
                return _NUMBER
        if isinstance(node, _NUMERIC):
            return self._all(node, _NUMBER, arguments)
        raise ConditionFault(f"{node.sql('duckdb')!r} is not of the subset", f"conditions know {SUBSET}")
