"""Whom a serving process answered is told to the state store, now and then and at the end, never in a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from featurestore.errors import StoreBusy
from featurestore.registry.readers import Reader, list_readers, record_readers
from featurestore_client import FeatureClient
from serving.plan import compile_plan
from serving.readers_seen import PLANS_MAX, ReadersSeen
from serving.server import ServeOptions
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.unit.serving.world import DEFINITIONS, airport_now, departures
from tests.waiting import until

SCHEMAS = {ref: {1: view.schema} for ref, view in DEFINITIONS.views.items()}
PLAN = compile_plan(departures, DEFINITIONS.views, SCHEMAS)


@pytest.mark.parametrize("every_s", [0.05, 3600.0], ids=["while it runs", "when it stops"])
def test_services_and_single_features_that_were_answered_are_noted(backend: Backend, every_s: float) -> None:
    options = ServeOptions(
        port=0, poll_s=3600.0, note_readers=partial(record_readers, backend.state), note_readers_s=every_s
    )
    with server(backend.engine(), options) as running:
        with FeatureClient(running.target) as client:
            client.get_online_features("airport_now", {"origin": ["JFK"]})
            client.get_online_features(["delays:delay"], {"origin": ["JFK"], "number": [1]})
        if every_s < 1:
            until(lambda: len(list_readers(backend.state)) == 2)
    seen = {(reader.kind, reader.name): reader for reader in list_readers(backend.state)}
    assert set(seen) == {("service", "airport_now"), ("features", "delays@2")}, "the self-test reads for nobody"
    service = seen["service", "airport_now"]
    assert (service.views, service.signature) == (("weather@1",), backend.registry.signature("airport_now"))


def test_what_cannot_be_noted_is_told_again_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen = ReadersSeen()
    taken: list[Reader] = []

    def busy(readers: Sequence[Reader]) -> None:
        raise StoreBusy("another process has been writing")

    seen.note(PLAN)
    for _ in range(3):
        seen.tell(busy)
    seen.tell(taken.extend)
    seen.tell(taken.extend)
    assert [(reader.name, reader.views) for reader in taken] == [("departures", ("weather@1", "delays@2"))]
    assert [record.getMessage() for record in caplog.records] == [
        "readers are not noted in the registry: another process has been writing",
        "readers are noted in the registry again",
    ]


def test_memory_is_bounded_however_many_plans_there_are() -> None:
    seen = ReadersSeen()
    taken: list[Reader] = []
    plans = [replace(PLAN, service=replace(airport_now, name=f"s{number}")) for number in range(PLANS_MAX + 5)]
    for plan in plans:
        seen.note(plan)
    seen.tell(taken.extend)
    assert len(taken) == PLANS_MAX
