"""Conditions of a contract, judged over Arrow batches by an engine of their own: DuckDB in memory, on one thread."""

from __future__ import annotations

import threading

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlglot import exp

from featurestore.compiler.condition import ConditionFault, columns_of, computable, condition_columns, parse_condition
from featurestore.compiler.dialects.duckdb import DUCKDB
from featurestore.feature_view import FeatureView

_ROWS = "_incoming"
#: Times in UTC; the rows of an answer stand in the order of the rows asked about.
_SESSION = "SET TimeZone = 'UTC'; SET threads = 1; SET preserve_insertion_order = true"


class Conditions:
    """The conditions of one view, ready to judge batch after batch. Safe for threads, which take turns."""

    def __init__(self, view: FeatureView) -> None:
        """ConditionFault when one of them is none."""
        types = columns_of(view)
        parsed = [parse_condition(rule.sql, types) for rule in view.conditions]
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
        """Of each condition the rows that break it; `rows` are canonical: join keys, times, fields."""
        with self._lock:
            self._connection.register(_ROWS, rows.select(self._named))
            try:
                answers = self._connection.sql(self._sql).to_arrow_table()
            finally:
                self._connection.unregister(_ROWS)
        return [column.combine_chunks().to_numpy(zero_copy_only=False) for column in answers.columns]


def constant_fault(tree: exp.Expr) -> ConditionFault | None:
    """What is wrong with a moment or a day that a condition writes down."""
    for node in tree.find_all(exp.Cast):
        if isinstance(node.this, exp.Literal):
            try:
                with duckdb.connect(":memory:") as connection:
                    connection.execute(_SESSION).execute(DUCKDB.sql(exp.select(exp.cast(node.copy(), "VARCHAR"))))
            except duckdb.Error:
                return ConditionFault(
                    f"{node.sql('duckdb')} has no value", "write it as in TIMESTAMPTZ '2013-01-01 00:00:00+00'"
                )
    return None
