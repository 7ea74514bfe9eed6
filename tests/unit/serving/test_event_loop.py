"""What a serving process does with garbage collection: nothing that was made before it was ready is looked at again."""

from __future__ import annotations

import gc
import os
import signal

from serving.server import ServeOptions, run
from tests.unit.serving.conftest import Backend
from tests.unit.serving.world import CLOCK


def collected(thing: object) -> bool:
    """Whether the collector looks at the thing; `gc.get_objects` leaves out the permanent generation."""
    return any(one is thing for one in gc.get_objects())


def test_what_was_there_when_a_worker_got_ready_is_kept_from_collection_until_it_stops(backend: Backend) -> None:
    seen: list[tuple[bool, bool]] = []
    frozen: list[int] = []

    def ready(_: str) -> None:
        later = [seen]
        seen.append((collected(backend.registry), collected(later)))
        frozen.append(gc.get_freeze_count())
        os.kill(os.getpid(), signal.SIGTERM)

    assert collected(backend.registry)
    run(backend.registry, backend.state, backend.world.store, CLOCK, ServeOptions(port=0, drain_s=1.0), ready)

    assert seen == [(False, True)], "what comes later is collected as ever"
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0
    assert collected(backend.registry)
