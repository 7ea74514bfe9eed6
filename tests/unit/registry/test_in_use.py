"""A view that somebody reads goes only when forced; a service that promises more than its views is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.errors import EvolutionError
from featurestore.registry.apply import teardown
from featurestore.registry.definitions import Definitions
from featurestore.registry.readers import list_readers, record_reader
from tests.unit.registry.test_apply import CLOCK, LATE, WEATHER, Shop, declare, steps


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """One project on real stores in a folder."""
    opened = Shop.open(tmp_path, tmp_path / "registry.db")
    yield opened
    opened.registry.close()


def test_a_view_that_an_applied_service_reads_goes_only_after_it(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    shop.publish("weather@1")
    with pytest.raises(EvolutionError, match=r"weather@1: no longer declared; in use by feature service late; keep it"):
        shop.apply(Definitions())
    shop.apply(declare(WEATHER))
    shop.apply(Definitions())
    assert shop.histories() == {}


def test_a_view_that_was_read_lately_is_removed_only_when_forced(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    shop.publish("weather@1")
    shop.apply(declare(WEATHER))
    record_reader(shop.state, "model", "late_model", ["weather@1"], service="late")
    with pytest.raises(
        EvolutionError, match=r"in use by model late_model of service late, last seen .* --allow-in-use"
    ):
        shop.apply(Definitions())
    assert "weather@1" in shop.registry.views()
    assert steps(shop.apply(Definitions(), allow_in_use=True))[0] == ("remove feature view weather@1")


def test_readers_of_a_removed_view_do_not_hold_another_of_its_name(shop: Shop) -> None:
    other = replace(WEATHER, name="other")
    shop.apply(declare(WEATHER, other))
    shop.publish("weather@1")
    record_reader(shop.state, "model", "one", ["weather@1"])
    record_reader(shop.state, "model", "both", ["weather@1", "other@1"])
    shop.apply(declare(other), allow_in_use=True)
    assert [(reader.name, reader.views) for reader in list_readers(shop.state)] == [("both", ("other@1",))]


def test_readers_of_long_ago_hold_no_view(shop: Shop) -> None:
    shop.apply(declare(WEATHER))
    shop.publish("weather@1")
    record_reader(shop.state, "training set", "d" * 64, ["weather@1"], seen_at_us=1)
    shop.apply(Definitions())
    assert shop.registry.views() == {}


def test_a_teardown_asks_nobody(shop: Shop) -> None:
    shop.apply(declare(WEATHER, LATE))
    shop.publish("weather@1")
    record_reader(shop.state, "service", "late", ["weather@1"], service="late")
    teardown(shop.registry, shop.state, shop.offline, shop.online, who="ana", clock=CLOCK)
    assert shop.registry.views() == {}


def test_a_service_that_promises_more_than_a_view_it_reads_is_named(shop: Shop) -> None:
    view, service = replace(WEATHER, tier="experimental"), replace(LATE, tier="critical")
    said = "feature service late is critical and reads views that promise less: weather@1 (experimental)"
    assert said in shop.plan(declare(view, service)).notes
    assert said not in shop.plan(declare(replace(view, tier="critical"), service)).notes
    assert said not in shop.plan(declare(view, replace(service, tier=""))).notes
