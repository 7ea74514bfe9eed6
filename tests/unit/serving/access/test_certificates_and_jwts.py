"""Certificates and JWTs at a real server, as they come, go and are forged; and that no secret is told."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from functools import partial

import grpc
import pytest
import trustme

from featurestore_client import FeatureClient, RequestFailed
from serving.access.tokens import new_token
from tests.fix_issuer import AUDIENCE, NAME, SigningKey, issuing
from tests.unit.serving.access.office import KEYS, Office, lets_in, refusal
from tests.unit.serving.conftest import Backend
from tests.waiting import until

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
            code, _ = refusal(partial(client.get_online_features, "airport_now", KEYS))
            assert code is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_is_its_names(office: Office, mutual: str) -> None:
    issue = office.client_ca.issue_cert
    with office.client(mutual, issued=issue("pricing.internal")) as client:
        assert lets_in(client)
        assert not lets_in(client, "departures")
    for issued in (issue("x.internal"), issue("x.internal", common_name="pricing.internal"), issue("*.internal")):
        with office.client(mutual, issued=issued) as client:
            code, message = refusal(partial(client.get_online_features, "airport_now", KEYS))
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
                    answers.append(refusal(partial(client.get_online_features, "airport_now", KEYS))[1])
            for issued in (None, trustme.CA().issue_cert("x.internal"), own):
                with office.client(running.target, None, issued) as client:
                    answers.append(refusal(partial(client.get_online_features, "airport_now", KEYS))[1])
            for name, content in (
                ("tokens.toml", f"['{wrong[0]}'\n"), ("tokens.toml", f"[a]\nsha256 = '{wrong[0]}'\n"),
                ("server.key", office.ca.issue_cert("x").private_key_pem.bytes()), ("grants.toml", wrong[0]),
            ):  # fmt: skip
                office.write(name, content)
                time.sleep(1.1)
                with office.client(running.target, wrong[0], own) as client:
                    answers.append(refusal(partial(client.get_online_features, "airport_now", KEYS))[1])

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
