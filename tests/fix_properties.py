"""How hard the properties look: 500 examples in CI, HYPOTHESIS_PROFILE=quick while working on a rule.

Those that write each example into a database take 250 in CI on each engine, those that replay it on both pairs of
stores 100; all take 500 in `make test-all`, the profile `all`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# What holds where a test says nothing else; conftest.py imports this module. Hypothesis' own bounds on time, 0.2 s an
# example and a second for making the first ten, say how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
#: What a property suppresses whose fixtures its examples share.
SHARED_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

settings.register_profile(
    "ci",
    max_examples=500,
    deadline=None,
    # Explaining a failure runs it hundreds of times more; shrinking is what tells.
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=50)

settings.register_profile("all", settings.get_profile("ci"))

_profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
#: Decorates every property.
thoroughly = settings(settings.get_profile(_profile))
#: Decorates those that write each example into a database and ask it.
by_database = settings(thoroughly, max_examples={"quick": 50, "ci": 250}.get(_profile, 500))
#: Decorates those whose examples are replays.
by_replay = settings(thoroughly, max_examples={"quick": 20, "ci": 100}.get(_profile, 500))
