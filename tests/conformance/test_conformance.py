"""Every case of the corpus on every engine: the double loop, training sets, serving after publishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest

from featurestore.compiler.point_in_time_join import KNOWLEDGE
from featurestore.online.base import OnlineStore
from tests import oracle
from tests.conformance.answers import Answer, arrive_all, expected, oracle_answers
from tests.conformance.cases import Ask, Case, read_corpus
from tests.conformance.engines import OFFLINE, ONLINE, PAIRS, REPLAYING, Histories, Projection
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
    """An offline store for one case after the other."""
    with OFFLINE[request.param](request, tmp_path_factory.mktemp("offline"), "conformance") as store:
        yield Histories(store, "conformance")


@pytest.fixture(scope="module", params=OFFLINE if AS_SERVED else [])
def replay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    """A repository that has the views of all cases with as_served."""
    root, project = tmp_path_factory.mktemp("replay"), "conformance_replay"
    with (
        REPLAYING[request.param](request, root, project) as store,
        replaying(root, project, store, SERVED_CASES) as made,
    ):
        yield made


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Histories, OnlineStore]]:
    """Histories, and an online store that they are published into."""
    offline, online = request.param
    folder = tmp_path_factory.mktemp("serving")
    with (
        OFFLINE[offline](request, folder, "conformance_served") as store,
        ONLINE[online](request, folder, "conformance_served") as served,
    ):
        yield Histories(store, "conformance_served"), served


def test_no_engine_is_left_out() -> None:
    assert {offline for offline, _ in PAIRS} == set(OFFLINE)
    assert {online for _, online in PAIRS} == set(ONLINE)


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
def test_training_sets_and_counts_are_as_the_case_says(case: Case, histories: Histories) -> None:
    counts = {number: counted for history in arrive_all(case).values() for number, counted in history.counts.items()}
    histories.begin(case)
    assert histories.load_all(case) == counts
    assert histories.training_set(case, "created") == expected(case, lambda ask: ask.expect)
    if wanted := expected(case, lambda ask: ask.expect_event):
        assert _of(histories.training_set(case, "event"), wanted) == wanted


# ------------------------------------------------------------------ serving


@each(CASES)
def test_serving_answers_as_the_case_says(case: Case, pair: tuple[Histories, OnlineStore]) -> None:
    wanted = expected(case, lambda ask: ask.expect)
    projection = Projection(case, *pair)
    assert _after_publishes_as_things_come(projection) == wanted
    anew = _after_one_publish_into_an_empty_store(projection)
    assert anew == _of(wanted, anew)
    projection.empty()


def _after_publishes_as_things_come(projection: Projection) -> dict[int, dict[str, Answer]]:
    """What serving answers when each arrival was published as it came, with its fields, and then each later instant."""
    case, (first, *later) = projection.case, _by_instant(projection.case)
    projection.histories.begin(case)
    projection.empty()
    for arrival in case.arrivals:
        projection.histories.load(case, arrival)
        projection.publish(arrival.view, first, arrival.number)
    projection.histories.complete(case)
    got = projection.serve(first, _by_instant(case)[first])
    for now_us in later:
        projection.publish_all(now_us)
        got |= projection.serve(now_us, _by_instant(case)[now_us])
    return got


def _after_one_publish_into_an_empty_store(projection: Projection) -> dict[int, dict[str, Answer]]:
    """What serving answers at each instant when all of history was published at once."""
    got = dict[int, dict[str, Answer]]()
    # Of a single arrival, the first instant was published so already.
    done = 1 if len(projection.case.arrivals) == 1 else 0
    for now_us, asks in list(_by_instant(projection.case).items())[done:]:
        projection.empty()
        projection.publish_all(now_us)
        got |= projection.serve(now_us, asks)
    return got


def _by_instant(case: Case) -> dict[int, dict[int, Ask]]:
    """as_of -> spine row -> ask, from the first instant to the last."""
    instants: dict[int, dict[int, Ask]] = {ask.as_of_us: {} for ask in sorted(case.spine, key=lambda ask: ask.as_of_us)}
    for place, ask in enumerate(case.spine):
        instants[ask.as_of_us][place] = ask
    return instants


def _of(answers: dict[int, dict[str, Answer]], rows: Iterable[int]) -> dict[int, dict[str, Answer]]:
    return {row: answers[row] for row in rows}


# ------------------------------------------------------------------ as served


@each(SERVED_CASES)
def test_what_is_expected_as_served_is_what_serving_answered(case: Case, pair: tuple[Histories, OnlineStore]) -> None:
    waiting, got = list(case.arrivals), dict[int, dict[str, Answer]]()
    projection = Projection(case, *pair)
    histories = projection.histories
    histories.begin(case)
    histories.complete(case)
    projection.empty()
    for now_us, asks in _by_instant(case).items():
        while waiting and (waiting[0].acknowledged_us or 0) <= now_us:
            arrival = waiting.pop(0)
            histories.load(case, arrival)
            projection.publish(arrival.view, arrival.at_us or 0)
        got |= projection.serve(now_us, asks)
    projection.empty()
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
