"""Names of tables and columns that the compiler makes; user names never begin with an underscore."""

from __future__ import annotations

from sqlglot import exp

from featurestore.feature_view import FeatureView

EVENT = "event_timestamp"
CREATED = "created_timestamp"
SEQUENCE = "_sequence"
POSITION = "_position"
SCHEMA_ID = "_schema"

#: The spine as the join sees it: row number, the view's join keys, as_of.
SPINE = "_spine"
ROW = "_row"
#: The number of an entity within one join.
ENTITY = "_entity"
AS_OF = "_as_of"
VISIBLE_FROM = "_visible_from"
#: A row's place among the rows of its entity.
RANK = "_rank"

#: What a stretch of the publish log reached, by positions and by horizons: the first publish up to there.
PUBLISHED_POSITIONS = "_published_positions"
PUBLISHED_HORIZONS = "_published_horizons"
UP_TO = "_up_to"
PUBLISH = "_publish"
#: The pushes of a stretch: the sequences each brought online, as far as they were visible by its horizon.
PUSHED_ROWS = "_pushed_rows"
FIRST = "_first"
LAST = "_last"
HORIZON = "_horizon"
#: Whether a spine row's answer lies beyond the rows that were looked at.
FAR = "_far"

#: Rows on their way into history.
INCOMING = "_incoming"
#: Book-keeping of the offline store itself.
POSITIONS = "_positions"
LOADS = "_loads"
QUARANTINE = "_quarantine"


def history_name(ref: str) -> str:
    """The table that holds the history of `view@version`."""
    name, _, version = ref.partition("@")
    return f"{name}__v{version}"


def table(project: str, name: str) -> exp.Table:
    """A table of a project; each project has a schema of its own."""
    return exp.table_(exp.to_identifier(name, quoted=True), db=exp.to_identifier(project, quoted=True))


def history(project: str, view: FeatureView) -> exp.Table:
    """The history table of a view."""
    return table(project, history_name(view.ref))


def column(name: str, of: str | None = None) -> exp.Column:
    """A quoted column, of a named table or step when given."""
    return exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(of, quoted=True) if of else None)


def using(*names: str) -> list[int | str | exp.Expr]:
    """The columns of a USING clause."""
    return [exp.to_identifier(name, quoted=True) for name in names]
