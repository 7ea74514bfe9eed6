"""Versions: loaded, switched, rolled back, shared out to canaries and shadows, while requests go on."""

from __future__ import annotations

import json
import re
import shutil
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.ports import free_port
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import RunningSidecar, rows, running
from tests.waiting import until

ONE = np.ones((1, 3), np.float32)


def write(root: Path, version: int, answer: float, model: str = "m") -> None:
    """A version that answers so, whatever it is asked."""
    models.write_linear(root / model / str(version), np.zeros(3, np.float32), answer)


def configure(root: Path, text: str) -> None:
    (root / "m" / "config.toml.new").write_text(text)
    (root / "m" / "config.toml.new").rename(root / "m" / "config.toml")


def answer(sidecar: RunningSidecar, version: str = "", request_id: str = "") -> float:
    return float(sidecar.infer("m", {"x": ONE}, version=version, request_id=request_id)["y"][0, 0])


def code(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value.code().name, failed.value.details()


def test_a_new_version_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    seen: list[float] = []
    stop = threading.Event()
    with running(tmp_path) as sidecar:

        def ask_on() -> None:
            while not stop.is_set():
                seen.append(answer(sidecar))

        threads = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 6):
            write(tmp_path, version, version)
            until(lambda version=version: answer(sidecar) == version)  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        assert sidecar.metadata("m").versions == ["5"]
        assert code(lambda: answer(sidecar, version="1"))[0] == "NOT_FOUND"
    assert set(seen) == {1, 2, 3, 4, 5}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_tried_again_when_mended(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        (tmp_path / "m" / "2").mkdir()
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"half a file")
        until(lambda: len(sidecar.index()) == 2)

        assert answer(sidecar) == 1
        assert sidecar.health("m") == "SERVING"
        assert code(lambda: answer(sidecar, version="2"))[0] == "UNAVAILABLE"
        assert [(version, state) for _, version, state, _ in sidecar.index()] == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert code(lambda: sidecar.load("m"))[0] == "UNAVAILABLE"

        write(tmp_path, 2, 2)
        until(lambda: answer(sidecar) == 2)


@pytest.mark.parametrize("fault", ["shape", "signature"])
def test_whatever_a_version_raises_keeps_no_other_model_from_being_served_and_followed(
    tmp_path: Path, fault: str
) -> None:
    if fault == "shape":
        models.write_linear_of_width(tmp_path / "a" / "1", 2**62)
    else:
        models.write_linear(tmp_path / "a" / "1", np.zeros(3, np.float32))
        (tmp_path / "a" / "1" / "signature.json").write_text("[" * 100_000)
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        assert answer(sidecar) == 1
        state, reason = next((state, reason) for name, _, state, reason in sidecar.index() if name == "a")
        assert state == "UNAVAILABLE"
        assert f"it raised {'ValueError' if fault == 'shape' else 'RecursionError'}" in reason
        write(tmp_path, 2, 2)
        until(lambda: answer(sidecar) == 2)


def test_a_version_that_does_not_keep_its_shapes_is_not_switched_to(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    models.write_doubler(tmp_path / "m" / "2")
    with running(tmp_path) as sidecar:
        (reason,) = (reason for _, version, _, reason in sidecar.index() if version == "2")

        assert "cannot share a run" in reason
        assert answer(sidecar) == 1


def test_going_back_to_an_older_version_is_a_line_or_a_removed_folder(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(tmp_path, version, version)
    with running(tmp_path) as sidecar:
        assert answer(sidecar) == 3
        shutil.rmtree(tmp_path / "m" / "3")
        until(lambda: answer(sidecar) == 2)
        configure(tmp_path, "version = 1")
        until(lambda: answer(sidecar) == 1)


def test_changed_files_of_a_version_are_loaded_anew(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        write(tmp_path, 1, 1.5)
        until(lambda: answer(sidecar) == 1.5)


def test_models_come_and_go_with_their_folders(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        write(tmp_path, 1, 8, model="other")
        until(lambda: {model for model, *_ in sidecar.index()} == {"m", "other"})
        shutil.rmtree(tmp_path / "m")
        until(lambda: {model for model, *_ in sidecar.index()} == {"other"})
        assert code(lambda: answer(sidecar))[0] == "NOT_FOUND"


def test_an_unloaded_model_stays_so_until_it_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        sidecar.unload("m")
        write(tmp_path, 2, 2)
        told, said = code(lambda: answer(sidecar))

        assert (told, "load it again" in said) == ("UNAVAILABLE", True)
        sidecar.load("m")
        assert answer(sidecar) == 2


def test_older_versions_are_kept_as_many_as_wanted(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(tmp_path, version, version)
    configure(tmp_path, "keep_versions = 2")
    with running(tmp_path) as sidecar:
        assert (answer(sidecar), answer(sidecar, version="2")) == (3, 2)
        assert code(lambda: answer(sidecar, version="1"))[0] == "NOT_FOUND"


def test_a_canary_answers_its_share_and_always_the_same_requests(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    write(tmp_path, 2, 2)
    configure(tmp_path, "canary = {version = 2, share = 0.25}")
    with running(tmp_path) as sidecar:
        without_id = Counter(answer(sidecar) for _ in range(40))
        by_id = {number: answer(sidecar, request_id=f"request-{number}") for number in range(200)}

        assert without_id == {1.0: 30, 2.0: 10}
        assert 25 < Counter(by_id.values())[2.0] < 75
        assert all(answer(sidecar, request_id=f"request-{number}") == by_id[number] for number in range(20))


def test_a_shadow_is_compared_and_counted_never_returned(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    write(tmp_path, 2, 1)
    configure(tmp_path, "shadow = {version = 2}")
    port = free_port()
    with running(tmp_path, metrics=("127.0.0.1", port)) as sidecar:
        assert [answer(sidecar) for _ in range(5)] == [1.0] * 5
        until(lambda: shadowed(port) == {"same": 5})
        write(tmp_path, 2, 3)
        until(lambda: sidecar.infer("m", {"x": ONE}, version="2")["y"][0, 0] == 3)
        assert [answer(sidecar) for _ in range(3)] == [1.0] * 3
        until(lambda: shadowed(port) == {"same": 5, "different": 3})


def shadowed(port: int) -> dict[str, float]:
    """Outcome -> how often."""
    lines = re.findall(r'shadow_requests_total\{.*outcome="(\w+)".*\} (\S+)', scrape(port))
    return {outcome: float(count) for outcome, count in lines}


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        return reply.read().decode()


def test_a_bad_config_is_told_and_the_model_goes_on_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    with running(tmp_path) as sidecar:
        configure(tmp_path, "max_batch_row = 5")
        until(lambda: "max_batch_row: Extra inputs" in code(lambda: sidecar.load("m"))[1])

        assert answer(sidecar) == 1


def test_the_signature_beside_a_model_is_told_and_asked_for(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    text = json.dumps({"format": 1, "signature": "abc", "fields": []})
    (tmp_path / "m" / "1" / "signature.json").write_text(text)
    with running(tmp_path) as sidecar:
        assert sidecar.metadata("m").parameters["featurestore_signature"].string_param == text
        assert sidecar.infer("m", {"x": ONE}, signature="abc")["y"].tolist() == [[1.0]]
        assert code(lambda: sidecar.infer("m", {"x": ONE}, signature="abd"))[0] == "FAILED_PRECONDITION"


def test_runs_are_counted_by_model_and_version(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    port = free_port()
    with running(tmp_path, metrics=("127.0.0.1", port)) as sidecar:
        sidecar.infer("m", {"x": rows(5)})
        code(lambda: sidecar.infer("m", {"z": rows(5)}))
        told = scrape(port)
    assert 'featurestore_inference_requests_total{code="OK",model="m",project="",version="1"} 1.0' in told
    assert 'featurestore_inference_requests_total{code="INVALID_ARGUMENT",model="m",project="",version="1"} 1.0' in told
    assert 'featurestore_inference_batch_rows_bucket{le="8.0",model="m",project="",version="1"} 1.0' in told
    assert 'featurestore_inference_batch_rows_bucket{le="4.0",model="m",project="",version="1"} 0.0' in told
    assert 'featurestore_inference_model_ready{model="m",project="",version="1"} 1.0' in told
