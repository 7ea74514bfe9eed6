"""[auth], [tls] and the certificates of [inference]: what holds together, what is refused, that no key is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.cli.serve_options import serve_options
from featurestore.errors import ConfigError
from featurestore.loopback import is_loopback
from featurestore.settings import load_settings, shown
from serving.access.certificates import inference_files

JWT = "grants = 'g'\njwt_issuer = 'i'\njwt_audience = 'a'\n"
URL = "jwks_url = 'https://issuer/keys'\n"
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


def write(root: Path, text: str) -> Path:
    (root / "featurestore.toml").write_text(f'project = "shop"\n{text}', encoding="utf-8")
    return root


def fault(root: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(root, environ)
    return str(caught.value)


def test_both_are_off_by_default(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, ""), {})
    assert (settings.auth.grants, settings.auth.jwt, settings.tls.cert) == (None, False, None)
    assert shown(settings)["tls"] == {"cert": None, "key": None, "client_ca": None}


def test_paths_begin_at_the_repository(tmp_path: Path) -> None:
    text = "[auth]\ngrants = 'g.toml'\ntokens = '/etc/t.toml'\n[tls]\ncert = 'c'\nkey = 'k'\nclient_ca = 'a'\n"
    text += "[inference]\ntls_cert = 'c'\ntls_key = 'k'\ntls_ca = 'a'\n"
    settings = load_settings(write(tmp_path, text), {})
    assert (settings.auth.grants, settings.auth.tokens) == (tmp_path / "g.toml", Path("/etc/t.toml"))
    assert (settings.tls.cert, settings.tls.key, settings.tls.client_ca) == tuple(tmp_path / name for name in "cka")
    models = settings.inference
    assert (models.tls_cert, models.tls_key, models.tls_ca) == tuple(tmp_path / name for name in "cka")


def test_the_environment_sets_lists_too(tmp_path: Path) -> None:
    environ = {"FEATURESTORE_AUTH_JWT_ALGORITHMS": "ES256, RS256", "FEATURESTORE_AUTH_JWKS_REFRESH_S": "60"}
    auth = load_settings(write(tmp_path, f"[auth]\n{JWT}{URL}"), environ).auth
    assert (auth.jwt_algorithms, auth.jwks_refresh_s, auth.jwt_leeway_s) == (("ES256", "RS256"), 60.0, 30.0)


def test_models_are_asked_with_the_certificates_of_inference_unless_over_a_unix_socket(tmp_path: Path) -> None:
    text = "[inference]\naddress = 'models:8001'\ntls_ca = 'a'\ntls_cert = 'c'\ntls_key = 'k'\n"
    settings = load_settings(write(tmp_path, text), {})
    sidecar = serve_options(settings, "127.0.0.1", 0, None, None).sidecar
    assert sidecar is not None
    assert sidecar.tls is not None
    assert sidecar.tls == inference_files(settings.inference, "elsewhere:8001")
    assert sidecar.tls.paths == [tmp_path / name for name in "cka"]
    assert inference_files(settings.inference, "unix:///run/sidecar.sock") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tls]\ncert = 'c'\n", "[tls] cert and key belong together"),
        ("[tls]\nkey = 'k'\n", "[tls] cert and key belong together"),
        ("[tls]\nclient_ca = 'c'\n", "client_ca asks clients for certificates, which only TLS carries"),
        ("[tls]\ncret = 'c'\n", "unknown setting 'cret' in [tls]; did you mean 'cert'?"),
        ("[inference]\ntls_ca = 'a'\ntls_key = 'k'\n", "[inference] tls_cert and tls_key belong together"),
        ("[inference]\ntls_cert = 'c'\ntls_key = 'k'\n", "set tls_ca to the authorities of the server's, too"),
        ("[inference]\naddress = 'unix:///s'\ntls_ca = 'a'\n", "a unix socket is spoken to without TLS"),
        ("[auth]\ngrants = 'g'\n", "none can show who it is; set auth.tokens, auth.jwt_issuer or tls.client_ca"),
        ("[auth]\ntokens = 't'\n", "nothing is granted to anyone; set grants"),
        ("[auth]\n" + JWT.replace("grants = 'g'\n", "") + URL, "nothing is granted to anyone; set grants"),
        (f"[auth]\n{JWT}", "one of jwks_url and jwks_path"),
        (f"[auth]\n{JWT}{URL}jwks_path = 'k'\n", "one of jwks_url and jwks_path"),
        ("[auth]\ngrants = 'g'\njwt_issuer = 'i'\n" + URL, "JWTs need jwt_issuer, jwt_audience"),
        ("[auth]\ngrants = 'g'\ntokens = 't'\njwt_leeway_s = 5\n", "jwt_leeway_s say nothing without jwt_issuer"),
        (f"[auth]\n{JWT}jwks_url = 'http://issuer/keys'\n", "whoever can alter the keys can sign tokens"),
        (f"[auth]\n{JWT}jwks_url = 'http://127.0.0.1.evil/keys'\n", "is not https"),
        (f"[auth]\n{JWT}jwks_url = 'file:///etc/keys'\n", "is not https"),
        (f"[auth]\n{JWT}jwks_url = 'https://'\n", "is not https"),
        (f"[auth]\n{JWT}jwks_url = ''\n", "auth.jwks_url = ''"),
        (f"[auth]\n{JWT}{URL}jwt_algorithms = ['HS256']\n", "auth.jwt_algorithms.0 = 'HS256'"),
        (f"[auth]\n{JWT}{URL}jwt_algorithms = ['none']\n", "auth.jwt_algorithms.0 = 'none'"),
        (f"[auth]\n{JWT}{URL}jwt_algorithms = []\n", "at least 1 item"),
        (f"[auth]\n{JWT}{URL}jwt_leeway_s = 301\n", "auth.jwt_leeway_s = 301"),
        (f"[auth]\n{JWT}{URL}jwt_leeway_s = -1\n", "auth.jwt_leeway_s = -1"),
        (f"[auth]\n{JWT}{URL}jwt_leeway_s = nan\n", "auth.jwt_leeway_s = nan"),
        (f"[auth]\n{JWT}{URL}jwks_timeout_s = 0\n", "auth.jwks_timeout_s = 0"),
        (f"[auth]\n{JWT}{URL}jwks_refresh_s = 1\n", "auth.jwks_refresh_s = 1"),
    ],
)
def test_what_does_not_hold_together_is_refused(text: str, said: str, tmp_path: Path) -> None:
    assert said in fault(write(tmp_path, text))


def test_a_password_in_the_issuers_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = fault(write(tmp_path, f"[auth]\n{JWT}jwks_url = 'https://me:hunter2@issuer/keys'\n"))
    assert "keys are public" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "setting",
    ["FEATURESTORE_TLS_KEY", "FEATURESTORE_TLS_CERT", "FEATURESTORE_AUTH_TOKENS", "FEATURESTORE_INFERENCE_TLS_KEY"],
)
def test_a_key_in_the_place_of_its_path_is_refused_and_not_repeated(setting: str, tmp_path: Path) -> None:
    """..._FILE names a file that holds the value, and here the value is a path."""
    (tmp_path / "server.key").write_text(KEY)
    write(tmp_path, "")
    for environ in ({setting: KEY}, {f"{setting}_FILE": "server.key"}):
        with pytest.raises(ConfigError, match="holds the text of a file; set .* to the path of the file") as caught:
            load_settings(tmp_path, environ)
        told = f"{caught.value} {caught.value.__cause__}"
        assert "c2VjcmV0" not in told


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example.com", False), ("", False),
    ],
)  # fmt: skip
def test_only_this_machine_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) == here
