"""Importing the library, and asking its command for help, must not load heavy packages: definitions stay cheap to read.

Each case runs in a fresh interpreter, because this one has long loaded everything.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY_FOR_IMPORT = {"numpy", "pyarrow", "duckdb", "sqlglot", "sqlalchemy", "pydantic", "grpc"}
HEAVY_FOR_HELP = {"numpy", "pyarrow", "duckdb", "grpc"}

IMPORT = "import featurestore"
HELP = """
from featurestore.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def packages_loaded_by(code: str) -> set[str]:
    """Top-level names in sys.modules after `code` ran in a fresh interpreter."""
    report = "\nimport sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


def test_a_heavy_import_would_be_seen() -> None:
    assert "numpy" in packages_loaded_by("import numpy.linalg")


@pytest.mark.parametrize(
    ("code", "heavy"), [(IMPORT, HEAVY_FOR_IMPORT), (HELP, HEAVY_FOR_HELP)], ids=["import", "help"]
)
def test_start_loads_no_heavy_package(code: str, heavy: set[str]) -> None:
    loaded = packages_loaded_by(code)

    assert "featurestore" in loaded
    assert loaded & heavy == set()
