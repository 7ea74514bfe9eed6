"""DDL of a view's history: typed columns, NOT NULL where a row cannot do without, no unique index.

Corrections keep both rows, so nothing but (`_position`) is unique, and that is the store's own number.
"""

from __future__ import annotations

from sqlglot import exp

from featurestore.clock import aware_utc
from featurestore.compiler import names
from featurestore.compiler.dialects.base import Dialect
from featurestore.dtypes import DType, Int32, Int64, Timestamp
from featurestore.feature_view import FeatureView
from featurestore.field import Field

SYSTEM_COLUMNS: dict[str, DType] = {
    names.EVENT: Timestamp,
    names.CREATED: Timestamp,
    names.SEQUENCE: Int64,
    names.POSITION: Int64,
    names.SCHEMA_ID: Int32,
}


def create_history(project: str, view: FeatureView, dialect: Dialect) -> exp.Expr:
    """CREATE TABLE IF NOT EXISTS for the history of `view`."""
    required = {**view.join_keys, **SYSTEM_COLUMNS}
    columns = [_column(name, dtype, dialect, required=True) for name, dtype in required.items()]
    columns += [_column(field.name, field.dtype, dialect, required=False) for field in view.schema]
    return exp.Create(
        this=exp.Schema(this=names.history(project, view), expressions=columns), kind="TABLE", exists=True
    )


def add_column(project: str, view: FeatureView, field: Field, dialect: Dialect) -> list[exp.Expr]:
    """ALTER TABLE for a field that joins later; rows written before it take its default, for good."""
    added = _column(field.name, field.dtype, dialect, required=False)
    if field.default is None:
        return [exp.Alter(this=names.history(project, view), kind="TABLE", actions=[added])]
    default = exp.cast(_literal(field.default, dialect), dialect.type_text(field.dtype), dialect=dialect.sqlglot)
    added.append("constraints", exp.ColumnConstraint(kind=exp.DefaultColumnConstraint(this=default)))
    undefault = exp.AlterColumn(this=exp.to_identifier(field.name, quoted=True), drop=True)
    return [
        exp.Alter(this=names.history(project, view), kind="TABLE", actions=[added]),
        exp.Alter(this=names.history(project, view), kind="TABLE", actions=[undefault]),
    ]


def drop_history(project: str, ref: str) -> exp.Expr:
    """DROP TABLE IF EXISTS for the history of `view@version`."""
    return exp.Drop(tables=[names.table(project, names.history_name(ref))], kind="TABLE", exists=True)


def _column(name: str, dtype: DType, dialect: Dialect, *, required: bool) -> exp.ColumnDef:
    not_null = [exp.ColumnConstraint(kind=exp.NotNullColumnConstraint())] if required else []
    kind = exp.DataType.build(dialect.type_text(dtype), dialect=dialect.sqlglot)
    bytewise = []
    if (collation := dialect.collation(dtype)) is not None:
        named = exp.CollateColumnConstraint(this=exp.to_identifier(collation, quoted=True))
        bytewise = [exp.ColumnConstraint(kind=named)]
    return exp.ColumnDef(this=exp.to_identifier(name, quoted=True), kind=kind, constraints=[*bytewise, *not_null])


def _literal(value: object, dialect: Dialect) -> exp.Expr:
    from datetime import date, datetime
    from decimal import Decimal

    match value:
        case bool():
            return exp.Boolean(this=value)
        case bytes():
            return dialect.bytes_literal(value)
        case float() | Decimal():
            return exp.Literal.string(str(value))
        case int():
            return exp.Literal.number(value)
        case datetime():
            return exp.Literal.string(aware_utc(value, "default").isoformat())
        case date():
            return exp.Literal.string(value.isoformat())
        case list() | tuple():
            return exp.Array(expressions=[_literal(item, dialect) for item in value])
        case _:
            return exp.Literal.string(str(value))
