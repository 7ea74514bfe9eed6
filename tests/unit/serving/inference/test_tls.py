"""TLS between the serving process and whoever runs its models: what goes through, what is refused, what is said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from featurestore.errors import ConfigError, ModelUnavailable
from featurestore_client import FeatureClient
from serving.access.certificates import PemFiles
from serving.inference.server import SidecarOptions
from serving.remote_model import RemoteModel
from serving.server import ServeOptions
from serving.sidecar import Sidecar, SidecarAccess
from tests.unit.serving.conftest import Backend
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import RunningSidecar, running
from tests.unit.serving.running import server
from tests.unit.serving.test_predict import KEYS, REQUEST, write_model
from tests.waiting import WAIT_S, until

WEIGHTS = np.array([1, 10, 100], np.float32)


@dataclass
class Certificates:
    """The files of both ends in a folder, which tests change."""

    folder: Path
    ca: trustme.CA
    client_ca: trustme.CA

    @staticmethod
    def made(folder: Path) -> Certificates:
        made = Certificates(folder, trustme.CA(), trustme.CA())
        made.write_server(made.ca.issue_cert("localhost", "127.0.0.1"))
        made.write("client_ca.pem", made.client_ca.cert_pem.bytes())
        made.write("ca.pem", made.ca.cert_pem.bytes())
        made.write_pair("client", made.client_ca.issue_cert("serving.internal"))
        return made

    def write(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def write_pair(self, name: str, issued: trustme.LeafCert) -> None:
        self.write(f"{name}.pem", b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.write(f"{name}.key", issued.private_key_pem.bytes())

    def write_server(self, issued: trustme.LeafCert) -> None:
        self.write_pair("server", issued)

    @property
    def of_sidecar(self) -> PemFiles:
        return PemFiles(
            cert=self.folder / "server.pem",
            key=self.folder / "server.key",
            ca=self.folder / "client_ca.pem",
            where="--tls-*",
            names=("--tls-cert", "--tls-key", "--tls-client-ca"),
        )

    @property
    def of_serving(self) -> PemFiles:
        return PemFiles(
            cert=self.folder / "client.pem",
            key=self.folder / "client.key",
            ca=self.folder / "ca.pem",
            where="[inference]",
            names=("inference.tls_cert", "inference.tls_key", "inference.tls_ca"),
        )


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    (tmp_path / "models").mkdir()
    return Certificates.made(tmp_path)


@pytest.fixture
def mutual(certificates: Certificates, tmp_path: Path) -> Iterator[RunningSidecar]:
    """A sidecar that demands certificates."""
    models.write_linear(tmp_path / "models" / "linear" / "1", WEIGHTS)
    with running(tmp_path / "models", tls=certificates.of_sidecar) as made:
        yield made


def describe(address: str, tls: PemFiles | None, **more: Any) -> str:
    """The version that the model answers with; what keeps one from asking is raised."""

    async def ask() -> str:
        sidecar = Sidecar(SidecarAccess(address=address, tls=tls, timeout_s=10.0, **more))
        try:
            return (await sidecar.describe("linear", "")).version
        finally:
            await sidecar.close()

    return asyncio.run(ask())


def refusal(address: str, tls: PemFiles | None) -> str:
    """What one is told who may not ask; nothing when one may."""
    try:
        describe(address, tls, retries=0)
    except ModelUnavailable as error:
        return str(error)
    return ""


def test_features_and_predictions_cross_under_mutual_tls(backend: Backend, certificates: Certificates) -> None:
    folder = certificates.folder / "models"
    write_model(folder)
    with running(folder, tls=certificates.of_sidecar) as sidecar:
        access = SidecarAccess(address=sidecar.address, tls=certificates.of_serving, timeout_s=10.0)
        options = ServeOptions(port=0, poll_s=0.05, drain_s=5.0, sidecar=access)
        with server(backend.engine(), options) as serving, FeatureClient(serving.target) as client:
            assert len(client.predict("departures", "late", KEYS, request=REQUEST)) == 2


def test_a_batch_is_predicted_under_mutual_tls(certificates: Certificates, mutual: RunningSidecar) -> None:
    model = RemoteModel(SidecarAccess(address=mutual.address, tls=certificates.of_serving), "linear", "")
    try:
        assert model.run(np.ones((2, 3), np.float32))["y"].tolist() == [[111.0], [111.0]]
    finally:
        model.close()


def test_whoever_may_not_talk_to_the_sidecar_is_told_why_at_once(
    certificates: Certificates, mutual: RunningSidecar
) -> None:
    """Each is refused by the handshake, long before the call's time is up."""
    address, mine = mutual.address, certificates.of_serving
    assert "set inference.tls_ca" in refusal(address, None)
    assert "set inference.tls_cert and inference.tls_key" in refusal(address, replace(mine, cert=None, key=None))

    certificates.write_pair("strange", trustme.CA().issue_cert("serving.internal"))
    strange = replace(mine, cert=certificates.folder / "strange.pem", key=certificates.folder / "strange.key")
    assert "one of another authority" in refusal(address, strange)

    other = certificates.write("other_ca.pem", trustme.CA().cert_pem.bytes())
    assert "its certificate is of no authority in inference.tls_ca" in refusal(address, replace(mine, ca=other))
    assert describe(address, mine) == "1"


def test_a_certificate_for_another_name_and_a_sidecar_without_tls_are_told(
    certificates: Certificates, tmp_path: Path
) -> None:
    certificates.write_server(certificates.ca.issue_cert("elsewhere"))
    with running(tmp_path / "models", tls=replace(certificates.of_sidecar, ca=None)) as sidecar:
        assert "its certificate is for other names" in refusal(sidecar.address, certificates.of_serving)
    with running(tmp_path / "models") as plain:
        assert "it speaks no TLS" in refusal(plain.address, certificates.of_serving)


def test_certificates_are_renewed_on_both_ends_without_a_restart(
    certificates: Certificates, mutual: RunningSidecar
) -> None:
    async def change() -> None:
        sidecar = Sidecar(SidecarAccess(address=mutual.address, tls=certificates.of_serving, timeout_s=10.0, retries=0))

        async def answers() -> bool:
            try:
                return (await sidecar.describe("linear", "")).version == "1"
            except ModelUnavailable:
                return False

        async def comes_to(wanted: bool) -> None:
            async with asyncio.timeout(WAIT_S):
                while await answers() != wanted:
                    await asyncio.sleep(0.05)

        assert await answers()
        # The sidecar trusts another authority, and shows a certificate of another: connections that are open go on.
        client_ca, ca = trustme.CA(), trustme.CA()
        certificates.write("client_ca.pem", client_ca.cert_pem.bytes())
        certificates.write_server(ca.issue_cert("127.0.0.1"))
        await asyncio.to_thread(until, lambda: "no authority" in refusal(mutual.address, certificates.of_serving))
        assert await answers()
        # The serving process follows: first one file, which will not do yet, then all.
        certificates.write("ca.pem", ca.cert_pem.bytes())
        await comes_to(False)
        certificates.write_pair("client", client_ca.issue_cert("serving.internal"))
        await comes_to(True)
        await sidecar.close()

    asyncio.run(change())


@pytest.mark.parametrize("end", ["of_sidecar", "of_serving"])
def test_bad_files_end_the_start_with_the_way_out(certificates: Certificates, tmp_path: Path, end: str) -> None:
    files: PemFiles = getattr(certificates, end)
    cert, key, ca = files.names

    def begin(changed: PemFiles) -> None:
        if end == "of_serving":
            describe("127.0.0.1:1", changed)
        else:
            RunningSidecar(options_of(tmp_path, changed))

    def fault(changed: PemFiles) -> str:
        with pytest.raises(ConfigError) as caught:
            begin(changed)
        assert "BEGIN" not in str(caught.value)
        return str(caught.value)

    assert f"{tmp_path}/none cannot be read" in fault(replace(files, ca=tmp_path / "none"))
    certificates.write("junk", b"no PEM")
    assert f"{ca} ({tmp_path}/junk) cannot be used" in fault(replace(files, ca=tmp_path / "junk"))
    certificates.write("other.key", trustme.CA().issue_cert("x").private_key_pem.bytes())
    said = fault(replace(files, key=tmp_path / "other.key"))
    assert said.startswith(f"{cert} ({files.cert}) and {key} ({tmp_path}/other.key) cannot be used: the key is that of")
    assert f"{cert} is a PEM chain, {key} its own unencrypted key" in said


def options_of(tmp_path: Path, tls: PemFiles) -> SidecarOptions:
    return SidecarOptions(models=tmp_path / "models", address="127.0.0.1:0", tls=tls)


def test_a_sidecar_that_others_may_reach_warns_of_what_is_open(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(tls: PemFiles | None, address: str = "0.0.0.0:0") -> str:
        caplog.clear()
        with running(tmp_path / "models", address=address, tls=tls):
            pass
        return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)

    assert "features cross the network readable to all; set --tls-cert" in warned(None)
    assert "set --tls-client-ca" in warned(replace(certificates.of_sidecar, ca=None))
    assert warned(certificates.of_sidecar) == ""
    assert warned(None, "127.0.0.1:0") == ""


def test_a_unix_socket_takes_no_tls(certificates: Certificates, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a unix socket, which is served without TLS"):
        RunningSidecar(replace(options_of(tmp_path, certificates.of_sidecar), address=f"unix://{tmp_path}/s.sock"))
