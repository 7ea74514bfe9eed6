"""The door by itself: whatever a header holds, it ends in a principal or a refusal, never in a defect."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.errors import Unauthenticated
from featurestore.settings_access import AuthSettings
from serving.access.door import Door
from serving.access.principal import ANYONE, Principal
from serving.access.tokens import new_token, token_entry
from tests.fix_issuer import AUDIENCE, NAME, SigningKey

KEY = SigningKey("one")
TOKEN = new_token()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["ES256", "RS256", "HS256", "none"]) | values,
        "kid": st.sampled_from(["one", "two"]) | values,
        "typ": values,
        "crit": values,
        "b64": values,
    },
)
claims = st.fixed_dictionaries(
    {}, optional={name: values for name in ("iss", "aud", "sub", "exp", "nbf", "iat", "jti")}
)
SOUND: dict[str, Any] = {"iss": NAME, "aud": AUDIENCE, "sub": "pricing", "exp": 4_102_444_800}


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def signed_as_it_is(content: object) -> str:
    """PyJWT would not sign some of it."""
    return jwt.PyJWS().encode(json.dumps(content).encode(), KEY.private, KEY.algorithm, {"kid": KEY.kid})


jwts = st.builds(lambda *parts: ".".join(parts), headers.map(part), claims.map(part), st.text("aZ09-_=", max_size=90))
#: Signed by the issuer itself, so that every claim is looked at.
signed = claims.map(lambda given: signed_as_it_is({**SOUND, **given}))
anything = st.text(max_size=40) | jwts | signed


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, asyncio.Runner]]:
    folder = tmp_path_factory.mktemp("door")
    (folder / "grants.toml").write_text("[token.pricing]\nread = ['*']\n")
    (folder / "tokens.toml").write_text(token_entry("pricing", TOKEN, []))
    (folder / "keys.json").write_text(json.dumps({"keys": [KEY.jwk]}))
    settings = AuthSettings(
        grants=folder / "grants.toml", tokens=folder / "tokens.toml", jwks_path=folder / "keys.json",
        jwt_issuer=NAME, jwt_audience=AUDIENCE, jwt_roles_claim="roles",
    )  # fmt: skip
    with asyncio.Runner() as runner:
        yield Door(settings), runner


@given(st.lists(anything.map("Bearer {}".format) | anything, min_size=1, max_size=2))
@example(["Bearer " + part({"alg": "ES256", "kid": "one"})[:-1] + ".." + "a" * 90])
@example(["Bearer " + "." * 9_000])
def test_any_header_ends_in_a_principal_or_a_refusal(
    door: tuple[Door, asyncio.Runner], authorization: list[str]
) -> None:
    entrance, runner = door
    outcome: object
    try:
        outcome = runner.run(entrance.authenticate(authorization))
    except Unauthenticated as error:
        outcome = error
    if isinstance(outcome, Principal):
        assert outcome.name.startswith("jwt ")
        assert len(authorization) == 1
    else:
        assert not any(sent in str(outcome) for sent in authorization if len(sent) > 20)


def test_the_strangest_signed_claims_can_still_be_believed(door: tuple[Door, asyncio.Runner]) -> None:
    """So that the test above is not one of refusals only."""
    entrance, runner = door
    token = KEY.sign(**SOUND, jti="x", nbf=0, iat=0)
    assert runner.run(entrance.authenticate([f"Bearer {token}"])).name == "jwt pricing"
    assert runner.run(entrance.authenticate([f"Bearer {TOKEN}"], ["x.internal"])).name == "token pricing"
    assert runner.run(entrance.authenticate([], ["x.internal", "y"])).name == "certificate x.internal"
    with pytest.raises(Unauthenticated, match="send the header"):
        runner.run(entrance.authenticate([]))


def test_without_grants_the_door_is_open() -> None:
    entrance = Door(AuthSettings())
    assert not entrance.locked
    assert asyncio.run(entrance.authenticate(["Bearer whatever"])) is ANYONE


def test_without_pyjwt_the_way_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("")
    program = f"""
import sys
sys.modules["jwt"] = None
from pathlib import Path
from featurestore.errors import ConfigError
from featurestore.settings_access import AuthSettings
from serving.access.door import Door
settings = AuthSettings(grants=Path({str(tmp_path / "g")!r}), tokens=Path({str(tmp_path / "g")!r}))
assert Door(settings).locked, "tokens need nothing more"
try:
    Door(settings.model_copy(update={{"jwt_issuer": "i", "jwks_url": "https://x/"}}))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "auth.jwt_issuer needs PyJWT; pip install 'featurestore[auth]'\n", done.stderr
