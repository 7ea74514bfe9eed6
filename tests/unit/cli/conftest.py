"""What the command's tests share: a repository to work in, and the command run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small sound repository."""
    root = tmp_path / "shop"
    (root / "definitions").mkdir(parents=True)
    (root / "featurestore.toml").write_text('project = "shop"\n[registry]\nwait_s = 0.1\n')
    Declare(root)()
    return root


DEFINITIONS = """\
from datetime import timedelta
from featurestore import *

airport = Entity(name="airport", join_keys={"airport": String}, owner="ops", description="Where planes land.")
weather = FeatureView(
    name="weather",
    entities=[airport],
    schema=[Field(name="temp", dtype=Float64, le=60), Field(name="sky", dtype=String, allowed_values=["clear"])],
    source=FileSource(path="w.csv", timestamp_field="t"),
    ttl=timedelta(hours=3),
)
late = FeatureService(name="late", features=[weather[["temp"]].fill(temp=0.0)])
"""


class Declare:
    """(Re)writes the definitions of a repository, with one text put for another."""

    def __init__(self, root: Path) -> None:
        self._file = root / "definitions" / "flights.py"

    def __call__(self, old: str = "", new: str = "") -> None:
        assert old in DEFINITIONS
        self._file.write_text(DEFINITIONS.replace(old, new) if old else DEFINITIONS)


@pytest.fixture
def declare(repository: Path) -> Declare:
    """Changes what the repository declares."""
    return Declare(repository)
