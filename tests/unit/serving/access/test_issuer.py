"""JWTs: only what the issuer signed, for us, for now, is believed; its keys may rotate, vanish and misbehave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.clock import SystemClock
from featurestore.errors import ConfigError, IssuerUnreachable
from featurestore.settings_access import AuthSettings
from serving.access.issuer import Issuer
from serving.access.keys import UrlKeys, parse_keys
from serving.access.tokens import Identity, Refused
from tests import fix_issuer
from tests.fix_issuer import AUDIENCE, NAME, SigningKey, issuing
from tests.waiting import WAIT_S

KEY, OTHER, RSA = SigningKey("one"), SigningKey("two"), SigningKey("rsa", "RS256")
EDWARDS, PSS, WEAK = SigningKey("ed", "EdDSA"), SigningKey("pss", "PS256"), SigningKey("weak", "RS256", rsa_bits=1024)
IMPOSTOR = SigningKey("one")
GENERIC = str(Refused(""))


def now() -> int:
    return int(SystemClock().now().timestamp())


def settings(**more: Any) -> AuthSettings:
    given = {"jwks_url": "http://127.0.0.1:1/"} | more
    return AuthSettings(grants=Path("g"), jwt_issuer=NAME, jwt_audience=AUDIENCE, **given)


def believing(http: fix_issuer.Issuer, *, refetch_s: float = 0, refresh_s: float = 300, **more: Any) -> Issuer:
    """Ours, of the keys that a real issuer publishes."""
    return Issuer(settings(**more), UrlKeys(http.url, refresh_s, more.get("jwks_timeout_s", 5), refetch_s))


def identify(token: str, *keys: SigningKey, **more: Any) -> Identity:
    async def one() -> Identity:
        with issuing(*(keys or (KEY,))) as http:
            return await believing(http, **more).identify(token)

    return asyncio.run(one())


def unpadded(content: bytes | dict) -> str:
    content = json.dumps(content).encode() if isinstance(content, dict) else content
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def with_header(header: bytes | dict, sign: Callable[[bytes], bytes] = lambda signed: b"") -> str:
    """A token with sound claims, under any header and signature."""
    claims = KEY.sign().split(".")[1]
    signed = f"{unpadded(header)}.{claims}"
    return f"{signed}.{unpadded(sign(signed.encode()))}"


def by_secret(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.digest(secret, signed, hashlib.sha256)


# ---------------------------------------------------------------- whom it believes


@pytest.mark.parametrize("key", [KEY, RSA, EDWARDS], ids=lambda key: key.algorithm)
def test_a_token_of_the_issuer_names_its_subject(key: SigningKey) -> None:
    found = identify(key.sign(sub="alice"), KEY, RSA, EDWARDS)
    assert found == Identity("jwt alice", frozenset({("jwt", "alice")}))


@pytest.mark.parametrize(
    "claims",
    [
        lambda: {"aud": ["other", AUDIENCE]},
        lambda: {"exp": now() - 10},
        lambda: {"nbf": now() + 10},
        lambda: {"iat": now() + 10},
        lambda: {"iat": None},
    ],
)
def test_several_audiences_and_clocks_a_little_apart_are_fine(claims: Callable[[], dict]) -> None:
    assert identify(KEY.sign(**claims())).name == "jwt pricing"


@pytest.mark.parametrize(
    ("claim", "value", "roles"),
    [
        ("roles", {"roles": ["a", "b"]}, {"a", "b"}),
        ("scope", {"scope": "a b"}, {"a", "b"}),
        ("realm_access.roles", {"realm_access": {"roles": ["a"]}}, {"a"}),
        ("https://example/roles.v1", {"https://example/roles.v1": ["a"]}, {"a"}),
        ("roles", {}, set()),
        ("roles", {"roles": {"a": 1}}, set()),
        ("roles", {"roles": ["a", 1, None, ["b"]]}, {"a"}),
        ("a.b.c", {"a": "text"}, set()),
    ],
)
def test_roles_are_read_from_the_claim_that_holds_them(claim: str, value: dict, roles: set[str]) -> None:
    found = identify(KEY.sign(**value), jwt_roles_claim=claim)
    assert found.subjects == {("jwt", "pricing"), *(("role", role) for role in roles)}


def test_another_claim_may_name_the_principal() -> None:
    assert identify(KEY.sign(sub=None, client_id="batch"), jwt_subject_claim="client_id").name == "jwt batch"


# ---------------------------------------------------------------- whom it does not

FORGED: dict[str, Callable[[], str]] = {
    "alg none": lambda: with_header({"alg": "none", "kid": "one"}),
    "alg None": lambda: with_header({"alg": "None", "kid": "one"}),
    "no alg": lambda: with_header({"kid": "one"}),
    "alg is a list": lambda: with_header({"alg": ["ES256"], "kid": "one"}),
    "HS256 by the public PEM": lambda: with_header({"alg": "HS256", "kid": "rsa"}, by_secret(RSA.public_pem)),
    "HS256 by the JWK": lambda: with_header({"alg": "HS256", "kid": "one"}, by_secret(json.dumps(KEY.jwk).encode())),
    "HS256 by nothing": lambda: with_header({"alg": "HS256", "kid": "one"}, by_secret(b"")),
    "an algorithm that is not allowed": PSS.sign,
    "the algorithm of another key": lambda: with_header({"alg": "RS256", "kid": "one"}),
    "another's key under our id": IMPOSTOR.sign,
    "its own key in the header": lambda: IMPOSTOR.sign({"jwk": IMPOSTOR.jwk}),
    "its own keys' address in the header": lambda: IMPOSTOR.sign({"jku": "http://127.0.0.1:1/"}),
    "a key that can be broken": WEAK.sign,
    "no key": lambda: KEY.sign({"kid": None}),
    "a key that is no text": lambda: with_header({"alg": "ES256", "kid": ["one"]}),
    "an unknown key": lambda: KEY.sign({"kid": "three"}),
    "wrong audience": lambda: KEY.sign(aud="other"),
    "audience like ours": lambda: KEY.sign(aud=AUDIENCE + "x"),
    "no audience": lambda: KEY.sign(aud=None),
    "wrong issuer": lambda: KEY.sign(iss=NAME + "/"),
    "no issuer": lambda: KEY.sign(iss=None),
    "no end": lambda: KEY.sign(exp=None),
    "an end that is no number": lambda: KEY.sign(exp="soon"),
    "an infinite end": lambda: KEY.sign(exp=float("inf")),
    "not yet valid": lambda: KEY.sign(nbf=now() + 60),
    "made in the future": lambda: KEY.sign(iat=now() + 60),
    "no subject": lambda: KEY.sign(sub=None),
    "an empty subject": lambda: KEY.sign(sub=""),
    "a subject that breaks lines of the log": lambda: KEY.sign(sub="a\nrequest 1: granted"),
    "a subject of any length": lambda: KEY.sign(sub="a" * 1_000),
    "other claims under its signature": lambda: ".".join(
        (KEY.sign().split(".")[0], KEY.sign(sub="admin").split(".")[1], KEY.sign().split(".")[2])
    ),
    "no signature": lambda: KEY.sign().rpartition(".")[0] + ".",
    "half a signature": lambda: KEY.sign()[:-20],
    "nothing": lambda: "..",
    "no base64": lambda: "ü.€.𝄞",
    "no JSON": lambda: "a.b.c",
    "a header that is no object": lambda: with_header(b"[1]"),
    "a header too deep to read": lambda: with_header(b'{"alg":' + b"[" * 5_000),
    "a surrogate": lambda: "\udcff.a.b",
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=list(FORGED))
def test_a_forged_token_is_refused_and_told_nothing(forge: Callable[[], str]) -> None:
    with pytest.raises(Refused) as caught:
        identify(forge(), KEY, RSA, PSS, WEAK)
    assert str(caught.value) == GENERIC
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_honest_caller_is_told_that_its_token_has_expired() -> None:
    with pytest.raises(Refused, match="has expired; get a new one"):
        identify(KEY.sign(exp=now() - 40))


def test_a_forger_is_not_told_about_times() -> None:
    with pytest.raises(Refused) as caught:
        identify(IMPOSTOR.sign(exp=now() - 40))
    assert str(caught.value) == GENERIC


def test_a_token_that_was_believed_still_ends() -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            issuer = believing(http, jwt_leeway_s=0)
            await issuer.start()
            token = KEY.sign(exp=now() + 4)
            first, again = await issuer.identify(token), await issuer.identify(token)
            assert first is again, "it was remembered"
            assert "expired" in str(await until_refused(issuer, token))

    asyncio.run(scene())


# ---------------------------------------------------------------- keys that rotate


async def until_refused(issuer: Issuer, token: str) -> Refused:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await issuer.identify(token)
            except Refused as refused:
                return refused
            await asyncio.sleep(0.02)


async def until_believed(issuer: Issuer, token: str) -> Identity:
    """Whose it is, once the issuer's keys came in time."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await issuer.identify(token)
            except IssuerUnreachable:
                await asyncio.sleep(0.02)


def test_keys_rotate_without_a_restart() -> None:
    """Old key, both, new key: a token of a new key is believed at once, one of a withdrawn key soon no more."""

    async def scene() -> None:
        with issuing(KEY) as http:
            issuer = believing(http, refresh_s=0.05)
            await issuer.start()
            old, new = KEY.sign(), OTHER.sign()
            await issuer.identify(old)
            http.keys = [KEY, OTHER]
            await issuer.identify(new)
            await issuer.identify(old)
            http.keys = [OTHER]
            await until_refused(issuer, old)
            await issuer.identify(new)

    asyncio.run(scene())


def test_a_key_replaced_under_its_id_counts_for_tokens_already_believed() -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            issuer = believing(http, refresh_s=0.05)
            token = KEY.sign()
            await issuer.identify(token)
            http.keys = [IMPOSTOR]
            await until_refused(issuer, token)

    asyncio.run(scene())


def test_strangers_cannot_make_us_ask_the_issuer_often() -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            issuer = believing(http, refetch_s=3_600)
            await issuer.start()
            strange = [OTHER.sign({"kid": f"k{i}"}) for i in range(50)]
            outcomes = await asyncio.gather(*map(issuer.identify, strange), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {Refused}
            assert http.requests == 1

    asyncio.run(scene())


def test_those_who_wait_for_keys_wait_for_the_same_ones_and_hold_up_nobody() -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            issuer = believing(http)
            await issuer.start()
            http.keys = [KEY, OTHER]
            http.answers.clear()
            waiting = [asyncio.create_task(issuer.identify(OTHER.sign(sub=f"s{i}"))) for i in range(20)]
            await asyncio.sleep(0.05)
            await issuer.identify(KEY.sign())
            assert not any(task.done() for task in waiting), "the issuer has not answered yet"
            waiting[0].cancel()
            http.answers.set()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(outcomes[0], asyncio.CancelledError)
            assert all(isinstance(outcome, Identity) for outcome in outcomes[1:])
            assert http.requests == 2

    asyncio.run(scene())


# ---------------------------------------------------------------- issuers that misbehave


def broken(http: fix_issuer.Issuer, how: str) -> None:
    match how:
        case "error":
            http.status = 500
        case "redirect":
            http.status, http.headers = 302, {"Location": f"{http.url}?elsewhere"}
        case "garbage":
            http.body = b"<html>"
        case "too much":
            http.body = http.content() + b" " * (2 << 20)
        case "too late":
            http.answers.clear()
        case "drop by drop":
            http.drip_s = 0.02
        case "no keys":
            http.keys = []
        case "secrets":
            http.body = json.dumps({"keys": [{"kty": "oct", "kid": "one", "k": "AAAA"}]}).encode()
        case "encryption keys":
            http.body = json.dumps({"keys": [{**KEY.jwk, "use": "enc"}]}).encode()
        case "strange keys":
            http.body = json.dumps({"keys": [1, None, "a"]}).encode()


WAYS = [
    "error", "redirect", "garbage", "too much", "too late", "drop by drop", "no keys", "secrets", "encryption keys",
    "strange keys",
]  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_without_keys_a_token_cannot_be_checked_and_with_old_ones_it_can(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            fresh, seasoned = (believing(http, refresh_s=0, jwks_timeout_s=0.3) for _ in range(2))
            await until_believed(seasoned, KEY.sign())
            broken(http, how)
            with pytest.raises(IssuerUnreachable, match="try again soon"):
                await fresh.identify(KEY.sign())
            assert (await seasoned.identify(KEY.sign())).name == "jwt pricing"
            with pytest.raises(Refused):
                await seasoned.identify(OTHER.sign())

            http.answers.set()
            http.status, http.body, http.drip_s, http.keys = 200, None, 0, [KEY]
            assert (await until_believed(fresh, KEY.sign())).name == "jwt pricing"

    asyncio.run(scene())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("keys cannot be read, none are known yet" in warning for warning in warnings)
    assert any("s ago hold" in warning for warning in warnings)


def test_an_issuer_that_is_away_is_tried_again_but_not_at_every_request() -> None:
    async def scene() -> None:
        with issuing(KEY) as http:
            http.status = 503
            issuer = believing(http, refetch_s=3_600)
            await issuer.start()
            for _ in range(20):
                with pytest.raises(IssuerUnreachable):
                    await issuer.identify(KEY.sign())
            assert http.requests == 1

    asyncio.run(scene())


def test_keys_in_a_file_rotate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [KEY.jwk]}))

    async def scene() -> None:
        issuer = Issuer(settings(jwks_url=None, jwks_path=path))
        await issuer.start()
        await issuer.identify(KEY.sign())
        path.write_text(json.dumps({"keys": [OTHER.jwk]}))
        await until_refused(issuer, KEY.sign())
        await issuer.identify(OTHER.sign())

    asyncio.run(scene())


def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no JSON Web Key Set"):
        Issuer(settings(jwks_url=None, jwks_path=tmp_path / "keys.json"))


def test_a_key_bound_to_an_algorithm_signs_by_no_other() -> None:
    bound = SigningKey("bound", "RS256")
    bound.jwk["alg"] = "PS256"
    with pytest.raises(Refused):
        identify(bound.sign(), bound)
    bound.jwk["alg"] = "RS256"
    assert identify(bound.sign(), bound).name == "jwt pricing"


def test_keys_too_deep_to_read_are_no_keys() -> None:
    with pytest.raises(ConfigError):
        parse_keys(b"[" * 100_000, "x")
