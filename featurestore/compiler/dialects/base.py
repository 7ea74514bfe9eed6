"""The record of differences between SQL engines; one instance per engine, no ifs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from featurestore.compiler.point_in_time_join import Pass
from featurestore.dtypes import Decimal, DType, List, String, Vector
from featurestore.feature_view import FeatureView


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """An engine as the compiler sees it."""

    name: str
    #: What sqlglot calls it.
    sqlglot: str
    #: Logical scalar type -> SQL type text.
    types: Mapping[DType, str]
    #: Whether a column can be read without the others of its rows.
    columnar: bool
    #: How a list and a vector of an element type are written.
    list_type: Callable[[str], str]
    vector_type: Callable[[str, int], str]
    #: Whether two values of a field, neither null, are bit-equal: NaN equals NaN, -0.0 differs from 0.0.
    bits_equal: Callable[[DType, exp.Expr, exp.Expr], exp.Expr]
    #: The pass of the point-in-time join that says from which publish on a row was served.
    served: Pass
    #: The passes of the point-in-time join that choose a position for each spine row.
    match: tuple[Pass, ...]
    #: The rows of a query whose columns, all never null, stand in a relation.
    semi_join: Callable[[exp.Select, exp.Table, Sequence[str]], exp.Select]
    #: A timestamp literal of microseconds since the epoch.
    instant: Callable[[int], exp.Expr]
    #: A timestamp as microseconds since the epoch, exactly.
    microseconds: Callable[[exp.Expr], exp.Expr]
    #: A bytes literal.
    bytes_literal: Callable[[bytes], exp.Expr]
    #: CREATE INDEX for a history table.
    indexes: Callable[[exp.Table, FeatureView], Sequence[exp.Expr]]
    #: The collation in which text compares bytewise, where that is not the engine's own way.
    text_collation: str | None = None

    def type_text(self, dtype: DType) -> str:
        """The SQL type that holds `dtype` without loss."""
        match dtype:
            case Decimal(precision, scale):
                return f"DECIMAL({precision}, {scale})"
            case List(element):
                return self.list_type(self.type_text(element))
            case Vector(element, length):
                return self.vector_type(self.type_text(element), length)
            case _:
                return self.types[dtype]

    def collation(self, dtype: DType) -> str | None:
        """The collation that a column of `dtype` is declared with."""
        return self.text_collation if String in (dtype, getattr(dtype, "element", None)) else None

    def sql(self, tree: exp.Expr) -> str:
        """The text of a tree in this engine's SQL, one clause a line."""
        return tree.sql(dialect=self.sqlglot, pretty=True, comments=False)
