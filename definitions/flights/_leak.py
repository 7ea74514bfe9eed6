"""What a naive latest-value join would have leaked: rows of the previous leg taken from departure, not from arrival."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb


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


def count_leaks(folder: Path, cut: datetime) -> Leak:
    """Join each departure before `cut` with the latest leg that had departed by then, as a latest-value join does."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in ("departures", "legs"):
            connection.register(name, connection.read_parquet(str(folder / f"{name}.parquet")))
        rows = connection.execute(_QUERY, {"cut": cut}).fetchall()
    return Leak(*rows[0])
