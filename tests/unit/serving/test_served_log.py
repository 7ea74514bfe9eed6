"""The served log as it is written: bounded, never waiting, readable however it ends."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import ConfigError, InputError
from featurestore.served_log import SCHEMA, ReadLog, read_served_log, records_of
from featurestore.status import Status
from featurestore_client import FeatureClient, RequestFailed
from serving.response import OnlineResponse
from serving.served_log import FILES, LogFiles, ServedLog, ServedLogOptions, reply_records
from serving.server import ServeOptions
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.unit.serving.world import (
    HOUR_US,
    NOW,
    NOW_US,
    THINGS,
    VALUES,
    World,
    airport_now,
    all_types,
    delays,
    departures,
    everything,
    key_arrays,
    weather,
)
from tests.waiting import until


@pytest.fixture
def full(world: World) -> World:
    columns = {"temp": [1.5, None], "wind": [0.1, None], "sky": ["clear", None]}
    world.put(weather, {"origin": ["JFK", "EWR"]}, columns)
    world.put(delays, {"origin": ["JFK"], "number": [1]}, {"delay": [5], "busy": [True], "temp": [0.5]}, NOW_US - 9)
    world.put(everything, {"id": THINGS}, VALUES)
    return world


def departing(world: World, origins: list[str | None], numbers: list[int]) -> OnlineResponse:
    keys = key_arrays(origin=pa.array(origins, pa.string()), number=pa.array(numbers, pa.int32()))
    return world.lookup(departures).lookup(keys, key_arrays(hour=pa.array([7] * len(origins), pa.int32())))


def options(folder: Path, **changes: object) -> ServedLogOptions:
    chosen = {"folder": folder, "sample": 1.0, "max_bytes": 1 << 24, "queue_rows": 10_000} | changes
    return ServedLogOptions(**chosen)  # type: ignore[arg-type]


def read_all(path: Path, read: ReadLog | None = None) -> pa.Table:
    return pa.concat_tables([SCHEMA.empty_table(), *read_served_log(path, read or ReadLog())])


def test_a_record_tells_of_each_row_and_view_what_the_client_got(full: World, tmp_path: Path) -> None:
    log = ServedLog(options(tmp_path / "log"))
    log.record(departing(full, ["JFK", "LGA", None], [1, 1, 2]))
    log.record(departing(full, ["EWR"], [1]))
    log.close()

    read = ReadLog()
    records = read_all(tmp_path / "log", read)
    assert read == ReadLog(files=1)
    shown = ["reply", "row", "service", "view", "fields", "status", "event_timestamp", "sequence"]
    weather_fields, delay_fields = "temp,wind", "delay,temp"
    assert sorted(zip(*(records.column(name).to_pylist() for name in shown), strict=True), key=repr) == [
        (0, 0, "departures", "delays@2", delay_fields, Status.PRESENT, NOW.replace(hour=11, minute=59, second=59,
                                                                                    microsecond=999991), 1),
        (0, 0, "departures", "weather@1", weather_fields, Status.PRESENT, NOW, 1),
        (0, 1, "departures", "delays@2", delay_fields, Status.NOT_FOUND, None, None),
        (0, 1, "departures", "weather@1", weather_fields, Status.NOT_FOUND, None, None),
        (0, 2, "departures", "delays@2", delay_fields, Status.NOT_FOUND, None, None),
        (0, 2, "departures", "weather@1", weather_fields, Status.NOT_FOUND, None, None),
        (1, 0, "departures", "delays@2", delay_fields, Status.NOT_FOUND, None, None),
        (1, 0, "departures", "weather@1", weather_fields, Status.NULL, NOW, 2),
    ]  # fmt: skip
    assert set(records.column("served_at").to_pylist()) == {NOW}
    assert set(records.column("signature").to_pylist()) == {full.lookup(departures).plan.signature}
    assert records.column("key").null_count == 2
    assert read_all(tmp_path / "log").num_rows == sum(
        table.num_rows for table in records_of(read_served_log(tmp_path / "log", ReadLog()), "departures")
    )


def test_the_digest_is_that_of_the_values(full: World) -> None:
    """Equal for equal replies, another for each other value of any type."""
    asked = lambda: full.lookup(all_types).lookup(key_arrays(id=THINGS))  # noqa: E731
    digests = reply_records([asked(), asked()], 0, 1.0).column("digest").to_pylist()
    assert digests[: len(THINGS)] == digests[len(THINGS) :]
    assert len(set(digests)) == len(THINGS)
    before = digests[0]
    for field in everything.schema:
        changed = {name: [values[1], *values[1:]] if name == field.name else values for name, values in VALUES.items()}
        full.store.drop("everything@1")
        full.put(everything, {"id": THINGS}, changed)
        assert reply_records([asked()], 0, 1.0).column("digest")[0].as_py() != before, field.name


def test_a_sample_takes_the_same_entities_every_time(full: World) -> None:
    origins = [f"A{number}" for number in range(4000)]
    first = full.lookup(airport_now).lookup(key_arrays(origin=origins))
    again = full.lookup(airport_now).lookup(key_arrays(origin=origins[::-1]))
    sampled = [set(reply_records([reply], 0, 0.1).column("key").to_pylist()) for reply in (first, again)]
    assert sampled[0] == sampled[1]
    assert 300 < len(sampled[0]) < 500
    larger = set(reply_records([first], 0, 0.2).column("key").to_pylist())
    assert sampled[0] < larger


def test_rows_beyond_the_queue_are_dropped_and_counted(full: World, tmp_path: Path) -> None:
    log = ServedLog(options(tmp_path / "log", queue_rows=5))
    reply = departing(full, ["JFK", "LGA", "EWR"], [1, 1, 1])
    with log._lock:  # the writer cannot take what waits
        log._rows += 3
    for _ in range(4):
        log.record(reply)
    log.close()
    read = ReadLog()
    assert read_all(tmp_path / "log", read).num_rows == 0
    assert read.dropped == 12


def test_a_log_that_cannot_be_written_keeps_no_request_waiting(
    full: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    log = ServedLog(options(folder))
    shutil.rmtree(folder)
    log.record(departing(full, ["JFK"], [1]))
    until(lambda: "the served log cannot be written" in caplog.text)
    folder.mkdir()
    log.record(departing(full, ["LGA"], [1]))
    log.close()
    read = ReadLog()
    assert read_all(folder, read).column("reply").to_pylist() == [0, 0]
    assert read.dropped == 1


def test_a_file_that_cannot_grow_loses_a_batch_that_is_counted(full: World, tmp_path: Path) -> None:
    """The kernel refuses bytes past a limit, in the middle of a batch, as a full disk does."""
    folder = tmp_path / "log"
    origins, numbers = [f"A{number}" for number in range(100)], list(range(100))
    log = ServedLog(options(folder))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        for _ in range(20):
            log.record(departing(full, list(origins), numbers))
            log._wake.set()
            until(lambda: not log._waiting)
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    read = ReadLog()
    records = read_all(folder, read)
    assert read.files > 1
    assert read.cut == read.files - 1
    assert read.dropped > 0
    assert records.num_rows // 2 + read.dropped == 2_000, "each reply row is in the log, or counted"


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"served_log\.path .* cannot be made"):
        ServedLog(options(tmp_path / "file" / "log"))


def test_a_log_cut_anywhere_is_read_up_to_its_last_whole_batch(full: World, tmp_path: Path) -> None:
    files = LogFiles(tmp_path / "log", 1 << 30)
    batches = [reply_records([departing(full, ["JFK", "LGA"], [n, 1])], n, 1.0) for n in range(3)]
    ends = []
    for batch in batches:
        files.write(batch)
        (file,) = (tmp_path / "log").iterdir()
        ends.append(file.stat().st_size)
    files.close()
    whole = file.read_bytes()
    assert read_all(file).equals(pa.concat_tables(batches))
    for size in {*range(0, len(whole), 37), *ends, *(end - 1 for end in ends), len(whole) - 1}:
        file.write_bytes(whole[:size])
        read = ReadLog()
        expected = sum(end <= size for end in ends)
        assert read_all(file, read).equals(pa.concat_tables([SCHEMA.empty_table(), *batches[:expected]])), size
        assert (read.files, read.cut) == (1, 1), size


def test_what_is_no_served_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no served log"):
        read_all(tmp_path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_all(tmp_path / "nothing")
    (tmp_path / "other").write_bytes(b"text")
    with pytest.raises(InputError, match="is no served log"):
        read_all(tmp_path / "other")
    with pa.OSFile(str(tmp_path / "arrow"), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(InputError, match="no served log of this release"):
        read_all(tmp_path / "arrow")


def test_the_folder_stays_within_its_bound(full: World, tmp_path: Path) -> None:
    max_bytes = 400_000
    files = LogFiles(tmp_path / "log", max_bytes)
    origins = [f"A{number}" for number in range(150)]
    batch = reply_records([departing(full, list(origins), list(range(150)))], 0, 1.0)
    largest = 0
    for number in range(150):
        files.write(batch.set_column(1, SCHEMA.field(1), pa.array([number] * batch.num_rows, pa.uint64())))
        largest = max(largest, sum(path.stat().st_size for path in (tmp_path / "log").iterdir()))
    files.close()
    one_batch = max_bytes // FILES  # a file is ended once it is past its share
    assert max_bytes // 2 < largest <= max_bytes + one_batch
    replies = read_all(tmp_path / "log").column("reply").to_numpy()
    assert replies.max() == 149, "the newest stay"
    assert np.array_equal(np.unique(replies), np.arange(replies.min(), 150)), "the oldest go"


def calls(function: Callable[[], object]) -> int:
    count = 0

    def profile(*_: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_recording_makes_no_call_per_value(full: World) -> None:
    few, many = (departing(full, ["JFK"] * rows, list(range(rows))) for rows in (10, 5_000))
    assert calls(lambda: reply_records([many], 0, 0.5)) <= calls(lambda: reply_records([few], 0, 0.5)) + 20


# ---------------------------------------------------------------- in a server


def test_a_server_records_what_it_answers_and_nothing_else(backend: Backend, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    running_options = ServeOptions(port=0, poll_s=0.05, served_log=options(folder))
    with server(backend.engine(), running_options) as running, FeatureClient(running.target) as client:
        client.get_online_features("airport_now", {"origin": ["JFK", "LGA", "JFK"]})
        client.get_online_features(["delays:delay"], {"origin": ["JFK"], "number": [1]}, format="matrix")
        with pytest.raises(RequestFailed):
            client.get_online_features("all_types", {"id": [1]}, format="matrix")  # it has no matrix
    records = read_all(folder)
    assert records.column("service").to_pylist() == ["airport_now"] * 3 + [""]
    assert records.column("view").to_pylist() == ["weather@1"] * 3 + ["delays@2"]
    assert records.column("event_timestamp").cast(pa.int64()).to_pylist() == [NOW_US] * 3 + [NOW_US - HOUR_US]
