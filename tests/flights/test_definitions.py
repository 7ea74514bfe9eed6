"""The flights definitions say the truth about the data: types, bounds, known exceptions, and nothing seen too early.

Contracts are evaluated here in plain SQL, apart from the gate that enforces them.
"""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from definitions.flights import aircraft, airports, entities, services, traffic, weather
from definitions.flights._prepare import PreparedSources
from featurestore import FeatureView, Field, SqlSource
from tests.flights.conftest import Ask

MODULES = (entities, weather, aircraft, airports, traffic, services)
VIEWS = {view.name: view for module in MODULES for view in vars(module).values() if isinstance(view, FeatureView)}
KNOWN_VIOLATIONS = {"weather": 1, "aircraft_register": 40, "destination_airport": 3}
ROWS = {
    "weather": 26_115,
    "previous_leg": 327_346,
    "aircraft_register": 3_322,
    "destination_airport": 1_458,
    "carrier_traffic": 85_694,
    "route_traffic": 275_795,
    "airport_traffic": 21_515,
}
SQL_TYPES = {
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
}


def connect(repository: Path, time_zone: str = "UTC") -> duckdb.DuckDBPyConnection:
    """One thread, as sources run; each view's rows as `view_<name>`."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(f"SET TimeZone = '{time_zone}'")
    for view in VIEWS.values():
        source = view.source
        if isinstance(source, SqlSource):
            for name, path in source.inputs.items():
                connection.execute(f"CREATE OR REPLACE VIEW {name} AS FROM '{repository / path}'")
            connection.execute(f"CREATE TABLE view_{view.name} AS {source.query}")
        else:
            connection.execute(f"CREATE VIEW view_{view.name} AS FROM '{repository / source.path}'")
    return connection


@pytest.fixture(scope="module")
def rows_of(repository: Path, sources: PreparedSources) -> Iterator[Ask]:
    with connect(repository) as connection:
        yield lambda query: connection.execute(query).fetchall()


def violated(field: Field) -> str:
    """SQL: whether a row breaks the field's contract."""
    name = field.name
    broken = [] if field.nullable else [f"{name} IS NULL"]
    for broken_by, bound in (("<", field.ge), ("<=", field.gt), (">", field.le), (">=", field.lt)):
        broken += [] if bound is None else [f"{name} {broken_by} {bound}"]
    if field.allowed_values is not None:
        broken.append(f"{name} NOT IN ({', '.join(repr(value) for value in field.allowed_values)})")
    if field.pattern is not None:
        broken.append(f"NOT regexp_full_match({name}, '{field.pattern}')")
    if field.min_length is not None:
        broken.append(f"length({name}) NOT BETWEEN {field.min_length} AND {field.max_length}")
    return f"coalesce({' OR '.join(broken) or 'FALSE'}, FALSE)"


# ------------------------------------------------------------------ contracts


def test_definitions_import_the_library_and_the_standard_library_only() -> None:
    allowed = {"featurestore", "definitions"} | set(sys.stdlib_module_names)
    for module in MODULES:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, module.__name__


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_sources_have_the_declared_columns_in_the_declared_types(rows_of: Ask, view: FeatureView) -> None:
    described = {row[0]: row[1] for row in rows_of(f"DESCRIBE view_{view.name}")}
    declared = {**view.join_keys, **{field.name: field.dtype for field in view.schema}}
    assert {name: described.get(name) for name in declared} == {n: SQL_TYPES[str(d)] for n, d in declared.items()}
    times = {view.source.timestamp_field, view.source.created_timestamp_column} - {None}
    assert {described[str(name)] for name in times} == {"TIMESTAMP WITH TIME ZONE"}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_the_real_rows_keep_the_contract_but_for_the_known_ones(rows_of: Ask, view: FeatureView) -> None:
    broken = " OR ".join(violated(field) for field in view.schema)
    ((count, bad),) = rows_of(f"SELECT count(*), count(*) FILTER ({broken}) FROM view_{view.name}")
    assert count == ROWS[view.name]
    assert bad == KNOWN_VIOLATIONS.get(view.name, 0)
    assert not bad or view.on_violation != "reject"


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_keys_and_times_are_never_null_and_name_one_row(rows_of: Ask, view: FeatureView) -> None:
    source = view.source
    times = [source.timestamp_field] + ([source.created_timestamp_column] if source.created_timestamp_column else [])
    columns = [*view.join_keys, *times]
    nulls = " OR ".join(f"{column} IS NULL" for column in columns)
    assert rows_of(f"SELECT count(*) FILTER ({nulls}) FROM view_{view.name}") == [(0,)]
    key = ", ".join([*view.join_keys, source.timestamp_field])
    assert rows_of(f"SELECT count(DISTINCT ({key})) FROM view_{view.name}") == [(ROWS[view.name],)]


def test_every_field_and_view_says_what_it_is() -> None:
    fields = [*(field for view in VIEWS.values() for field in view.schema), *services.departure_delay.request_fields]
    described = [*fields, *VIEWS.values(), *(view.source for view in VIEWS.values()), services.departure_delay]
    assert [thing for thing in described if not thing.description] == []
    assert {view.owner for view in VIEWS.values()} == {entities.OWNER}


def test_the_service_offers_numbers_and_ordinals_only() -> None:
    """What `to_matrix` takes: no free strings, no times. Names are unique, spine columns included."""
    service = services.departure_delay
    chosen = [(VIEWS[part.view].fields[s.field], s.output) for part in service.selections for s in part.fields]
    assert [output for field, output in chosen if str(field.dtype) == "string" and not field.allowed_values] == []
    outputs = [output for _, output in chosen] + [field.name for field in service.request_fields]
    assert len(outputs) == len(set(outputs)) == 29
    assert set(outputs).isdisjoint({"carrier", "origin", "dest", "tailnum", "flight", "as_of", "late"})
    assert [part.version for part in service.selections] == [1] * 7


# ------------------------------------------------------------------ SQL sources


def test_sql_sources_do_not_depend_on_the_time_zone_of_the_session(repository: Path, sources: PreparedSources) -> None:
    answers = []
    for time_zone in ("UTC", "America/New_York"):
        with connect(repository, time_zone) as connection:
            answers.append(
                [
                    connection.execute(f"SELECT count(*), bit_xor(hash(v)) FROM view_{name} v").fetchall()
                    for name, view in VIEWS.items()
                    if isinstance(view.source, SqlSource)
                ]
            )
    assert answers[0] == answers[1]


HOUR_US = 3_600_000_000
LEFT, ARRIVED, DUE = "dep_us", "arr_us", "due_us"


def mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize(
    ("view", "hours", "counted", "count", "feature", "expected"),
    [
        ("carrier_traffic", 24, LEFT, "carrier_departures_24h", "carrier_dep_delay_mean_24h", "dep_delay_min"),
        ("carrier_traffic", 24, ARRIVED, None, "carrier_arr_delay_mean_24h", "arr_delay_min"),
        ("carrier_traffic", 24, DUE, None, "carrier_stalled_share_24h", "stalled"),
        ("route_traffic", 168, ARRIVED, "route_arrivals_7d", "route_arr_delay_mean_7d", "arr_delay_min"),
        ("route_traffic", 168, ARRIVED, "route_arrivals_7d", "route_late_share_7d", "late"),
        ("airport_traffic", 3, LEFT, "airport_departures_3h", "airport_dep_delay_mean_3h", "dep_delay_min"),
    ],
)
def test_rolling_features_count_what_had_happened_before_the_hour_ended(
    rows_of: Ask, view: str, hours: int, counted: str, count: str | None, feature: str, expected: str
) -> None:
    """Rows drawn at random are worked out again, flight by flight, from what their field's description says."""
    keys = list(VIEWS[view].join_keys)
    sample = f"SELECT {', '.join(keys)}, epoch_us(hour_end), {count or 0}, {feature} FROM view_{view}"
    for *key, end, total, value in random.Random(2013).sample(rows_of(sample + " ORDER BY ALL"), 8):
        its_flights = rows_of(f"""
            SELECT {counted}, {expected} FROM (
                SELECT *, epoch_us(dep_utc) AS dep_us, epoch_us(arr_utc) AS arr_us,
                       epoch_us(sched_dep_utc) + {HOUR_US} AS due_us, (arr_delay_min > 15)::INTEGER AS late,
                       (coalesce(dep_delay_min, 9999) > 60)::INTEGER AS stalled
                FROM flights)
            WHERE ({", ".join(keys)}) = ({", ".join(repr(part) for part in key)})""")
        seen = [minutes for at, minutes in its_flights if at is not None and end - hours * HOUR_US <= at < end]
        assert value == mean(seen)
        assert count is None or total == len(seen)


# ------------------------------------------------------------------ the leak trap


def test_a_join_on_event_time_alone_would_see_the_future_of_three_in_five_flights(ask: Ask) -> None:
    """Why `previous_leg` declares its arrival as the time it became known."""
    source = aircraft.previous_leg.source
    assert (source.timestamp_field, source.created_timestamp_column) == ("dep_utc", "arr_utc")
    assert ask("""
        SELECT count(*), count(*) FILTER (l.arr_utc > d.as_of),
               count(*) FILTER (l.leg_carrier = d.carrier AND l.leg_dest = d.dest AND l.late = d.late
                                AND l.dep_utc - to_minutes(l.dep_delay_min) = d.as_of)
        FROM departures d ASOF JOIN legs l ON d.tailnum = l.tailnum AND d.as_of >= l.dep_utc""") == [
        (325_815, 199_849, 199_596)  # rows with a leg; with one still in the air; with their own flight, label and all
    ]


def test_rules_of_whole_rows_hold_for_the_real_rows(rows_of: Ask) -> None:
    broken = [
        ("previous_leg", "late <> (arr_delay_min > 15)"),
        ("previous_leg", "arr_utc - dep_utc < INTERVAL 1 MINUTE OR leg_origin = leg_dest"),
        ("previous_leg", "leg_origin NOT IN (SELECT origin FROM view_weather)"),
        ("weather", "dew_point_f > temp_f"),
    ]
    for view, says in broken:
        assert rows_of(f"SELECT count(*) FROM view_{view} WHERE {says}") == [(0,)], says


def test_every_day_has_the_declared_volume_and_no_gap_is_longer(rows_of: Ask) -> None:
    for view in (weather.weather, aircraft.previous_leg):
        time = view.source.timestamp_field
        days = [
            n for (n,) in rows_of(f"SELECT count(*) FROM view_{view.name} GROUP BY {time}::DATE ORDER BY {time}::DATE")
        ]
        ((gap,),) = rows_of(
            f"SELECT max(g) FROM (SELECT {time} - lag({time}) OVER (ORDER BY {time}) g FROM view_{view.name})"
        )
        assert view.volume is not None
        assert (min(days[1:-1]) >= view.volume.at_least, max(days) <= view.volume.at_most) == (True, True)
        assert gap <= view.largest_gap
