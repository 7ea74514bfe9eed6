"""The client without the rest of the project: nothing but grpcio, protobuf and numpy may be needed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import featurestore.status
import featurestore_client
from tests.unit.serving.conftest import Backend
from tests.unit.serving.running import server

ROOT = Path(__file__).resolve().parents[3]

#: Asks as a user would, sync and async, with every kind of column that needs no Arrow.
PROGRAM = """
import asyncio, sys
import numpy as np
from featurestore_client import AsyncFeatureClient, FeatureClient, NotFound, Status

def show(reply):
    columns = reply.to_numpy()
    assert columns["delay"].dtype == np.int32 and columns["temp"].dtype == np.float32
    assert reply.statuses["delays@2"].tolist() == [Status.PRESENT, Status.NOT_FOUND]
    assert reply.to_dict()["origin"] == ["JFK", None]
    print(reply.validity()["delay"].tolist(), columns["hour"].tolist())

asked = ("departures", {"origin": ["JFK", None], "number": np.array([1, 2])})
request = {"hour": [3, 4]}
with FeatureClient(sys.argv[1]) as client:
    client.wait_until_ready(10)
    show(client.get_online_features(*asked, request=request))
    assert client.get_online_features("airport_now", {"origin": ["JFK"]}, format="matrix").to_matrix().shape == (1, 3)
    try:
        client.describe_service("nothing")
    except NotFound as error:
        assert error.request_id

async def main():
    async with AsyncFeatureClient(sys.argv[1]) as client:
        show(await client.get_online_features(*asked, request=request))

asyncio.run(main())
"""
PRINTED = "[True, False] [3, 4]\n" * 2

#: Runs first: a package that was not asked for is not there. typing_extensions comes with grpcio.
BLOCKER = """
import sys
ALLOWED = set(sys.stdlib_module_names) | {"featurestore_client", "google", "grpc", "numpy", "typing_extensions"}
class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker)
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        Backend.filled(tmp_path_factory.mktemp("backend")) as backend,
        server(backend.engine()) as running,
    ):
        yield running.target


def python(interpreter: Path | str, program: str, *arguments: str, timeout_s: float = 60) -> str:
    """What a program prints in an interpreter of its own."""
    done = subprocess.run(
        [interpreter, "-I", "-c", program, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_where_every_other_import_fails(target: str) -> None:
    assert python(sys.executable, BLOCKER + PROGRAM, target) == PRINTED


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="pyarrow is blocked"):
        python(sys.executable, BLOCKER + "import featurestore_client.arrow_columns")


def build(project: Path, out: Path) -> Path:
    """The wheel of a project."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel."""
    return build(ROOT / "clients" / "python", tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_the_package_with_its_types_and_asks_for_three_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        needs = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []

    package = "featurestore_client/"
    assert {f"{package}py.typed", f"{package}_pb/featurestore/serving/v1/serving_pb2.py"} <= names
    assert {name.partition("/")[0] for name in names} == {"featurestore_client", metadata.partition("/")[0]}
    assert sorted(Requirement(need).name for need in needs if "extra" not in need) == ["grpcio", "numpy", "protobuf"]


def test_the_main_wheel_holds_the_same_package(wheel: Path, tmp_path: Path) -> None:
    def package(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as archive:
            files = {file.filename: file.CRC for file in archive.infolist()}
        return {name: digest for name, digest in files.items() if name.startswith("featurestore_client/")}

    assert package(build(ROOT, tmp_path)) == package(wheel)


@pytest.mark.slow
def test_it_works_in_an_environment_of_its_own(wheel: Path, target: str, tmp_path: Path) -> None:
    """Installed from the wheel; its three dependencies come from the package index."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", str(wheel)], check=True)

    assert python(interpreter, PROGRAM, target) == PRINTED
    listed = python(interpreter, "from importlib import metadata\nfor d in metadata.distributions(): print(d.name)")
    assert set(listed.split()) - {"pip", "setuptools"} == {
        "featurestore-client",
        "grpcio",
        "numpy",
        "protobuf",
        "typing_extensions",
    }


def test_the_verdicts_are_those_of_the_project() -> None:
    theirs, ours = featurestore_client, featurestore.status
    assert {status.name: status.value for status in theirs.Status} == {
        status.name: status.value for status in ours.Status if status is not ours.Status.INVALID
    }
    assert {reason.name: reason.value for reason in theirs.StaleReason} == {
        reason.name: reason.value for reason in ours.StaleReason
    }
