"""Schemathesis against the running gateway, from its own OpenAPI schema, on a stated seed: nothing is a server's fault.

The schema is told which services and keys there are, so that the requests made from it reach the lookup; without that
nearly all of them would end at an unknown name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import httpx
import pytest

from featurestore.status import Status
from serving.engine import Engine
from serving.sidecar import SidecarAccess
from serving.telemetry import Telemetry
from serving.wire import LookupRequest
from tests.unit.serving.conftest import Backend
from tests.unit.serving.gateway import gateway
from tests.unit.serving.inference.running import running
from tests.unit.serving.test_predict import write_model

SEED = 20131201
QUICK_EXAMPLES, SLOW_S = 40, 70
ROUTE = "/get-online-features"
#: Which names go together the schema cannot say, so a request that fits it may well be refused.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def schema_with_names(base: str) -> dict[str, Any]:
    """The gateway's schema; beside any request at all, those that name a service and its keys."""
    schema = httpx.get(f"{base}/openapi.json").json()
    schemas = schema["components"]["schemas"]
    anything = schemas["OnlineFeaturesRequest"]
    text, number = {"type": ["string", "null"]}, {"type": ["integer", "null"], "minimum": -(2**70), "maximum": 2**70}

    def naming(chosen: dict[str, Any], **keys: dict[str, Any]) -> dict[str, Any]:
        entities = {
            name: {"type": "array", "items": items, "minItems": 2, "maxItems": 2} for name, items in keys.items()
        }
        properties = {**anything["properties"], **chosen}
        unused = {"feature_service", "features"} - set(chosen)
        for name in unused:
            del properties[name]
        properties["entities"] = {
            "type": "object", "properties": entities, "required": list(keys), "additionalProperties": False,
        }  # fmt: skip
        required = [*chosen, "entities"]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    hour = {"type": "integer", "minimum": -1, "maximum": 24}
    named = [
        naming({"feature_service": {"const": "airport_now"}}, origin=text),
        naming({"feature_service": {"const": "all_types"}}, id={"anyOf": [number, {"type": "string"}]}),
        naming({"feature_service": {"const": "departures"}}, origin=text, number=number, hour=hour),
        naming({"features": {"type": "array", "items": {"enum": ["weather:temp", "weather:sky"]}}}, origin=text),
    ]
    schemas["OnlineFeaturesRequest"] = {"anyOf": [*named, anything]}
    schemas["PushRequest"] = {"anyOf": [_weather(), schemas["PushRequest"]]}
    schemas["PredictRequest"] = {"anyOf": [_late(schemas["PredictRequest"]), schemas["PredictRequest"]]}
    return schema


def _late(anything: dict[str, Any]) -> dict[str, Any]:
    """Predictions of two departures, whose features may well be missing, or the output another."""
    columns = {
        "origin": {"enum": ["JFK", "", None]},
        "number": {"enum": [1, 2, "2", None]},
        "hour": {"type": "integer"},
    }
    two = {name: {"type": "array", "items": items, "minItems": 2, "maxItems": 2} for name, items in columns.items()}
    entities = {"type": "object", "properties": two, "required": list(two), "additionalProperties": False}
    named = {"feature_service": {"const": "departures"}, "model": {"const": "late"}, "entities": entities}
    outputs = {"type": "array", "items": {"enum": ["y", "z"]}, "maxItems": 2}
    properties = {**anything["properties"], **named, "model_version": {"enum": ["", "1", "2"]}, "outputs": outputs}
    return {"type": "object", "properties": properties, "required": list(named), "additionalProperties": False}


def _weather() -> dict[str, Any]:
    """Pushes of two rows of weather, which may well break its contract."""
    number = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", None]}]}
    columns = {
        "origin": {"type": ["string", "null"]},
        "time": {"enum": ["2013-12-01T11:00:00Z", "2013-12-01T13:00:00+01:00", "2013-12-01T11:00:00", None]},
        "temp": number,
        "wind": number,
        "sky": {"enum": ["clear", "hail", None]},
    }
    two = {name: {"type": "array", "items": items, "minItems": 2, "maxItems": 2} for name, items in columns.items()}
    df = {"type": "object", "properties": two, "required": list(two), "additionalProperties": False}
    properties = {"push_source_name": {"const": "weather"}, "df": df}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def fuzz(engine: Engine, backend: Backend, tmp_path: Path, *bounds: str) -> tuple[int, str, dict[str, float]]:
    """Exit code and words of a run, and how many requests ended with which code."""
    telemetry = Telemetry()
    write_model(tmp_path / "models")
    with (
        running(tmp_path / "models") as models,
        gateway(
            engine,
            telemetry,
            backend.limits,
            push=backend.push_door(),
            sidecar=SidecarAccess(address=models.address, timeout_s=20.0),
        ) as base,
    ):
        path = tmp_path / "openapi.json"
        path.write_text(json.dumps(schema_with_names(base)), encoding="utf-8")
        command = [
            str(Path(sys.executable).with_name("st")), "run", str(path), "--url", base, "--seed", str(SEED),
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--no-color", *bounds,
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env={**os.environ}
        )
    codes: dict[str, float] = {}
    for (_, _, code), count in telemetry.metrics.snapshot().values["featurestore_requests"].items():
        assert isinstance(count, (int, float))
        codes[code] = codes.get(code, 0) + count
    return done.returncode, done.stdout + done.stderr, codes


def assert_all_answered_well(outcome: tuple[int, str, dict[str, float]], at_least: int) -> None:
    returned, said, codes = outcome
    assert returned == 0, said
    refusals = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION"}
    assert set(codes) <= {"OK", *refusals}, codes
    assert sum(codes.values()) >= at_least, codes
    assert codes.get("OK", 0) >= 5, f"few requests reached the lookup: {codes}"


def test_a_short_fuzz_finds_nothing(backend: Backend, tmp_path: Path) -> None:
    bounds = ("--max-examples", str(QUICK_EXAMPLES))
    assert_all_answered_well(fuzz(backend.engine(), backend, tmp_path, *bounds), QUICK_EXAMPLES)


@pytest.mark.slow
def test_a_long_fuzz_finds_nothing(backend: Backend, tmp_path: Path) -> None:
    outcome = fuzz(backend.engine(), backend, tmp_path, "--max-time", str(SLOW_S), "--max-examples", "100000")
    assert_all_answered_well(outcome, 5 * QUICK_EXAMPLES)


def test_a_planted_fault_is_found(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect that only requests with names in full meet, deep in the lookup."""
    engine = backend.engine()
    respond = engine.respond

    def faulty(request: LookupRequest, threads: Executor | None = None) -> Any:
        if request.choice.full_names:
            raise ZeroDivisionError(Status.ERROR.name)
        return respond(request, threads)

    monkeypatch.setattr(engine, "respond", faulty)

    bounds = ("--max-examples", str(QUICK_EXAMPLES), "--no-shrink", "--max-failures", "1", "--include-path", ROUTE)
    returned, said, codes = fuzz(engine, backend, tmp_path, *bounds)

    assert returned == 1
    assert "Server error" in said
    assert codes["INTERNAL"] > 0
