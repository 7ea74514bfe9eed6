"""docs/clients.md keeps its word: its commands and Python programs are run, its Go and Java fit the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from tests.acceptance.test_readme import run_python, serving, shell

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def stations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that the page's first block makes."""
    folder = tmp_path_factory.mktemp("clients")
    made, serve, *_ = blocks("sh")
    shell(made, folder)
    assert serve == "featurestore serve\n"
    return folder / "stations"


def test_the_python_programs_print_what_they_look_up(stations: Path) -> None:
    """Sync, then asyncio."""
    (now,) = re.findall(r"FEATURESTORE_NOW=(\S+)", PAGE)
    with serving(stations, now) as address:
        sync, awaited = (
            run_python(program.replace("127.0.0.1:6566", address), stations) for program in blocks("python")
        )

    assert sync.splitlines() == [
        "[13.   18.25   nan]",
        "[False  True False]",
        "['STALE', 'STALE', 'NOT_FOUND']",
        "{'station': ['north', 'south', 'nowhere'], 'temperature': [13.0, 18.25, None], "
        "'humidity': [None, 52, None], 'readings__status': ['STALE', 'STALE', 'NOT_FOUND']}",
        "['temperature', 'humidity'] [[13. 50.]]",
        "['string']",
        "no feature service named 'confort'; did you mean 'comfort'? known: comfort",
    ]
    assert awaited == "[13.0, 18.25]\n"


def test_go_and_java_name_what_the_contract_holds() -> None:
    """Fields, messages, enum values and methods in the programs exist."""
    (go,), (java,) = blocks("go"), blocks("java")
    messages = {*pb.DESCRIPTOR.message_types_by_name, *pb.DESCRIPTOR.enum_types_by_name}
    fields = {field for message in pb.DESCRIPTOR.message_types_by_name.values() for field in message.fields_by_name}
    pascal = {"".join(part.capitalize() for part in name.split("_")) for name in fields}

    options = pb.DESCRIPTOR.GetOptions()
    named = {name.split("_")[0] for name in re.findall(r"servingv1\.(\w+)", go)}
    assert named - messages == {"NewFeatureServingClient"}
    assert set(re.findall(r"^\t+(\w+): ", go, flags=re.MULTILINE)) <= pascal | {"Features"}
    assert options.go_package == "featurestore/serving/v1;servingv1"
    imported = set(re.findall(rf"^import {re.escape(options.java_package)}\.(\w+);", java, flags=re.MULTILINE))
    assert imported - messages == {"FeatureServingGrpc"}
    assert set(re.findall(r"\.set(\w+)\(", java)) <= pascal
