"""Failpoints kill where they are asked to, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
from featurestore.failpoint import failpoint
for name in ("a.first", "a.second", "a.first"):
    failpoint(name)
    print(name, flush=True)
"""


@pytest.mark.parametrize(
    ("wanted", "code", "printed"),
    [
        (None, 0, ["a.first", "a.second", "a.first"]),
        ("a", 0, ["a.first", "a.second", "a.first"]),
        ("a.first", 137, []),
        ("a.second", 137, ["a.first"]),
        ("a.first:2", 137, ["a.first", "a.second"]),
        ("a.first:3", 0, ["a.first", "a.second", "a.first"]),
    ],
)
def test_the_named_failpoint_ends_the_process(wanted: str | None, code: int, printed: list[str]) -> None:
    environment = dict(os.environ) | ({} if wanted is None else {"FEATURESTORE_FAILPOINT": wanted})
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (code, printed)
