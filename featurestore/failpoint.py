"""Places where a test may kill the process, so that recovery is tested and not hoped for.

`FEATURESTORE_FAILPOINT=name` ends the process at the first `failpoint("name")`, as SIGKILL would: no cleanup, exit
code 137. `name:3` ends it at the third one. Without the variable a failpoint costs one look into the environment.
"""

from __future__ import annotations

import os
from collections import Counter

VARIABLE = "FEATURESTORE_FAILPOINT"
KILLED = 137

_hits: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End the process here, at once, when the environment asks for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    wanted_name, _, nth = wanted.partition(":")
    if wanted_name == name:
        _hits[name] += 1
        if _hits[name] == int(nth or 1):
            os._exit(KILLED)
