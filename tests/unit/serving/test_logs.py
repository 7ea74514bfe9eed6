"""Log lines: each tells its request, none tells what was asked for, and a flood of them is bounded."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import grpc
import pytest

from featurestore_client import FeatureClient, RequestFailed
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from featurestore_client.columns import encode_column
from serving import status_codes
from serving.engine import INLINE_BYTES_MAX
from serving.logs import JsonLines, LineBudget, LogOptions, PlainLines, configure
from serving.observing import REQUEST_ID_CHARS_MAX, Call, Stage, enter, request_id_from
from serving.servicer import SERVICE
from serving.telemetry import Telemetry, TelemetryOptions
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the process logs, as JSON lines; those of this second are not used up by another test."""
    monkeypatch.setattr(status_codes, "_refusals", LineBudget())
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def read(lines: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def record(message: str = "x", **more: object) -> logging.LogRecord:
    made = logging.LogRecord("serving.x", logging.INFO, "x.py", 1, message, None, None)
    made.__dict__.update(more)
    return made


# ---------------------------------------------------------------- lines


def test_a_json_line_is_one_object_on_one_line_whatever_the_message() -> None:
    try:
        dict[str, int]()["key"]
    except KeyError as error:
        line = JsonLines().format(record('two\nlines and a "quote" and \ud800', exc_info=(KeyError, error, None)))

    assert "\n" not in line
    told = json.loads(line)
    assert (told["level"], told["logger"]) == ("info", "serving.x")
    assert told["message"] == 'two\nlines and a "quote" and \ud800'
    assert "KeyError" in told["traceback"]
    assert told["time"].endswith("Z")
    assert "request_id" not in told


@pytest.mark.parametrize("formatter", [JsonLines(), PlainLines()])
def test_lines_inside_a_request_carry_its_id(formatter: logging.Formatter) -> None:
    enter(Call("GetOnlineFeatures", "req-7"))
    try:
        assert "req-7" in formatter.format(record())
    finally:
        enter(None)
    assert "req-7" not in formatter.format(record())


def test_configuring_replaces_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure(LogOptions(format="json", level="warning"))
        configure(LogOptions(format="json", level="warning"))
        logging.getLogger("serving.x").info("not this")
        logging.getLogger("serving.x").warning("this")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "this"


# ---------------------------------------------------------------- request ids


@pytest.mark.parametrize("given", [None, "", "two\nlines", "ünï", b"bytes", "\x00"])
def test_an_id_that_is_no_plain_text_is_replaced(given: str | bytes | None) -> None:
    made = {request_id_from(given) for _ in range(100)}
    assert len(made) == 100
    assert all(len(one) == 32 and one.isalnum() for one in made)


def test_a_long_id_is_cut() -> None:
    assert request_id_from("x" * 100) == "x" * REQUEST_ID_CHARS_MAX


def test_every_reply_and_line_of_a_request_carries_its_id(backend: Backend, lines: io.StringIO) -> None:
    """Of a small request, of a large one, which a thread answers, and of a refused one."""
    telemetry = Telemetry(TelemetryOptions(logs=LogOptions(slow_s=1e-9)))
    with server(backend.engine(), telemetry=telemetry) as running, grpc.insecure_channel(running.target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")
        for name, keys in (("small", ["JFK"]), ("large", ["hunter2" * 50] * 1_000), ("refused", [7])):
            asked = pb.GetOnlineFeaturesRequest(service="airport_now", keys=[encode_column("origin", keys)])
            message = asked.SerializeToString()
            assert (len(message) > INLINE_BYTES_MAX) == (name == "large")
            metadata = (("x-request-id", f"id-{name}"), ("authorization", "Bearer hunter2"))
            if name == "refused":
                with pytest.raises(grpc.RpcError) as error:
                    call(message, metadata=metadata, timeout=10)
                trailing = error.value.trailing_metadata()
            else:
                trailing = call.with_call(message, metadata=metadata, timeout=10)[1].trailing_metadata()
            assert dict(trailing)["x-request-id"] == f"id-{name}"

    told = read(lines)
    slow = {line["request_id"]: line for line in told if line["message"].startswith("slow request")}
    assert set(slow) == {"id-small", "id-large", "id-refused"}
    assert slow["id-large"]["rows"] == 1_000
    assert set(slow["id-small"]["stages"]) == {stage.name.lower() for stage in Stage} - {"model"}
    assert slow["id-refused"]["code"] == "INVALID_ARGUMENT"
    (refusal,) = [line for line in told if "refused with" in line["message"]]
    assert refusal["request_id"] == "id-refused"
    assert "hunter2" not in lines.getvalue(), "neither keys nor tokens are logged"


def test_a_client_finds_the_id_of_a_refused_request_in_the_log(backend: Backend, lines: io.StringIO) -> None:
    with (
        server(backend.engine()) as running,
        FeatureClient(running.target) as client,
        pytest.raises(RequestFailed) as refused,
    ):
        client.get_online_features("nobody", {"origin": ["JFK"]})

    assert refused.value.request_id in [line.get("request_id") for line in read(lines)]


# ---------------------------------------------------------------- slow requests


def slow_lines(lines: io.StringIO) -> list[str]:
    return [line["message"] for line in read(lines) if line["message"].startswith("slow request")]


def test_only_requests_beyond_the_bound_are_slow(lines: io.StringIO) -> None:
    telemetry = Telemetry(TelemetryOptions(logs=LogOptions(slow_s=100)))
    for took_ns in (1_000_000_000, 101_000_000_000):
        call = telemetry.begin("GetOnlineFeatures", None, None)
        call.started_ns -= took_ns
        telemetry.end(call, "OK")
    enter(None)

    (line,) = slow_lines(lines)
    assert "took 10" in line


def test_a_flood_of_lines_is_bounded_and_told() -> None:
    now = 0.0
    budget = LineBudget(per_s=3, ticks=lambda: now)

    assert [budget.take() for _ in range(5)] == ["", "", "", None, None]
    now = 1.0
    assert budget.take() == " (2 more like it were not logged)"
    assert budget.take() == ""
