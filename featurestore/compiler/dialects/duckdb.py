"""DuckDB, the embedded engine. Its arrays have a fixed length, so a vector is stored as it is declared."""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.point_in_time_join import break_ties, leading_rows, match
from featurestore.compiler.served_rows import served_by_as_of
from featurestore.dtypes import (
    FLOATS,
    Bool,
    Bytes,
    Date,
    DType,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    String,
    Timestamp,
    Vector,
)


def _bits_equal(dtype: DType, left: exp.Expr, right: exp.Expr) -> exp.Expr:
    """DuckDB holds NaN equal to NaN and -0.0 equal to 0.0, so floats compare their signs too."""
    equal = exp.EQ(this=left, expression=right)
    if dtype in FLOATS:
        return exp.and_(equal, exp.EQ(this=_call("signbit", left), expression=_call("signbit", right)))
    if isinstance(dtype, (List, Vector)) and dtype.element in FLOATS:
        return exp.and_(equal, exp.EQ(this=_signs(dtype, left), expression=_signs(dtype, right)))
    return equal


def _signs(dtype: List | Vector, values: exp.Expr) -> exp.Expr:
    element = exp.to_identifier("x")
    sign = exp.Lambda(this=_call("signbit", exp.column("x")), expressions=[element])
    as_list = exp.cast(values.copy(), f"{DUCKDB.type_text(dtype.element)}[]", dialect="duckdb")
    return _call("list_transform", as_list, sign)


def _semi_join(tree: exp.Select, relation: exp.Table, columns: Sequence[str]) -> exp.Select:
    return tree.join(relation, join_type="semi", using=names.using(*columns))


def _instant(us: int) -> exp.Expr:
    return exp.Anonymous(this="make_timestamptz", expressions=[exp.cast(exp.Literal.number(us), "BIGINT")])


def _bytes_literal(value: bytes) -> exp.Expr:
    return exp.Anonymous(this="unhex", expressions=[exp.Literal.string(value.hex())])


def _call(name: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=name, expressions=[argument.copy() for argument in arguments])


DUCKDB = Dialect(
    name="duckdb",
    sqlglot="duckdb",
    columnar=True,
    types={
        Bool: "BOOLEAN",
        Int32: "INTEGER",
        Int64: "BIGINT",
        Float32: "FLOAT",
        Float64: "DOUBLE",
        String: "VARCHAR",
        Bytes: "BLOB",
        Timestamp: "TIMESTAMPTZ",
        Date: "DATE",
    },
    list_type=lambda element: f"{element}[]",
    vector_type=lambda element, length: f"{element}[{length}]",
    bits_equal=_bits_equal,
    served=served_by_as_of,
    match=(leading_rows, match, break_ties),
    semi_join=_semi_join,
    instant=_instant,
    microseconds=lambda time: _call("epoch_us", time),
    bytes_literal=_bytes_literal,
    indexes=lambda history, view: (),
)
