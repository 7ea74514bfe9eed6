"""What the features of this example are about."""

from featurestore import Entity, String

OWNER = "flight-ops@example.com"

airport = Entity(
    name="airport",
    join_keys={"origin": String},
    description="One of the three airports of New York City, by the code passengers know: EWR, JFK, LGA.",
    owner=OWNER,
)
destination = Entity(
    name="destination",
    join_keys={"dest": String},
    description="The airport a flight goes to, by code.",
    owner=OWNER,
)
route = Entity(
    name="route",
    join_keys={"origin": String, "dest": String},
    description="A pair of airports, in one direction.",
    owner=OWNER,
)
carrier = Entity(
    name="carrier",
    join_keys={"carrier": String},
    description="An airline by its two-character code; regional partners fly under codes of their own.",
    owner=OWNER,
)
aircraft = Entity(
    name="aircraft",
    join_keys={"tailnum": String},
    description="One aircraft by tail number. Flights cancelled early have none: a null key, found nowhere.",
    owner=OWNER,
)
