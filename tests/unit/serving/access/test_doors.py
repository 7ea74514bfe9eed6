"""Real servers, real clients, real certificates: who gets in, what each may do, and what changes without a restart."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from featurestore.errors import ConfigError
from featurestore.settings_access import AuthSettings, TlsSettings
from featurestore_client import FeatureClient
from featurestore_client.access import Tls
from serving.access.door import Door
from serving.access.tokens import new_token, token_entry
from serving.door_interceptor import DoorInterceptor
from serving.engine import INLINE_BYTES_MAX
from serving.server import ServeOptions
from serving.servicer import SERVICE
from serving.status_codes import ErrorInterceptor
from tests.unit.serving.access.office import GRANTS, KEYS, TOKENS, Office, lets_in, refusal
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server
from tests.waiting import until

# ---------------------------------------------------------------- tokens and grants


def test_a_token_reads_what_is_granted_and_nothing_else(office: Office, target: str) -> None:
    with office.client(target, office.tokens["pricing"]) as client:
        assert client.get_online_features("airport_now", KEYS).to_numpy()["temp"].tolist() == [1.5]
        assert client.describe_service("airport_now").name == "airport_now"
        assert lets_in(client, ["weather:temp", "weather@1:wind"])

        for ask in (
            lambda: client.get_online_features("departures", KEYS),
            lambda: client.describe_service("departures"),
            lambda: client.get_online_features(["weather:temp", "delays:delay"], KEYS),
            lambda: client.describe_service(["delays@2:delay"]),
        ):
            code, message = refusal(ask)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert message.startswith("token pricing may not read feature ")
            assert "ask the operator" in message


def test_a_caller_without_grants_learns_nothing_of_what_there_is(office: Office, target: str) -> None:
    """What is there and what is not look alike."""
    with office.client(target, office.tokens["nobody"]) as client:
        for there, not_there in (("airport_now", "airport_xyz"), (["weather:temp"], ["weathex:temp"])):
            (code, message), (other_code, other_message) = (
                refusal(partial(client.get_online_features, what, KEYS)) for what in (there, not_there)
            )
            assert code is other_code is grpc.StatusCode.PERMISSION_DENIED
            assert message.replace("airport_now", "").replace("'weather'", "") == other_message.replace(
                "airport_xyz", ""
            ).replace("'weathex'", "")


def test_an_unknown_name_is_answered_with_the_names_one_may_use(office: Office, target: str) -> None:
    with office.client(target, office.tokens["pricing"]) as client:
        code, message = refusal(lambda: client.get_online_features("airport_then", KEYS))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "airport_now" in message
        assert "departures" not in message
        code, message = refusal(lambda: client.get_online_features(["weather@9:temp"], KEYS))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "delays" not in message


@pytest.mark.parametrize("rows", [1, 2_000])
def test_large_requests_are_judged_as_small_ones(backend: Backend, office: Office, target: str, rows: int) -> None:
    """They are answered on a thread, which does not see the task's variables."""
    keys = {"origin": ["JFK" * 5] * rows}
    assert (rows * 15 > INLINE_BYTES_MAX) == (rows > 1)
    with office.client(target, office.tokens["pricing"]) as client:
        assert len(client.get_online_features("airport_now", keys)) == rows
        assert refusal(lambda: client.get_online_features("departures", keys))[0] is grpc.StatusCode.PERMISSION_DENIED


def call(office: Office, target: str, metadata: list[tuple[str, str]]) -> grpc.StatusCode:
    """The code of a request with these headers, malformed bytes and all."""
    credentials = grpc.ssl_channel_credentials((office.folder / "ca.pem").read_bytes())
    with grpc.secure_channel(target, credentials) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/GetOnlineFeatures")(b"\xff", timeout=10, metadata=metadata)
    return caught.value.code()


def bad_headers(tokens: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    token = tokens["pricing"]
    return {
        "none": [],
        "empty": [("authorization", "")],
        "no scheme": [("authorization", token)],
        "no token": [("authorization", "Bearer ")],
        "another scheme": [("authorization", f"Basic {token}")],
        "wrong token": [("authorization", f"Bearer {token[:-1]}")],
        "its digest": [("authorization", f"Bearer {hashlib.sha256(token.encode()).hexdigest()}")],
        "two headers": [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {tokens['nobody']}")],
        "the same twice": [("authorization", f"Bearer {token}")] * 2,
        "two tokens": [("authorization", f"Bearer {token} {token}")],
        "another header": [("x-authorization", f"Bearer {token}")],
    }


@pytest.mark.parametrize("how", bad_headers(dict.fromkeys(TOKENS, "")))
def test_a_stranger_is_stopped_before_its_request_is_read(office: Office, target: str, how: str) -> None:
    assert call(office, target, bad_headers(office.tokens)[how]) is grpc.StatusCode.UNAUTHENTICATED
    good = [("authorization", f"bearer   {office.tokens['pricing']}")]
    assert call(office, target, good) is grpc.StatusCode.INVALID_ARGUMENT


def test_tokens_and_grants_change_without_a_restart(office: Office, target: str) -> None:
    new = new_token()
    entry = token_entry("pricing", office.tokens["pricing"], [])
    with (
        office.client(target, office.tokens["pricing"]) as old_client,
        office.client(target, lambda: new) as new_client,
    ):
        assert (lets_in(old_client), lets_in(new_client)) == (True, False)
        digests = [hashlib.sha256(token.encode()).hexdigest() for token in (office.tokens["pricing"], new)]
        office.write("tokens.toml", f"[pricing]\nsha256 = {digests}\n")
        until(lambda: lets_in(new_client))
        assert lets_in(old_client)
        office.write("tokens.toml", f"[pricing]\nsha256 = {digests[1:]}\n")
        until(lambda: not lets_in(old_client))
        assert lets_in(new_client)

        assert not lets_in(new_client, "departures")
        office.write("grants.toml", GRANTS.replace('"airport_*"', '"airport_*", "departures"'))
        until(lambda: refusal(lambda: new_client.get_online_features("departures", KEYS))[0].name == "INVALID_ARGUMENT")
        office.write("grants.toml", "")
        until(lambda: not lets_in(new_client))

        office.write("tokens.toml", entry + "[broken")
        time.sleep(1.2)
        code, _ = refusal(lambda: new_client.get_online_features("airport_now", KEYS))
        assert code is grpc.StatusCode.PERMISSION_DENIED, "the last good file holds: it is known, with no grants"


# ---------------------------------------------------------------- health, reflection, whatever else


def reflect(channel: grpc.Channel, token: str = "") -> list[str]:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=10, metadata=metadata)
    return [service.name for service in reply.list_services_response.service]


def healthy(channel: grpc.Channel) -> bool:
    reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def test_health_is_open_and_reflection_is_for_operators(office: Office, target: str) -> None:
    with grpc.secure_channel(target, grpc.ssl_channel_credentials((office.folder / "ca.pem").read_bytes())) as channel:
        assert healthy(channel)
        for token, code in (("", "UNAUTHENTICATED"), ("x", "UNAUTHENTICATED"), ("pricing", "PERMISSION_DENIED")):
            with pytest.raises(grpc.RpcError) as caught:
                reflect(channel, office.tokens.get(token, token))
            assert caught.value.code().name == code
        assert SERVICE in reflect(channel, office.tokens["operator"])


def test_without_auth_everybody_may_do_everything(backend: Backend, office: Office) -> None:
    with office.serve(backend, auth=AuthSettings(), tls=TlsSettings()) as running:
        with grpc.insecure_channel(running.target) as channel:
            assert healthy(channel)
            assert SERVICE in reflect(channel)
        with FeatureClient(running.target) as client:
            assert lets_in(client)
            assert lets_in(client, ["weather:temp"])
            assert client.describe_service("departures").name == "departures"


@pytest.mark.parametrize("name", [f"{SERVICE}/NobodyThoughtOfIt", "other.Service/GetOnlineFeatures"])
def test_a_method_that_does_not_ask_its_caller_is_denied_to_all(office: Office, name: str) -> None:
    """So that a method added later cannot be forgotten."""
    service, method = name.split("/")
    answered = []

    async def answer(request: bytes, context: object) -> bytes:
        answered.append(request)
        return request

    async def code() -> grpc.StatusCode:
        office.write("grants.toml", "[token.pricing]\nread = ['*']\nviews = ['*']\npush = ['*']\noperate = true\n")
        served = grpc.aio.server(interceptors=[ErrorInterceptor(), DoorInterceptor(Door(office.auth()))])
        handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
        served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        port = served.add_insecure_port("127.0.0.1:0")
        await served.start()
        metadata = [("authorization", f"Bearer {office.tokens['pricing']}")]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                await channel.unary_unary(f"/{name}")(b"", metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
            finally:
                await served.stop(None)
        return grpc.StatusCode.OK

    assert asyncio.run(code()) is grpc.StatusCode.PERMISSION_DENIED
    assert answered == []


# ---------------------------------------------------------------- the edges


@pytest.mark.parametrize(
    "target", ["features.internal:6566", "10.0.0.7:6566", "0.0.0.0:6566", "dns:///x:1", "localhost.evil:1", "x"]
)
def test_a_token_never_crosses_a_network_in_plaintext_unasked(target: str) -> None:
    with pytest.raises(ValueError, match="readable to all"):
        FeatureClient(target, token=new_token())
    FeatureClient(target, token=new_token(), allow_plaintext_token=True).close()
    FeatureClient(target, token=new_token(), tls=Tls()).close()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/x", "dns:///localhost:1"])
def test_on_this_machine_a_token_may(target: str) -> None:
    FeatureClient(target, token=new_token()).close()


def test_a_token_read_from_a_file_may_end_with_its_newline(office: Office, target: str) -> None:
    with office.client(target, lambda: office.tokens["pricing"] + "\n") as client:
        assert lets_in(client)


@pytest.mark.parametrize("character", ["", "secret\nsecret", "secret secret", "sécret", "\0secret"])
def test_what_is_no_token_is_refused_and_not_repeated(character: str) -> None:
    with FeatureClient("localhost:1", token=character) as client:
        with pytest.raises(ValueError, match="that no token has") as caught:
            client.describe_service("s")
        assert "secret" not in str(caught.value)


def test_a_clients_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together"):
        FeatureClient("x:1", tls=Tls(cert=tmp_path / "a.pem"))


@pytest.mark.parametrize(
    ("name", "content"), [("grants.toml", "x"), ("tokens.toml", "x"), ("server.pem", "x"), ("server.key", "")]
)
def test_a_bad_file_keeps_the_server_from_starting(backend: Backend, office: Office, name: str, content: str) -> None:
    office.write(name, content)
    with pytest.raises(ConfigError, match="valid TOML|cannot be used"), office.serve(backend):
        pass


def test_a_server_that_others_may_reach_says_what_is_open(
    backend: Backend, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(host: str, **sections: Any) -> str:
        caplog.clear()
        engine = backend.engine()
        with server(engine, ServeOptions(host=host, port=0, poll_s=0.05, drain_s=5.0, **sections)):
            pass
        return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)

    both = warned("0.0.0.0")
    assert "without [auth]: whoever reaches this port may read everything" in both
    assert "without [tls]: features cross the network" in both
    assert "bearer tokens cross the network" in warned("0.0.0.0", auth=office.auth())
    assert warned("0.0.0.0", auth=office.auth(), tls=office.tls()) == ""
    assert "it must show a certificate" in warned("0.0.0.0", tls=office.tls(mutual=True))
    assert warned("127.0.0.1") == ""
    assert "or rest.host to 127.0.0.1" in warned("127.0.0.1", rest=("0.0.0.0", 0))
