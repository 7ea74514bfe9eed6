"""Every case of the corpus on every engine: the double loop, training sets, serving after publishes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from featurestore.compiler.point_in_time_join import KNOWLEDGE
from featurestore.online.base import OnlineStore
from tests import oracle
from tests.conformance.answers import Answer, arrive_all, expected, oracle_answers
from tests.conformance.cases import Ask, Case, read_corpus
from tests.conformance.engines import OFFLINE, ONLINE, Histories, Projection
from tests.conformance.replay import Replay, replaying

CASES = read_corpus()
EVENT_CASES = [case for case in CASES if any(ask.expect_event is not None for ask in case.spine)]
SERVED_CASES = [case for case in CASES if any(ask.as_served is not None for ask in case.spine)]
#: Engines are asked for what was served as soon as they know the word; the double loop and serving itself always are.
AS_SERVED = "as_served" in KNOWLEDGE


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """One test a case."""
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(scope="module", params=OFFLINE)
def histories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Histories]:
    """All cases loaded once, for training sets and for publishes into empty stores."""
    yield from _histories(request, tmp_path_factory, "conformance")


@pytest.fixture(scope="module", params=OFFLINE)
def growing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Histories]:
    """Histories that are loaded arrival by arrival, with publishes between."""
    yield from _histories(request, tmp_path_factory, "conformance_growing")


@pytest.fixture(scope="module", params=OFFLINE if AS_SERVED else [])
def replay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    """A repository that has the views of all cases with as_served."""
    root, project = tmp_path_factory.mktemp("replay"), "conformance_replay"
    with OFFLINE[request.param](request, root, project) as store, replaying(root, project, store, SERVED_CASES) as made:
        yield made


@pytest.fixture(scope="module", params=ONLINE)
def online(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnlineStore]:
    """An online store; every test empties what it uses."""
    with ONLINE[request.param](request, tmp_path_factory.mktemp("online"), "conformance") as store:
        yield store


def _histories(request: pytest.FixtureRequest, folders: pytest.TempPathFactory, project: str) -> Iterator[Histories]:
    with OFFLINE[request.param](request, folders.mktemp(project), project) as store:
        yield Histories(store, project)


# ------------------------------------------------------------------ the double loop


@each(CASES)
def test_the_double_loop_agrees(case: Case) -> None:
    assert oracle_answers(case, "created") == expected(case, lambda ask: ask.expect)
    counts = {ref: history.counts for ref, history in arrive_all(case).items()}
    for arrival in case.arrivals:
        assert arrival.counts is None or counts[arrival.view][arrival.number] == arrival.counts


@each(EVENT_CASES)
def test_the_double_loop_agrees_on_what_was_known_from_the_event_on(case: Case) -> None:
    wanted = expected(case, lambda ask: ask.expect_event)
    assert _of(oracle_answers(case, "event"), wanted) == wanted


@each(SERVED_CASES)
def test_the_double_loop_agrees_on_what_was_served(case: Case) -> None:
    wanted = expected(case, lambda ask: ask.as_served)
    assert _of(oracle_answers(case, "as_served"), wanted) == wanted
    histories = arrive_all(case)
    for ask in case.spine:
        for ref, answer in (ask.as_served or {}).items():
            assert oracle.uncertain(ask.as_of_us, histories[ref].publishes) == answer.uncertain


# ------------------------------------------------------------------ training sets


@each(CASES)
def test_arrivals_are_counted_as_the_case_says(case: Case, histories: Histories) -> None:
    histories.load_all(case)
    counts = {number: counted for history in arrive_all(case).values() for number, counted in history.counts.items()}
    assert {number: histories.counts[case.name, number] for number in counts} == counts


@each(CASES)
def test_a_training_set_has_the_expected_rows(case: Case, histories: Histories) -> None:
    histories.load_all(case)
    assert histories.training_set(case, "created") == expected(case, lambda ask: ask.expect)


@each(EVENT_CASES)
def test_a_training_set_known_from_the_event_on_has_the_expected_rows(case: Case, histories: Histories) -> None:
    histories.load_all(case)
    wanted = expected(case, lambda ask: ask.expect_event)
    assert _of(histories.training_set(case, "event"), wanted) == wanted


# ------------------------------------------------------------------ serving


@each(CASES)
def test_serving_answers_as_expected_after_one_publish(case: Case, histories: Histories, online: OnlineStore) -> None:
    histories.load_all(case)
    projection = Projection(case, histories, online)
    got: dict[int, dict[str, Answer]] = {}
    for now_us, asks in _by_instant(case).items():
        projection.empty()
        projection.publish_all(now_us)
        got |= projection.serve(now_us, asks)
    assert got == expected(case, lambda ask: ask.expect)


@each(CASES)
def test_serving_answers_as_expected_after_a_publish_for_each_arrival_and_instant(
    case: Case, growing: Histories, online: OnlineStore
) -> None:
    instants = _by_instant(case)
    growing.forget(case)
    projection = Projection(case, growing, online)
    projection.empty()
    for arrival in case.arrivals:
        growing.load(case, arrival)
        projection.publish(arrival.view, min(instants), arrival.number)
    growing.complete(case)
    got: dict[int, dict[str, Answer]] = {}
    for now_us, asks in instants.items():
        projection.publish_all(now_us)
        got |= projection.serve(now_us, asks)
    assert got == expected(case, lambda ask: ask.expect)


def _by_instant(case: Case) -> dict[int, dict[int, Ask]]:
    """as_of -> spine row -> ask, from the first instant to the last."""
    instants: dict[int, dict[int, Ask]] = {ask.as_of_us: {} for ask in sorted(case.spine, key=lambda ask: ask.as_of_us)}
    for place, ask in enumerate(case.spine):
        instants[ask.as_of_us][place] = ask
    return instants


def _of(answers: dict[int, dict[str, Answer]], wanted: dict[int, dict[str, Answer]]) -> dict[int, dict[str, Answer]]:
    return {place: answers[place] for place in wanted}


# ------------------------------------------------------------------ as served


@each(SERVED_CASES)
def test_what_is_expected_as_served_is_what_serving_answered(
    case: Case, growing: Histories, online: OnlineStore
) -> None:
    growing.forget(case)
    growing.complete(case)
    projection = Projection(case, growing, online)
    projection.empty()
    waiting = list(case.arrivals)
    got: dict[int, dict[str, Answer]] = {}
    for now_us, asks in _by_instant(case).items():
        while waiting and (waiting[0].acknowledged_us or 0) <= now_us:
            arrival = waiting.pop(0)
            growing.load(case, arrival)
            projection.publish(arrival.view, arrival.at_us or 0)
        got |= projection.serve(now_us, asks)
    wanted = expected(case, lambda ask: ask.as_served)
    assert _of(got, wanted) == wanted


if AS_SERVED:

    @each(SERVED_CASES)
    def test_a_training_set_as_served_has_the_expected_rows(case: Case, replay: Replay) -> None:
        for arrival in case.arrivals:
            replay.materialize(case, arrival)
        got, table = replay.training_set(case, "as_served")
        wanted = expected(case, lambda ask: ask.as_served)
        assert _of(got, wanted) == wanted
        for place, ask in enumerate(case.spine):
            for ref, answer in (ask.as_served or {}).items():
                assert replay.uncertain(case, table, ref, place) == answer.uncertain
