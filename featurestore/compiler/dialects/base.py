"""The record of differences between SQL engines; one instance per engine, no ifs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlglot import exp

from featurestore.dtypes import Decimal, DType, List, Vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """An engine as the compiler sees it."""

    name: str
    #: What sqlglot calls it.
    sqlglot: str
    #: Logical scalar type -> SQL type text.
    types: Mapping[DType, str]
    #: How a list and a vector of an element type are written.
    list_type: Callable[[str], str]
    vector_type: Callable[[str, int], str]
    #: Whether two values of a field, neither null, are bit-equal: NaN equals NaN, -0.0 differs from 0.0.
    bits_equal: Callable[[DType, exp.Expr, exp.Expr], exp.Expr]

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

    def sql(self, tree: exp.Expr) -> str:
        """The text of a tree in this engine's SQL, one clause a line."""
        return tree.sql(dialect=self.sqlglot, pretty=True, comments=False)
