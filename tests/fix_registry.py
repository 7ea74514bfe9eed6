"""Registries of both kinds, for tests and the processes they start."""

from __future__ import annotations

import pytest

#: A test, or a module, that runs on a registry in a file and on one in Postgres.
on_both = pytest.mark.parametrize("where", ["sqlite", "postgres"], indirect=True)

#: What a process begins with that works on the registry named by its first argument: `registry` and `state` are open.
OPENING = """
import sys
from pathlib import Path
from featurestore.registry.registry import open_state
where = Path(sys.argv[1]) if sys.argv[1].startswith("/") else sys.argv[1]
registry, state = open_state(where, "shop")
"""
