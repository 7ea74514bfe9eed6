"""Postgres, the shared engine. It has no as-of join; text must be told to compare bytewise; arrays have any length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlglot import exp

from featurestore.clock import from_us
from featurestore.compiler.dialects.base import Dialect
from featurestore.compiler.greatest_so_far import greatest_so_far
from featurestore.compiler.names import CREATED, EVENT, POSITION, SEQUENCE, column
from featurestore.compiler.served_rows import served_by_lookup
from featurestore.dtypes import (
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
from featurestore.feature_view import FeatureView

#: What sends a float as its bits.
_SEND = {Float32: "float4send", Float64: "float8send"}


def _bits_equal(dtype: DType, left: exp.Expr, right: exp.Expr) -> exp.Expr:
    """Postgres holds NaN equal to NaN and -0.0 equal to 0.0, so floats are compared as the bytes they are sent as."""
    element = dtype.element if isinstance(dtype, (List, Vector)) else dtype
    if element not in _SEND:
        return exp.EQ(this=left, expression=right)
    send = _SEND[element] if element is dtype else "array_send"
    sides = (exp.Anonymous(this=send, expressions=[side.copy()]) for side in (left, right))
    return exp.EQ(this=next(sides), expression=next(sides))


def _semi_join(tree: exp.Select, relation: exp.Table, columns: Sequence[str]) -> exp.Select:
    """Postgres has no SEMI JOIN; its planner makes one of IN."""
    chosen = [column(name) for name in columns]
    ours = chosen[0] if len(chosen) == 1 else exp.Tuple(expressions=chosen)
    theirs = exp.select(*(one.copy() for one in chosen)).from_(relation)
    return tree.where(exp.In(this=ours, query=theirs.subquery()))


def _instant(us: int) -> exp.Expr:
    return exp.cast(exp.Literal.string(from_us(us).isoformat()), "TIMESTAMPTZ")


def _microseconds(time: exp.Expr) -> exp.Expr:
    seconds = exp.Extract(this=exp.var("EPOCH"), expression=time.copy())
    return exp.cast(exp.Mul(this=seconds, expression=exp.Literal.number(1_000_000)), "BIGINT")


def _bytes_literal(value: bytes) -> exp.Expr:
    return exp.Anonymous(this="decode", expressions=[exp.Literal.string(value.hex()), exp.Literal.string("hex")])


def _indexes(history: exp.Table, view: FeatureView) -> list[exp.Expr]:
    """The order of rule 1 for lookups; positions, which are unique; and what publishes read, by block ranges."""
    greatest = exp.paren(exp.Greatest(this=column(EVENT), expressions=[column(CREATED)], ignore_nulls=True))
    order = [column(name) for name in (*view.join_keys, EVENT, CREATED, SEQUENCE)]
    blocks = [column(POSITION), column(SEQUENCE), column(EVENT), greatest]
    return [
        _index(history, "order", order),
        _index(history, "position", [column(POSITION)], unique=True),
        _index(history, "blocks", blocks, using="brin"),
    ]


def _index(
    table: exp.Table, kind: str, columns: Sequence[exp.Expr], *, using: str = "btree", unique: bool = False
) -> exp.Expr:
    # nulls_first=False: what an index does anyway.
    ordered = [exp.Ordered(this=one, nulls_first=False) for one in columns]
    params = exp.IndexParameters(columns=ordered, using=exp.var(using))
    return exp.Create(
        this=exp.Index(this=_index_name(table.name, kind), table=table.copy(), params=params),
        kind="INDEX",
        exists=True,
        unique=unique,
    )


def _index_name(table: str, kind: str) -> exp.Identifier:
    """A name within the 63 bytes of an identifier, which a table's own name may take whole; never that of a table."""
    digest = hashlib.blake2s(table.encode(), digest_size=4).hexdigest()
    return exp.to_identifier(f"{table[:40]}_{digest}_{kind}", quoted=True)


POSTGRES = Dialect(
    name="postgres",
    sqlglot="postgres",
    columnar=False,
    types={
        Bool: "BOOLEAN",
        Int32: "INTEGER",
        Int64: "BIGINT",
        Float32: "REAL",
        Float64: "DOUBLE PRECISION",
        String: "TEXT",
        Bytes: "BYTEA",
        Timestamp: "TIMESTAMPTZ",
        Date: "DATE",
    },
    list_type=lambda element: f"{element}[]",
    vector_type=lambda element, length: f"{element}[]",
    bits_equal=_bits_equal,
    served=served_by_lookup,
    match=(greatest_so_far,),
    semi_join=_semi_join,
    instant=_instant,
    microseconds=_microseconds,
    bytes_literal=_bytes_literal,
    indexes=_indexes,
    text_collation="C",
)
