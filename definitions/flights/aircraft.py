"""The aircraft: what it is, and how its last flight out of New York went."""

from datetime import timedelta

from definitions.flights.entities import OWNER, aircraft
from definitions.flights.weather import weather
from featurestore import Bool, Condition, FeatureView, Field, FileSource, Int32, Reference, String, Volume

# The trap of this data set. A leg is stored under the time at which it left, yet its arrival delay is known only when
# it reaches the gate. More than half of all flights leave a little before their scheduled departure, the time at which
# training asks: a join that looks at the event time alone hands each of them its own outcome.
previous_leg = FeatureView(
    name="previous_leg",
    entities=[aircraft],
    schema=[
        Field(name="leg_carrier", dtype=String, nullable=False, pattern="[0-9A-Z]{2}", description="Who flew it."),
        Field(
            name="leg_origin",
            dtype=String,
            nullable=False,
            allowed_values=["EWR", "JFK", "LGA"],
            description="The airport it left from.",
        ),
        Field(name="leg_dest", dtype=String, nullable=False, pattern="[A-Z]{3}", description="The airport it reached."),
        Field(
            name="dep_delay_min",
            dtype=Int32,
            nullable=False,
            ge=-60,
            le=1440,
            description="Minutes from scheduled to actual departure; negative: early.",
        ),
        Field(
            name="arr_delay_min",
            dtype=Int32,
            nullable=False,
            ge=-120,
            le=1440,
            description="Minutes from scheduled to actual arrival at the gate; negative: early.",
        ),
        Field(name="air_time_min", dtype=Int32, nullable=False, gt=0, le=900, description="Minutes in the air."),
        Field(
            name="distance_mi", dtype=Int32, nullable=False, gt=0, le=6000, description="Miles between the airports."
        ),
        Field(name="late", dtype=Bool, nullable=False, description="Whether it arrived more than 15 minutes late."),
    ],
    source=FileSource(
        path="data/legs.parquet",
        timestamp_field="dep_utc",
        created_timestamp_column="arr_utc",
        description="Completed flights, in the order of their arrival.",
        links={"records": "https://www.transtats.bts.gov"},
    ),
    ttl=timedelta(days=2),
    freshness=timedelta(hours=12),
    owner=OWNER,
    tier="standard",
    on_violation="reject",
    conditions=[
        Condition(name="late_is_by_more_than_15_min", sql="late = (arr_delay_min > 15)"),
        Condition(
            name="it_arrives_later_and_elsewhere",
            sql="created_timestamp - event_timestamp >= INTERVAL 1 MINUTE AND leg_origin <> leg_dest",
            description="Gate to gate it takes a minute at least, and ends at another airport.",
        ),
    ],
    references=[
        Reference(view=weather, columns={"origin": "leg_origin"}, description="Its airport is one with weather.")
    ],
    # A blizzard closed New York on 9 February: 222 legs. The quietest night had no departure for 15 and a half hours.
    volume=Volume(at_least=200, at_most=1100, per=timedelta(days=1)),
    largest_gap=timedelta(hours=16),
    description="The aircraft's last completed flight out of New York: true at its departure, known at its arrival.",
    tags={"domain": "rotation"},
)

aircraft_register = FeatureView(
    name="aircraft_register",
    entities=[aircraft],
    schema=[
        Field(name="manufacture_year", dtype=Int32, ge=1950, le=2014, description="Year it was built; 2 % null."),
        Field(name="seats", dtype=Int32, nullable=False, ge=19, le=600, description="Seats by type, not as fitted."),
        Field(name="engines", dtype=Int32, nullable=False, ge=1, le=4, description="How many engines."),
        Field(
            name="engine_type",
            dtype=String,
            nullable=False,
            allowed_values=["Turbo-fan", "Turbo-jet", "Turbo-prop", "Turbo-shaft", "Reciprocating", "4 Cycle"],
            description="Kind of engine; the order is the ordinal in the matrix.",
        ),
        Field(
            name="aircraft_type",
            dtype=String,
            nullable=False,
            allowed_values=["Fixed wing multi engine", "Fixed wing single engine", "Rotorcraft"],
            description="Kind of aircraft.",
        ),
        Field(
            name="manufacturer", dtype=String, nullable=False, min_length=1, max_length=40, description="Who built it."
        ),
        Field(
            name="model", dtype=String, nullable=False, min_length=1, max_length=40, description="Model, as registered."
        ),
    ],
    source=FileSource(
        path="data/planes.parquet",
        timestamp_field="registered_at",
        description="The register of aircraft, undated: it counts as known since 2013 began.",
    ),
    ttl=None,
    owner=OWNER,
    tier="standard",
    # 40 of 3,322 rows seat fewer than 19: private aircraft whose registration is also some airline's fleet number.
    # They are reported and kept, since what they say is odd, not impossible.
    on_violation="warn",
    description="What the aircraft is. A seventh of the flights are by aircraft that the register does not know.",
    tags={"domain": "fleet"},
)
