"""A registry that is silent (its server stands still) keeps nobody waiting who can do without it.

The server is a real Postgres, stopped by SIGSTOP: connections are open, packets are acknowledged, nothing is answered.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from featurestore.clock import FixedClock
from featurestore.registry.readers import record_readers
from featurestore_client import FeatureClient, RequestFailed
from serving.engine import INLINE_BYTES_MAX
from serving.server import ServeOptions
from serving.servicer import FRESHNESS_MAX
from serving.telemetry import Telemetry, TelemetryOptions
from serving.view_gauges import watch_views
from tests.fix_postgres import LocalServer, local_server
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import Running
from tests.unit.serving.world import NOW, NOW_US
from tests.waiting import until

ROWS = 1_000


@contextmanager
def standing_still(postgres: LocalServer) -> Iterator[None]:
    """Every process of the server, for the block."""
    assert postgres.process is not None
    children = Path(f"/proc/{postgres.process.pid}/task/{postgres.process.pid}/children").read_text().split()
    pids = [postgres.process.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_silent_registry_keeps_neither_scrapes_nor_lookups_nor_the_end_waiting(tmp_path: Path) -> None:
    with local_server() as postgres, Backend.filled(tmp_path, registry=postgres.url) as backend:
        telemetry = Telemetry(TelemetryOptions(project="test"))
        engine = backend.engine()
        backend.publish("weather@1", NOW_US - 90_000_000)
        watch_views(telemetry.metrics, lambda: engine.catalog.views, backend.state, FixedClock(NOW))

        def ages() -> object:
            return telemetry.metrics.snapshot().values.get("featurestore_view_watermark_age_seconds")

        until(lambda: ages() == {("weather@1",): 90.0})
        options = ServeOptions(
            port=0, poll_s=0.05, drain_s=1.0, note_readers=partial(record_readers, backend.state), note_readers_s=3600.0
        )
        running = Running(engine, options, telemetry)
        with FeatureClient(running.target) as client:
            client.get_online_features("airport_now", {"origin": ["JFK"]})  # a reader to note
            assert [view.view for view in client.get_freshness().views]
            with standing_still(postgres):
                for _ in range(FRESHNESS_MAX + 1):
                    with pytest.raises(RequestFailed):
                        client.get_freshness(timeout_s=0.3)
                assert ages() == {("weather@1",): 90.0}
                keys = {"origin": ["J" * (INLINE_BYTES_MAX // ROWS)] * ROWS}  # large: worked on in a thread
                assert len(client.get_online_features("airport_now", keys)) == ROWS
                running.stop()
                running.join()
