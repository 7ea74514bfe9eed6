"""Conditions of a contract, judged over Arrow batches by an engine of their own: DuckDB in memory, on one thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlglot import exp

from featurestore.arrow_types import arrow_type
from featurestore.compiler.condition import ConditionFault, columns_of, computable, condition_columns, parse_condition
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.dtypes import DType
from featurestore.feature_view import FeatureView
from featurestore.view_rules import Condition

_ROWS = "_incoming"
#: Times in UTC; the rows of an answer stand in the order of the rows asked about.
_SESSION = "SET TimeZone = 'UTC'; SET threads = 1; SET preserve_insertion_order = true"


class Conditions:
    """The conditions of one view, ready to judge batch after batch. Safe for threads, which take turns."""

    def __init__(self, view: FeatureView) -> None:
        """ConditionFault when one of them is none: an earlier release took what this one refuses."""
        types = columns_of(view)
        parsed = [_parsed(rule, types) for rule in view.conditions]
        #: The columns that each condition names.
        self.columns = {rule.name: condition_columns(tree) for rule, tree in zip(view.conditions, parsed, strict=True)}
        trees = [computable(tree, types) for tree in parsed]
        broken = [
            exp.alias_(exp.Not(this=exp.func("coalesce", tree, exp.true())), f"_{n}") for n, tree in enumerate(trees)
        ]
        self._named = sorted({name for names in self.columns.values() for name in names})
        self._sql = DUCKDB.sql(exp.select(*broken).from_(_ROWS))
        self._connection = duckdb.connect(":memory:")
        self._connection.execute(_SESSION)
        self._lock = threading.Lock()

    def broken(self, rows: pa.Table) -> list[NDArray[np.bool_]]:
        """Of each condition the rows that break it; `rows` are canonical: join keys, times, fields. ConditionFault when
        the engine cannot compute one."""
        with self._lock:
            self._connection.register(_ROWS, rows.select(self._named))
            try:
                answers = self._connection.sql(self._sql).to_arrow_table()
            except (duckdb.BinderException, duckdb.ConversionException) as error:
                raise _not_computed(", ".join(self.columns), error) from error
            finally:
                self._connection.unregister(_ROWS)
        return [column.combine_chunks().to_numpy(zero_copy_only=False) for column in answers.columns]


def _parsed(rule: Condition, types: Mapping[str, DType]) -> exp.Expr:
    try:
        return parse_condition(rule.sql, types)
    except ConditionFault as fault:
        raise ConditionFault(f"condition {rule.name!r}: {fault.what}", fault.way_out) from fault


def _not_computed(what: str, error: duckdb.Error) -> ConditionFault:
    return ConditionFault(
        f"the engine cannot compute {what} ({str(error).splitlines()[0]})", "cast its parts to types that go together"
    )


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    """One that holds nothing; making one takes longer than asking it."""
    return duckdb.connect(":memory:")


def engine_fault(tree: exp.Expr, columns: Mapping[str, DType]) -> ConditionFault | None:
    """What the engine has against a condition of the subset: a moment that is none, types it cannot bring together.

    `columns` are those that the condition may name.
    """
    with _engine().cursor() as connection:
        connection.execute(_SESSION)
        for node in tree.find_all(exp.Cast):
            if isinstance(node.this, exp.Literal):
                try:
                    connection.execute(DUCKDB.sql(exp.select(exp.cast(node.copy(), "VARCHAR")))).fetchall()
                except duckdb.Error:
                    return ConditionFault(
                        f"{node.sql('duckdb')} has no value", "write it as in TIMESTAMPTZ '2013-01-01 00:00:00+00'"
                    )
        named = pa.schema([(name, arrow_type(columns[name])) for name in condition_columns(tree)])
        connection.register(_ROWS, named.empty_table())
        try:
            connection.execute(DUCKDB.sql(exp.select(computable(tree, columns)).from_(_ROWS))).fetchall()
        except duckdb.Error as error:
            return _not_computed(repr(tree.sql("duckdb")), error)
    return None
