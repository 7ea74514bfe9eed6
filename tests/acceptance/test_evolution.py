"""Definitions change while a server runs: in place where that is compatible, else in a version beside the other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featurestore_client import FeatureClient, RequestFailed
from tests.acceptance.test_serve import NOW, served
from tests.fix_cli import Run
from tests.waiting import WAIT_S

DEFINITIONS = Path("definitions/stations.py")
#: A service that takes what it needs is left alone; `whole` follows the view.
WHOLE = '\nwhole = FeatureService(name="whole", features=[readings])\n'
ADDED = (
    '        Field(name="humidity", dtype=Int32, ge=0, le=100, description="Percent."),\n',
    '        Field(name="humidity", dtype=Int32, ge=0, le=200, description="Percent."),\n'
    '        Field(name="wind", dtype=Float64),\n'
    '        Field(name="quality", dtype=String, nullable=False, default="raw"),\n',
)
#: Kelvin: the same name with another meaning and type.
SECOND = """
from dataclasses import replace

second = replace(
    readings,
    version=2,
    schema=[Field(name="temperature", dtype=Int32)],
    source=FileSource(path="sources/kelvin.csv", timestamp_field="measured_at"),
)
kelvin = FeatureService(name="kelvin", features=[second])
"""
KELVIN = "station,measured_at,temperature\nnorth,2024-05-01T19:00:00Z,300\n"
LATER = "south,2024-05-01T19:30:00Z,21.5,40,3.5,checked\n"


def edit(repository: Path, old: str, new: str) -> None:
    text = (repository / DEFINITIONS).read_text()
    assert old in text
    (repository / DEFINITIONS).write_text(text.replace(old, new))


def soon(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """The answer, once it holds; a server may take a second to notice."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            answer = ask()
            if holds(answer):
                return answer
        except RequestFailed as error:
            answer = error
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def test_changes_reach_a_running_server_and_its_readers_keep_their_view(tmp_path: Path, inside: Run) -> None:
    store = tmp_path / "store"
    inside(tmp_path, "init", "store", "--template", "minimal").ok()
    (store / DEFINITIONS).write_text((store / DEFINITIONS).read_text() + WHOLE)
    inside(store, "apply").ok()
    inside(store, "--now", NOW, "materialize-incremental").ok()
    with served(store) as (process, address), FeatureClient(address) as client:

        def row(service: str, station: str) -> dict[str, Any]:
            columns = client.get_online_features(service, {"station": [station]}).to_arrow().to_pydict()
            return {name: values[0] for name, values in columns.items() if not name.startswith("readings__")}

        before, whole = row("comfort", "north"), row("whole", "north")
        assert before["temperature"] is not None

        # In place: a wider bound, and two fields that no row has. Old rows answer null and the default.
        edit(store, *ADDED)
        assert inside(store, "plan", "--check").code == 0
        inside(store, "apply").ok()
        assert soon(lambda: row("whole", "north"), lambda found: "wind" in found) == {
            **whole,
            "wind": None,
            "quality": "raw",
        }
        assert row("comfort", "north") == before

        # Rows of the new fields beside those of the old ones.
        source = store / "sources" / "readings.csv"
        header, *rows = source.read_text().splitlines()
        lines = [f"{header},wind,quality", *(f"{line},,raw" for line in rows), LATER]
        source.write_text("\n".join(lines))
        inside(store, "--now", NOW, "materialize-incremental").ok()
        assert row("whole", "south")["quality"] == "checked"
        assert row("whole", "north") == {**whole, "wind": None, "quality": "raw"}

        # Breaking: a version beside the other, both loaded, published and served.
        (store / DEFINITIONS).write_text((store / DEFINITIONS).read_text() + SECOND)
        (store / "sources" / "kelvin.csv").write_text(KELVIN)
        inside(store, "apply").ok()
        inside(store, "--now", NOW, "materialize-incremental").ok()
        assert soon(lambda: row("kelvin", "north"), lambda found: found["temperature"] == 300)
        assert row("comfort", "north") == before
        assert inside(store, "--now", NOW, "--json", "verify").ok().json["equal"]

        process.send_signal(signal.SIGTERM)
        process.wait(timeout=WAIT_S)

    # A training set that was written is a reader of its views, by its digest.
    made = inside(
        store, "--now", NOW, "--json", "get-historical-features", "--service", "comfort", "--spine", "spine.csv",
        "--out", "t.parquet",
    )  # fmt: skip
    consumers = inside(store, "describe", "feature-service", "comfort", "--json").ok().json["consumers"]
    assert [(row["kind"], row["name"]) for row in consumers] == [
        ("training set", made.ok().json["digest"]),
        ("serving", "comfort"),
    ]
    assert consumers[0]["path"] == str(store / "t.parquet")

    # The readers the server noted keep the view, after the services are gone too.
    consumers = inside(store, "describe", "feature-view", "readings@2", "--json").ok().json["consumers"]
    assert [(row["kind"], row["name"]) for row in consumers] == [("feature service", "kelvin")]
    assert consumers[0]["seen_at"] is not None
    edit(store, 'kelvin = FeatureService(name="kelvin", features=[second])\n', "")
    inside(store, "apply").ok()
    (store / DEFINITIONS).write_text((store / DEFINITIONS).read_text().partition("\nfrom dataclasses")[0])
    refused = inside(store, "apply", "--allow-data-loss")
    assert refused.code == 2
    assert "readings@2: no longer declared; in use by serving of kelvin, last seen" in refused.err
    inside(store, "apply", "--allow-data-loss", "--allow-in-use").ok()
