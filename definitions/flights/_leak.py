"""What a naive latest-value join would have leaked: rows of the previous leg taken from departure, not from arrival."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa


@dataclass(frozen=True)
class Leak:
    """Of the `matched` training rows, those whose naive match was not known yet; `own_label`: was the flight itself."""

    matched: int
    future: int
    own_label: int


_QUERY = """
    SELECT count(*),
           count(*) FILTER (legs.arr_utc > departures.as_of),
           count(*) FILTER (legs.arr_utc > departures.as_of
                            AND legs.leg_carrier = departures.carrier
                            AND legs.leg_origin = departures.origin AND legs.leg_dest = departures.dest)
    FROM departures ASOF JOIN legs
      ON departures.tailnum = legs.tailnum AND departures.as_of >= legs.dep_utc
    WHERE departures.as_of < $cut
"""


#: In the order of the departures, which is total; without a leg, what the service fills in.
_COLUMNS = """
    SELECT coalesce(legs.dep_delay_min, 0)::FLOAT AS prev_dep_delay,
           coalesce(legs.arr_delay_min, 0)::FLOAT AS prev_arr_delay,
           coalesce(legs.late, false)::FLOAT AS prev_late
    FROM departures ASOF LEFT JOIN legs
      ON departures.tailnum = legs.tailnum AND departures.as_of >= legs.dep_utc
    WHERE departures.as_of < $cut
    ORDER BY departures.as_of, departures.carrier, departures.flight, departures.origin
"""


def count_leaks(folder: Path, cut: datetime) -> Leak:
    """Join each departure before `cut` with the latest leg that had departed by then, as a latest-value join does."""
    with _sources(folder) as connection:
        rows = connection.execute(_QUERY, {"cut": cut}).fetchall()
    return Leak(*rows[0])


def leaky_columns(folder: Path, cut: datetime) -> pa.Table:
    """What such a join would have put in place of the previous leg's columns, a row for each departure before `cut`."""
    with _sources(folder) as connection:
        return connection.sql(_COLUMNS, params={"cut": cut}).to_arrow_table()


@contextmanager
def _sources(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("departures", "legs"):
            connection.register(name, connection.read_parquet(str(folder / f"{name}.parquet")))
        yield connection
