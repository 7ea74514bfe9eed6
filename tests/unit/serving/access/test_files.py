"""The operator's files: what they may hold, what is said of bad ones, and that changes count without a restart."""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from featurestore.errors import ConfigError, PermissionDenied
from featurestore.settings_access import TlsSettings
from serving.access.certificates import PemFiles, refill, server_context, serving_files, watch_certificates
from serving.access.grants import parse_grants
from serving.access.principal import Principal
from serving.access.tokens import Identity, new_token, parse_tokens, token_entry
from serving.access.watched import FILE_BYTES_MAX, Watched

GRANTS = b"""
[role.readers]
read = ["fare_*"]
[token.pricing]
views = ["weather"]
push = ["events"]
[cert."billing.internal"]
operate = true
"""


def may_read(grants: bytes, *subjects: tuple[str, str]) -> bool:
    principal = Principal("x", parse_grants(grants, "grants.toml").of(frozenset(subjects)))
    try:
        principal.require_read("fare_now")
    except PermissionDenied:
        return False
    return True


def test_grants_of_principal_and_roles_add_up() -> None:
    grant = parse_grants(GRANTS, "g").of(frozenset({("token", "pricing"), ("role", "readers"), ("role", "strange")}))
    assert ("fare_now" in grant.read, "weather" in grant.views, "events" in grant.push) == (True, True, True)
    assert not grant.operate


def test_a_kind_of_principal_never_takes_the_grants_of_another() -> None:
    """A JWT whose subject is called like a role, or like a token, is still only that subject."""
    assert may_read(GRANTS, ("role", "readers"))
    for kind in ("token", "jwt", "cert"):
        assert not may_read(GRANTS, (kind, "readers"))
    table = parse_grants(GRANTS, "g")
    assert not table.of(frozenset({("jwt", "pricing")})).push.patterns
    assert not table.of(frozenset({("jwt", "billing.internal")})).operate


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[role.readers\n", "not valid TOML"),
        (b"\xff", "not TOML in UTF-8"),
        (b"[group.readers]\nread = ['a']\n", "[group...] is no kind of principal; known: token, jwt, cert, role"),
        (b"[role.readers]\nreed = ['a']\n", "[role.readers.reed] Extra inputs are not permitted"),
        (b"[role.readers]\nread = 'a'\n", "[role.readers.read] Input should be a valid list"),
        (b"[role.readers]\nread = ['a@1']\n", "[role.readers.read.0] String should match"),
        (b"[role.readers]\nread = ['[a-z]']\n", "[role.readers.read.0] String should match"),
        (b"[role.readers]\noperate = 'yes'\n", "[role.readers.operate] Input should be a valid boolean"),
        (b"role = 1\n", "[role] Input should be a valid dictionary"),
        (b"[role]\nread = ['a']\n", "[role.read]"),
    ],
)
def test_bad_grants_are_refused(content: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_grants(content, "grants.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("grants.toml")


def test_a_made_entry_lets_its_token_in_and_no_other() -> None:
    token, other = new_token(), new_token()
    tokens = parse_tokens(token_entry("pricing", token, ["readers"]).encode(), "t")
    found = tokens.find(token)
    assert found == Identity("token pricing", frozenset({("token", "pricing"), ("role", "readers")}))
    for wrong in (other, token + "x", token[:-1], token.upper(), "", "ü" * 30, "\udcff" * 30):
        assert tokens.find(wrong) is None
    assert token not in token_entry("pricing", token, [])
    assert len(token) > 40


def test_two_digests_of_one_name_let_both_tokens_in_while_clients_change() -> None:
    old, new = new_token(), new_token()
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in (old, new)]
    tokens = parse_tokens(f"[pricing]\nsha256 = {digests}\n".encode(), "t")
    assert tokens.find(old) == tokens.find(new) != None  # noqa: E711


def test_a_token_that_could_be_guessed_lets_nobody_in() -> None:
    digest = hashlib.sha256(b"hunter2").hexdigest()
    assert parse_tokens(f"[pricing]\nsha256 = ['{digest}']\n".encode(), "t").find("hunter2") is None


PLAIN = "fst_a-token-that-somebody-pasted-as-it-is"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"[pricing]\nsha256 = ['{PLAIN}']\n", "entry 1, sha256: String should match"),
        (f"[pricing]\nsha256 = '{PLAIN}'\n", "entry 1, sha256: Input should be a valid list"),
        (f"[pricing]\ntoken = '{PLAIN}'\n", "entry 1, sha256: Field required"),
        (f"[pricing]\nsha256 = ['{'0' * 64}']\n['{PLAIN}:x']\nsha256 = ['{'1' * 64}']\n", "entry 2, its settings"),
        (f"['{PLAIN}']\n'{PLAIN}' = 1\n", "entry 1, its settings: Extra inputs are not permitted"),
        (f"pricing = '{PLAIN}'\n", "entry 1, its name: Input should be a valid dict"),
        (f"pricing: {PLAIN}\n", "not valid TOML"),
        ("[pricing]\nsha256 = []\n", "entry 1, sha256: List should have at least 1 item"),
        (f"[a]\nsha256 = ['{'0' * 64}']\n[b]\nsha256 = ['{'0' * 64}']\n", "entry 2 repeats a digest"),
    ],
)
def test_bad_tokens_are_refused_without_showing_them(content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tokens(content.encode(), "tokens.toml")
    assert said in str(caught.value)
    assert PLAIN not in str(caught.value)
    assert caught.value.__cause__ is None


# ---------------------------------------------------------------- changes


def number(contents: Sequence[bytes]) -> int:
    try:
        return int(contents[0])
    except ValueError:
        raise ConfigError("not a number") from None


def test_a_changed_file_counts_and_a_bad_one_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = Watched("the number", [path], number, look_s=0)
    assert watched.current() == 1
    path.write_text("2")
    assert watched.current() == 2

    path.write_text("x")
    assert [watched.current() for _ in range(3)] == [2, 2, 2]
    path.unlink()
    assert [watched.current() for _ in range(3)] == [2, 2, 2]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2, "the same trouble is told once"
    assert "what was read before still holds: not a number" in warnings[0]
    assert "cannot be read" in warnings[1]

    path.write_text("3")
    assert watched.current() == 3


def test_a_file_is_not_read_at_every_request(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = Watched("the number", [path], number, look_s=3_600)
    path.write_text("2")
    assert watched.current() == 1


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Watched("the number", [tmp_path / "none"], number)
    (tmp_path / "huge").write_bytes(b"1" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="is it the right file"):
        Watched("the number", [tmp_path / "huge"], number)


# ---------------------------------------------------------------- certificates


def write(folder: Path, issued: trustme.LeafCert, ca: trustme.CA | None = None) -> PemFiles:
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    if ca is not None:
        (folder / "ca.pem").write_bytes(ca.cert_pem.bytes())
    tls = TlsSettings(cert=folder / "cert.pem", key=folder / "key.pem", client_ca=folder / "ca.pem" if ca else None)
    files = serving_files(tls)
    assert files is not None
    return files


def test_certificate_files_are_checked_together(tmp_path: Path) -> None:
    ca = trustme.CA()
    pem = watch_certificates(write(tmp_path, ca.issue_cert("localhost"), ca)).current()
    assert pem.ca == ca.cert_pem.bytes()
    assert "PRIVATE" not in repr(pem)
    assert serving_files(TlsSettings()) is None


def test_a_key_of_another_certificate_an_encrypted_key_and_no_pem_are_refused(tmp_path: Path) -> None:
    ca = trustme.CA()
    tls = write(tmp_path, ca.issue_cert("localhost"), ca)
    key = tmp_path / "key.pem"
    for content in (ca.issue_cert("localhost").private_key_pem.bytes(), b"no PEM", encrypted(ca), b""):
        key.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be used: ") as caught:
            watch_certificates(tls)
        assert "BEGIN" not in str(caught.value)
    write(tmp_path, ca.issue_cert("localhost"))
    (tmp_path / "ca.pem").write_bytes(b"no PEM")
    with pytest.raises(ConfigError, match="cannot be used: "):
        watch_certificates(tls)


def encrypted(ca: trustme.CA) -> bytes:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(ca.issue_cert("localhost").private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def test_a_context_in_use_takes_changed_files(tmp_path: Path) -> None:
    """As a server on Python's ssl is given them: new handshakes show the new certificate."""
    old, new = trustme.CA(), trustme.CA()
    tls = write(tmp_path, old.issue_cert("localhost"))
    context = server_context(tls)
    assert shakes_hands(context, old)
    write(tmp_path, new.issue_cert("localhost"))
    refill(context, tls)
    assert shakes_hands(context, new)
    assert not shakes_hands(context, old)


def shakes_hands(server: ssl.SSLContext, ca: trustme.CA) -> bool:
    client = ssl.create_default_context()
    ca.configure_trust(client)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
    return not ends
