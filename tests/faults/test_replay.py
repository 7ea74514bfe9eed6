"""A replay that is killed anywhere, and done again: history and quarantine end as if nobody had killed it."""

from __future__ import annotations

import pytest

from featurestore import FeatureStore
from featurestore.failpoint import KILLED
from featurestore.offline.quarantine import Chosen
from tests.fix_repository import NOON, SmallRepository, hours, weather
from tests.unit.materialization.test_replay import REF, warm

#: Where it is killed -> (rows that are history by then, rows left in quarantine); 25 rows in batches of 10, 5 of which
#: break the contract still.
KILLS = {
    "append.before_commit:2": (8, 17),
    "append.after_commit:3": (20, 5),
    "publish.before_commit": (20, 5),
}


@pytest.mark.parametrize("failpoint", KILLS)
def test_a_killed_replay_loses_nothing_and_is_finished_by_the_next(failpoint: str, repository: SmallRepository) -> None:
    repository.apply(warm(0))
    temps = [90.0 if n % 5 == 0 else 10.0 + n for n in range(25)]
    repository.write("weather/a.parquet", [(f"A{n:02}", NOON - hours(1), temp, n) for n, temp in enumerate(temps)])
    repository.done()
    repository.apply(weather(schema=warm(50).schema, on_violation="quarantine"))

    killed = repository.run_command("quarantine", "replay", "--view", "weather", FEATURESTORE_FAILPOINT=failpoint)

    assert killed.returncode == KILLED, killed.stderr
    left = repository.offline.quarantine.rows(Chosen(view=REF)).num_rows
    assert (repository.history().num_rows, left) == KILLS[failpoint]

    with repository.opened() as opened:
        assert FeatureStore.of(opened).replay_quarantine("weather").errors == []

    history = repository.history()
    # In the order of arrival, with the sequences of arrival.
    assert history.column("seen").to_pylist() == [n for n in range(25) if n % 5]
    assert history.column("_sequence").to_pylist() == [n + 1 for n in range(25) if n % 5]
    assert repository.offline.quarantine.rows(Chosen(view=REF)).num_rows == 5
    repository.assert_positions_contiguous()
    repository.assert_online_is_projection()
    repository.assert_verified()
