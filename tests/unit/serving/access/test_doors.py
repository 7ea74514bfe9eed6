"""Real servers, real clients, real certificates: who gets in, what each may do, and what changes without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from featurestore.errors import ConfigError
from featurestore.settings_access import AuthSettings, TlsSettings
from serving.access.door import Door
from serving.access.tokens import new_token, token_entry
from serving.client import FeatureClient, RequestFailed, Tls
from serving.door_interceptor import DoorInterceptor
from serving.server import ServeOptions
from serving.servicer import INLINE_BYTES_MAX, SERVICE
from serving.status_codes import ErrorInterceptor
from tests.fix_issuer import AUDIENCE, NAME, SigningKey, issuing
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import Running, server

KEYS = {"origin": ["JFK"]}
GRANTS = """
[token.pricing]
read = ["airport_*"]
views = ["weather"]
[token.planning]
views = ["weather", "delays"]
[token.operator]
operate = true
[jwt.alice]
read = ["airport_now"]
[role.everything]
read = ["*"]
[cert."pricing.internal"]
read = ["airport_now"]
"""


@dataclass
class Office:
    """What an operator has: files, tokens and authorities."""

    folder: Path
    tokens: dict[str, str] = field(default_factory=lambda: {name: new_token() for name in TOKENS})
    ca: trustme.CA = field(default_factory=trustme.CA)
    client_ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.write("grants.toml", GRANTS)
        self.write("tokens.toml", "".join(token_entry(name, token, []) for name, token in self.tokens.items()))
        self.certify(self.ca)
        self.write("client_ca.pem", self.client_ca.cert_pem.bytes())

    def write(self, name: str, content: str | bytes) -> Path:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self.folder / name

    def certify(self, ca: trustme.CA) -> None:
        """Another certificate for the server, signed by `ca`."""
        self.write("ca.pem", ca.cert_pem.bytes())
        self.identity(ca.issue_cert("localhost", "127.0.0.1"), "server")

    def identity(self, issued: trustme.LeafCert, name: str) -> tuple[Path, Path]:
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return self.write(f"{name}.pem", chain), self.write(f"{name}.key", issued.private_key_pem.bytes())

    def auth(self, **more: Any) -> AuthSettings:
        return AuthSettings(grants=self.folder / "grants.toml", tokens=self.folder / "tokens.toml", **more)

    def tls(self, *, mutual: bool = False) -> TlsSettings:
        ca = self.folder / "client_ca.pem" if mutual else None
        return TlsSettings(cert=self.folder / "server.pem", key=self.folder / "server.key", client_ca=ca)

    def serve(self, backend: Backend, **sections: Any) -> contextlib.AbstractContextManager[Running]:
        sections = {"auth": self.auth(), "tls": self.tls()} | sections
        return server(backend.engine(), ServeOptions(port=0, poll_s=0.05, drain_s=5.0, **sections))

    def client(self, target: str, token: Any = None, issued: trustme.LeafCert | None = None) -> FeatureClient:
        cert, key = self.identity(issued, "client") if issued else (None, None)
        return FeatureClient(target, tls=Tls(ca=self.folder / "ca.pem", cert=cert, key=key), token=token, timeout_s=10)


TOKENS = ("pricing", "planning", "operator", "nobody")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One for all: nobody here changes it."""
    with Backend.filled(tmp_path_factory.mktemp("backend")) as made:
        yield made


@pytest.fixture
def office(tmp_path: Path) -> Office:
    (tmp_path / "office").mkdir()
    return Office(tmp_path / "office")


@pytest.fixture
def target(backend: Backend, office: Office) -> Iterator[str]:
    with office.serve(backend) as running:
        yield running.target


def refusal(ask: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(RequestFailed) as caught:
        ask()
    return caught.value.code, caught.value.message


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.05)


def lets_in(client: FeatureClient, service: str | list[str] = "airport_now") -> bool:
    try:
        return len(client.get_online_features(service, KEYS)) == 1
    except RequestFailed as error:
        if error.code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise
        return False


# ---------------------------------------------------------------- tokens and grants


def test_a_token_reads_what_is_granted_and_nothing_else(office: Office, target: str) -> None:
    with office.client(target, office.tokens["pricing"]) as client:
        assert client.get_online_features("airport_now", KEYS).numpy()["temp"].tolist() == [1.5]
        assert client.describe_service("airport_now").service == "airport_now"
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
                refusal(lambda what=what: client.get_online_features(what, KEYS)) for what in (there, not_there)
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
            assert client.describe_service("departures").service == "departures"


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


# ---------------------------------------------------------------- certificates


def test_a_client_meets_the_server_it_trusts_and_no_other(office: Office, target: str) -> None:
    office.write("ca.pem", trustme.CA().cert_pem.bytes())
    with office.client(target, office.tokens["pricing"]) as client:
        assert refusal(lambda: client.get_online_features("airport_now", KEYS))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_plaintext_client_gets_nothing_from_a_tls_server(target: str) -> None:
    with FeatureClient(target) as client:
        assert refusal(lambda: client.get_online_features("airport_now", KEYS))[0] is grpc.StatusCode.UNAVAILABLE


def test_the_servers_certificate_changes_without_a_restart(office: Office, target: str) -> None:
    token = office.tokens["pricing"]
    with office.client(target, token) as connected:
        assert lets_in(connected)
        office.certify(trustme.CA())

        def reached() -> bool:
            with office.client(target, token) as client, contextlib.suppress(RequestFailed):
                return len(client.get_online_features("airport_now", KEYS)) == 1
            return False

        until(reached)
        assert lets_in(connected), "who is connected stays so"

        office.write("server.key", b"half a fi")
        time.sleep(1.2)
        assert reached(), "a certificate without its key does not take the place of a good one"


@pytest.fixture
def mutual(backend: Backend, office: Office) -> Iterator[str]:
    with office.serve(backend, tls=office.tls(mutual=True)) as running:
        yield running.target


def test_only_certificates_of_our_authority_connect(office: Office, mutual: str) -> None:
    token = office.tokens["pricing"]
    for issued in (None, trustme.CA().issue_cert("pricing.internal")):
        with office.client(mutual, token, issued) as client:
            code, _ = refusal(lambda c=client: c.get_online_features("airport_now", KEYS))
            assert code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_is_its_names(office: Office, mutual: str) -> None:
    issue = office.client_ca.issue_cert
    with office.client(mutual, issued=issue("pricing.internal")) as client:
        assert lets_in(client)
        assert not lets_in(client, "departures")
    for issued in (issue("x.internal"), issue("x.internal", common_name="pricing.internal"), issue("*.internal")):
        with office.client(mutual, issued=issued) as client:
            code, message = refusal(lambda c=client: c.get_online_features("airport_now", KEYS))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert message.startswith("certificate ")
    with office.client(mutual, issued=issue("x.internal", "pricing.internal")) as client:
        assert lets_in(client), "each of its names counts"
    with office.client(mutual, issued=issue(common_name="pricing.internal")) as client:
        assert lets_in(client), "of a certificate without other names, the subject's counts"


def test_a_token_goes_before_the_certificate_and_a_bad_one_does_not_fall_back(office: Office, mutual: str) -> None:
    issued = office.client_ca.issue_cert("pricing.internal")
    with office.client(mutual, office.tokens["planning"], issued) as client:
        assert not lets_in(client)
        assert lets_in(client, ["weather:temp"])
    with office.client(mutual, new_token(), issued) as client:
        assert refusal(lambda: client.get_online_features("airport_now", KEYS))[0].name == "UNAUTHENTICATED"


# ---------------------------------------------------------------- JWTs


def test_jwts_get_in_while_the_issuers_keys_rotate(
    backend: Backend, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.access.keys.REFETCH_S", 0.1)
    old, new = SigningKey("old"), SigningKey("new", "RS256")
    with issuing(old) as issuer:
        auth = office.auth(jwt_issuer=NAME, jwt_audience=AUDIENCE, jwks_url=issuer.url, jwt_roles_claim="roles")
        with office.serve(backend, auth=auth) as running:
            with office.client(running.target, old.sign(sub="alice")) as client:
                assert lets_in(client)
                assert not lets_in(client, "departures")
            with office.client(running.target, office.tokens["pricing"]) as client:
                assert lets_in(client), "static tokens go on"
            for token, gets_in in (
                (old.sign(sub="bob"), False),
                (old.sign(sub="bob", roles=["everything"]), True),
                (old.sign(sub="everything"), False),
                (old.sign(sub="alice", aud="other"), False),
                (old.sign(sub="alice", exp=1), False),
            ):
                with office.client(running.target, token) as client:
                    assert lets_in(client) == gets_in
            issuer.keys = [new]
            with (
                office.client(running.target, lambda: new.sign(sub="alice")) as fresh,
                office.client(running.target, old.sign(sub="alice")) as stale,
            ):
                assert lets_in(stale), "until somebody comes with the new key, or jwks_refresh_s passes"
                until(lambda: lets_in(fresh))
                assert not lets_in(stale)


def test_while_the_issuer_is_away_clients_are_told_to_try_again(backend: Backend, office: Office) -> None:
    key = SigningKey("one")
    with issuing(key) as issuer:
        issuer.status = 503
        auth = office.auth(jwt_issuer=NAME, jwt_audience=AUDIENCE, jwks_url=issuer.url)
        with office.serve(backend, auth=auth) as running, office.client(running.target, key.sign()) as client:
            with pytest.raises(RequestFailed, match="try again soon") as caught:
                client.get_online_features("airport_now", KEYS)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert caught.value.retryable


# ---------------------------------------------------------------- secrets


def test_no_secret_stands_in_any_log_or_answer(
    backend: Backend, office: Office, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """All loggers at DEBUG, and gRPC's own words, during every kind of failure."""
    caplog.set_level(logging.DEBUG)
    key, impostor = SigningKey("one"), SigningKey("one")
    own = office.client_ca.issue_cert("x.internal")
    jwts = [
        key.sign(sub="bob"), key.sign(exp=1), key.sign(aud="x"), key.sign(iss="x"), key.sign({"kid": "x"}),
        impostor.sign(), key.sign()[:-5], key.sign(sub=None), key.sign(nbf=2**40),
    ]  # fmt: skip
    wrong = [new_token(), office.tokens["nobody"], "a.b.c", "short", office.tokens["pricing"][:-1]]
    answers = []
    with issuing(key) as issuer:
        auth = office.auth(jwt_issuer=NAME, jwt_audience=AUDIENCE, jwks_url=issuer.url)
        with office.serve(backend, auth=auth, tls=office.tls(mutual=True)) as running:
            for token in [*jwts, *wrong]:
                with office.client(running.target, token, own) as client:
                    answers.append(refusal(lambda c=client: c.get_online_features("airport_now", KEYS))[1])
            for issued in (None, trustme.CA().issue_cert("x.internal"), own):
                with office.client(running.target, None, issued) as client:
                    answers.append(refusal(lambda c=client: c.get_online_features("airport_now", KEYS))[1])
            for name, content in (
                ("tokens.toml", f"['{wrong[0]}'\n"), ("tokens.toml", f"[a]\nsha256 = '{wrong[0]}'\n"),
                ("server.key", office.ca.issue_cert("x").private_key_pem.bytes()), ("grants.toml", wrong[0]),
            ):  # fmt: skip
                office.write(name, content)
                time.sleep(1.1)
                with office.client(running.target, wrong[0], own) as client:
                    answers.append(refusal(lambda c=client: c.get_online_features("airport_now", KEYS))[1])

    told = "\n".join([*answers, *(record.getMessage() + str(record.exc_info) for record in caplog.records)])
    told += "".join(capfd.readouterr())
    assert told.count("a bearer token was refused: ") >= len(jwts) + len(wrong) - 2
    assert told.count("cannot be used as changed") >= 3
    signatures = [part for token in jwts for part in token.split(".") if len(part) > 12]
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in [*wrong, *office.tokens.values()]]
    secrets = [*jwts, *signatures, *digests, *office.tokens.values(), wrong[0], wrong[4], "PRIVATE", "BEGIN CERT"]
    private = [office.folder / "server.key", office.folder / "client.key"]
    secrets += [line for path in private for line in path.read_text().splitlines()]
    assert [secret for secret in secrets if secret in told] == []


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
