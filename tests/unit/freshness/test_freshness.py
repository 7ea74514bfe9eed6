"""The age of published data against what is promised: the rule, and what the publish state gives it."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import FeatureStore
from featurestore.clock import to_us
from featurestore.errors import InputError, NotFoundError
from featurestore.freshness import ViewFreshness, view_freshness
from featurestore.registry.state import REPAIRING, PublishState
from featurestore.status import StaleReason, Status, stale_reasons
from materialization.job import Request
from tests.fix_repository import NOON, SmallRepository, hours, weather

NOON_US = to_us(NOON)
PROMISED = weather(freshness=hours(3))


def state(watermark_us: int | None, position: int = 7) -> PublishState:
    return PublishState(
        position=position, horizon_us=NOON_US, watermark_us=watermark_us, acknowledged_at_us=NOON_US + 1
    )


@pytest.mark.parametrize(
    ("age", "verdict"),
    [
        (timedelta(0), "holds"),
        (hours(3), "holds"),
        (hours(3) + timedelta(microseconds=1), "broken"),
        (hours(-1), "holds"),
    ],
)
def test_a_promise_holds_up_to_its_last_microsecond(age: timedelta, verdict: str) -> None:
    judged = view_freshness(PROMISED, state(to_us(NOON - age)), NOON_US)
    assert (judged.verdict, judged.broken) == (verdict, verdict == "broken")
    assert judged.age_us == max(age, timedelta(0)) // timedelta(microseconds=1)


@given(watermark=st.integers(0, 100), freshness=st.integers(1, 100), now=st.integers(0, 100))
def test_it_is_the_rule_by_which_rows_are_served_as_stale(watermark: int, freshness: int, now: int) -> None:
    view = weather(freshness=timedelta(microseconds=freshness))
    present = np.array([Status.PRESENT], np.uint8)
    reasons = stale_reasons(
        present, np.array([now]), now, max_age_us=None, freshness_us=freshness, watermark_us=watermark
    )
    assert view_freshness(view, state(watermark), now).broken == (reasons[0] == StaleReason.FRESHNESS)


def test_what_was_never_published_breaks_a_promise_and_nothing_else() -> None:
    for nothing in (None, state(None)):
        assert view_freshness(PROMISED, nothing, NOON_US).verdict == "never published"
        assert view_freshness(PROMISED, nothing, NOON_US).broken
        assert not view_freshness(weather(), nothing, NOON_US).broken
    assert view_freshness(weather(), state(0), NOON_US).verdict == "no promise"


def test_during_a_repair_no_position_is_told() -> None:
    judged = view_freshness(PROMISED, state(NOON_US, REPAIRING), NOON_US)
    assert (judged.position, judged.horizon_us, judged.verdict) == (None, NOON_US, "holds")


def judged(small: SmallRepository, view: str = "weather") -> ViewFreshness:
    with small.opened() as repository:
        (only,) = FeatureStore.of(repository).freshness(views=[view])
    return only


def test_it_comes_from_data_and_not_from_when_a_job_ran(repository: SmallRepository) -> None:
    """A job that runs in time and finds nothing new, or rows of the future only, does not mend a promise."""
    repository.apply(PROMISED)
    repository.write("weather/a.parquet", [("JFK", NOON - hours(2), 1.0, 1), ("JFK", NOON + hours(9), 2.0, 2)])
    assert judged(repository).verdict == "never published"
    repository.done(Request(publish=False))
    assert judged(repository).verdict == "never published"

    repository.done()
    assert judged(repository) == ViewFreshness(
        view="weather@1",
        promise_us=hours(3) // timedelta(microseconds=1),
        watermark_us=to_us(NOON - hours(2)),
        age_us=hours(2) // timedelta(microseconds=1),
        position=2,
        horizon_us=NOON_US,
    )

    repository.at(NOON + hours(2)).done()
    assert judged(repository).verdict == "broken"
    repository.at(NOON + hours(9)).done()
    assert (judged(repository).verdict, judged(repository).age_us) == ("holds", 0)


def test_views_and_services_are_chosen_by_name(repository: SmallRepository) -> None:
    repository.apply(PROMISED, weather(name="other"), weather(name="other", version=2))
    with repository.opened() as opened:
        store = FeatureStore.of(opened)
        assert [view.view for view in store.freshness()] == ["other@1", "other@2", "weather@1"]
        assert [view.view for view in store.freshness(views=["other", "other@1"])] == ["other@1", "other@2"]
        with pytest.raises(NotFoundError, match="no feature view named 'wether'"):
            store.freshness(views=["wether"])
        with pytest.raises(NotFoundError, match="no feature service named 'trips'"):
            store.freshness("trips")
        with pytest.raises(InputError, match="one of the two"):
            store.freshness("trips", views=["other"])
