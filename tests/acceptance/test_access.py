"""docs/access.md keeps its word: every block of settings is read, every command and program is run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from featurestore.settings import load_settings
from featurestore_client import FeatureClient, RequestFailed
from featurestore_client.access import Tls
from serving.access.grants import parse_grants
from serving.access.tokens import parse_tokens
from tests.waiting import WAIT_S

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "access.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NOW = "2024-05-01T20:00:00Z"
FEATURESTORE = Path(sys.executable).parent / "featurestore"


def blocks(language: str, first_line: str = "") -> list[str]:
    return [text for kind, text in BLOCKS if kind == language and text.startswith(first_line)]


def environment() -> dict[str, str]:
    """That of an activated .venv, without settings of the caller."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
    return kept | {"PATH": f"{FEATURESTORE.parent}{os.pathsep}{os.environ['PATH']}"}


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small template behind the doors of the page, materialized, with certificates."""
    folder = tmp_path_factory.mktemp("access") / "shop"
    span = "2024-05-01T00:00:00Z 2024-05-02T00:00:00Z"
    shell("featurestore init shop --template minimal && cd shop && featurestore apply", folder.parent)
    shell(f"featurestore --now {NOW} materialize {span}", folder)
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    (folder / "certs").mkdir()
    (folder / "certs/ca.pem").write_bytes(ca.cert_pem.bytes())
    (folder / "certs/server.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "certs/server.key").write_bytes(issued.private_key_pem.bytes())
    settings, *_ = blocks("toml", "# featurestore.toml")
    (folder / "featurestore.toml").write_text(settings)
    (grants,) = blocks("toml", "# grants.toml")
    (folder / "grants.toml").write_text(grants)
    return folder


@contextmanager
def served(repository: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process on a free port of this machine, and its address."""
    command = [str(FEATURESTORE), "--now", NOW, "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, cwd=repository, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 180)
            assert ready, "it did not get ready"
            line = process.stdout.readline()
            assert line.startswith("serving on "), process.stderr.read() if process.stderr else ""
            yield process, f"127.0.0.1:{line.strip().rpartition(':')[2]}"
        finally:
            process.kill()


def test_every_block_of_the_page_is_used_here() -> None:
    known = {("toml", "# featurestore.toml"), ("toml", "# grants.toml"), ("toml", "# tokens.toml")}
    known |= {("sh", "featurestore token"), ("python", "from featurestore_client")}
    for kind, text in BLOCKS:
        assert any(kind == language and text.startswith(start) for language, start in known), text


@pytest.mark.parametrize("text", blocks("toml", "# featurestore.toml"))
def test_its_settings_are_sound_and_shown_as_they_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "featurestore.toml").write_text(text)
    settings = load_settings(tmp_path, {})
    assert settings.auth.grants == tmp_path / "grants.toml"
    assert settings.auth.tokens or settings.auth.jwt or settings.tls.client_ca

    shown = shell("featurestore config", tmp_path).stdout
    (tmp_path / "featurestore.toml").write_text(shown)
    assert load_settings(tmp_path, {}) == settings


def test_its_files_are_sound() -> None:
    for text in blocks("toml", "# grants.toml"):
        parse_grants(text.encode(), "grants.toml")
    entries = blocks("toml", "# tokens.toml")
    assert len(entries) == 2
    for text in entries:
        parse_tokens(text.encode(), "tokens.toml")


def test_a_client_gets_in_as_the_page_says_and_a_stranger_does_not(repository: Path) -> None:
    (repository / "tokens.toml").unlink(missing_ok=True)
    (command,) = blocks("sh")
    token = shell(command, repository).stderr.split()[-1]
    assert token not in (repository / "tokens.toml").read_text()
    (program,) = blocks("python")
    shown = shell("featurestore --json config", repository)
    assert json.loads(shown.stdout)["auth"] == {
        "grants": "grants.toml", "tokens": "tokens.toml",
    } | {name: None for name in json.loads(shown.stdout)["auth"] if name not in ("grants", "tokens")}  # fmt: skip

    with served(repository) as (process, address):
        names: dict = {"address": address, "read_token": lambda: token}
        program = program.replace('"certs/', f'"{repository}/certs/')
        exec(compile(program, "docs/access.md", "exec"), names)  # noqa: S102 - the page's program
        assert len(names["reply"]) == 1
        with (
            FeatureClient(address, tls=Tls(ca=repository / "certs/ca.pem")) as stranger,
            pytest.raises(RequestFailed, match="UNAUTHENTICATED: say who you are"),
        ):
            stranger.describe_service("comfort")
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 0
        assert process.stderr is not None
        told = process.stderr.read()
    assert "without [" not in told
    assert token not in told


def test_rotating_a_token_is_what_the_page_says(repository: Path) -> None:
    """Both digests in one list; each token gets in."""
    first, second = (shell("featurestore --json token pricing --roles readers", repository).stdout for _ in range(2))
    tokens = [json.loads(text)["token"] for text in (first, second)]
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    assert digests[0] in json.loads(first)["entry"]
    *_, both = blocks("toml", "# tokens.toml")
    for shown, digest in zip(re.findall(r"[0-9a-f]{64}", both), digests, strict=True):
        both = both.replace(shown, digest)
    (repository / "tokens.toml").write_text(both)
    with served(repository) as (_, address):
        for token in tokens:
            with FeatureClient(address, tls=Tls(ca=repository / "certs/ca.pem"), token=token) as client:
                assert client.describe_service("comfort").name == "comfort"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["token"], "the following arguments are required: NAME"),
        (["token", "two words"], "names and roles hold letters, digits"),
        (["token", "x", "--roles", "a b"], "names and roles hold letters, digits"),
    ],
)
def test_names_that_cannot_stand_in_the_files_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [FEATURESTORE, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "fst_" not in done.stderr


def test_a_bad_file_ends_serve_with_the_users_exit_code(repository: Path) -> None:
    (repository / "tokens.toml").write_text("[broken\n")
    done = subprocess.run(
        [FEATURESTORE, "serve", "--port", "0"], cwd=repository, env=environment(), capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "tokens.toml is not valid TOML" in done.stderr
    assert done.stdout == ""


def test_serving_others_without_doors_starts_with_a_warning(repository: Path, tmp_path: Path) -> None:
    settings = (repository / "featurestore.toml").read_text().partition("[tls]")[0]
    for name in ("definitions", "data", "sources"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "featurestore.toml").write_text(settings)
    with served(tmp_path) as (process, address):
        with FeatureClient(address) as client:
            assert client.describe_service("comfort").name == "comfort"
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 0
        assert process.stderr is not None
        told = process.stderr.read()
    assert "listening on 0.0.0.0 without [auth]" in told
    assert "listening on 0.0.0.0 without [tls]" in told
