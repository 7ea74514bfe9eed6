"""What travels: inputs raw, typed and in shared memory, outputs of every type, and what is refused with which code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from featurestore.errors import ConfigError
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.server import SidecarOptions
from tests.unit.serving.inference import models
from tests.unit.serving.inference.running import RunningSidecar, infer_request, outputs_of, rows, running

WEIGHTS = np.array([1.0, 10.0, 100.0], np.float32)


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSidecar]:
    root = tmp_path_factory.mktemp("models")
    models.write_linear(root / "linear" / "1", WEIGHTS)
    models.write_picky(root / "picky" / "1")
    models.write_two_inputs(root / "mixed" / "1")
    models.write_glutton(root / "glutton" / "1")
    (root / "broken" / "1").mkdir(parents=True)
    (root / "broken" / "1" / "model.onnx").write_bytes(b"no model at all")
    (root / "empty").mkdir()
    (root / "exported" / "3").mkdir(parents=True)
    (root / "exported" / "3" / "model.pt2").write_bytes(b"")
    with running(root) as made:
        yield made


def refused(sidecar: RunningSidecar, request: Any, method: str = "ModelInfer") -> tuple[str, str]:
    """Code and words of a call that must fail."""
    kind = getattr(pb, f"{method}Response")
    with pytest.raises(grpc.RpcError) as failed:
        sidecar.call(method, request, kind)
    return failed.value.code().name, failed.value.details()


# ------------------------------------------------------------------ what works


def test_a_model_answers_raw_inputs(sidecar: RunningSidecar) -> None:
    x = rows(100)

    reply = sidecar.reply("linear", {"x": x}, request_id="mine")

    assert (reply.model_name, reply.model_version, reply.id) == ("linear", "1", "mine")
    np.testing.assert_allclose(outputs_of(reply)["y"][:, 0], x @ WEIGHTS, rtol=1e-5)


def test_typed_contents_give_what_raw_ones_give(sidecar: RunningSidecar) -> None:
    x = rows(4)
    asked = pb.ModelInferRequest(model_name="linear")
    asked.inputs.add(name="x", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(x.ravel().tolist())

    typed = outputs_of(sidecar.call("ModelInfer", asked, pb.ModelInferResponse))

    np.testing.assert_array_equal(typed["y"], sidecar.infer("linear", {"x": x})["y"])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_several_inputs_text_and_outputs_by_choice(sidecar: RunningSidecar, count: int) -> None:
    words = np.array([f"wörd{place}" for place in range(count)], object)
    inputs = {"words": words, "b": np.arange(count, dtype="<i4"), "a": np.full(count, 2, "<i4")}

    found = sidecar.infer("mixed", inputs)
    one = sidecar.infer("mixed", inputs, outputs=("sum",))

    assert found["sum"].tolist() == [2 + place for place in range(count)]
    assert [word.decode() for word in found["same_words"]] == words.tolist()
    assert list(one) == ["sum"]


def test_nan_passes_through(sidecar: RunningSidecar) -> None:
    x = rows(3)
    x[1, 0] = np.nan

    found = sidecar.infer("linear", {"x": x})["y"][:, 0]

    assert np.isnan(found).tolist() == [False, True, False]


def test_what_a_server_and_a_model_say_of_themselves(sidecar: RunningSidecar) -> None:
    server = sidecar.call("ServerMetadata", b"", pb.ServerMetadataResponse)
    model = sidecar.metadata("linear")

    assert sidecar.call("ServerLive", b"", pb.ServerLiveResponse).live
    assert sidecar.call("ServerReady", b"", pb.ServerReadyResponse).ready
    assert "system_shared_memory" in server.extensions
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in model.inputs] == [("x", "FP32", [-1, 3])]
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in model.outputs] == [("y", "FP32", [-1, 1])]
    assert model.versions == ["1"]


def test_health_is_told_per_model(sidecar: RunningSidecar) -> None:
    assert [sidecar.health(name) for name in ("", "linear", "broken")] == ["SERVING", "SERVING", "NOT_SERVING"]
    assert (sidecar.ready("linear"), sidecar.ready("broken")) == (True, False)


# ------------------------------------------------------------------ what is refused


def linear(**changes: Any) -> pb.ModelInferRequest:
    """A good request to `linear`, but for some fields of its input."""
    asked = infer_request("linear", {"x": rows(2)})
    for name, value in changes.items():
        field = getattr(asked.inputs[0], name)
        if isinstance(field, str):
            setattr(asked.inputs[0], name, value)
        else:
            del field[:]
            field.extend(value)
    return asked


BAD_INPUT = {
    "type": (linear(datatype="FP64"), "is FP64, the model takes FP32"),
    "unknown type": (linear(datatype="float"), "is float, the model takes FP32"),
    "name": (linear(name="xx"), "takes no input 'xx'; did you mean 'x'"),
    "dimensions": (linear(shape=[6]), r"has shape \[6\], the model takes \[-1, 3\]"),
    "width": (linear(shape=[3, 2]), "the model takes"),
    "negative size": (linear(shape=[-2, 3]), "the model takes"),
    "bytes": (linear(shape=[3, 3]), "has 24 bytes, FP32 of shape .* has 36"),
    "huge shape": (linear(shape=[2**62, 3]), "has 24 bytes"),
    "missing": (pb.ModelInferRequest(model_name="linear"), "needs input 'x'"),
    "twice": (
        pb.ModelInferRequest(model_name="linear", inputs=[*linear().inputs] * 2, raw_input_contents=[bytes(24)] * 2),
        "given twice",
    ),
    "raw too many": (
        pb.ModelInferRequest(model_name="linear", inputs=linear().inputs, raw_input_contents=[bytes(24)] * 2),
        "raw_input_contents has 2 items",
    ),
    "contents too few": (pb.ModelInferRequest(model_name="linear", inputs=linear().inputs), "has 0 elements"),
    "output": (infer_request("linear", {"x": rows(1)}, outputs=("z",)), "gives no output 'z'"),
    "too many rows": (infer_request("linear", {"x": rows(2000)}), "2000 rows in one request, .* takes 1024; split it"),
    "rows that differ": (
        infer_request("mixed", {"a": np.zeros(2, "<i4"), "b": np.zeros(3, "<i4"), "words": np.array(["a"], object)}),
        "the inputs differ in rows",
    ),
    "text cut short": (
        pb.ModelInferRequest(
            model_name="mixed",
            inputs=[{"name": "words", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[b"\x09\x00\x00\x00abc"],
        ),
        "does not hold 1 values of BYTES",
    ),
    "shared memory": (
        pb.ModelInferRequest(
            model_name="linear",
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name="x",
                    datatype="FP32",
                    shape=[2, 3],
                    parameters={"shared_memory_region": pb.InferParameter(string_param="none")},
                )
            ],
        ),
        "no shared memory region named 'none'",
    ),
    "no message": (b"\xff\xff", "is not a ModelInferRequest"),
}


@pytest.mark.parametrize(("request_", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_the_way_out(sidecar: RunningSidecar, request_: Any, words: str) -> None:
    code, said = refused(sidecar, request_)

    assert code == ("NOT_FOUND" if "no shared memory" in words else "INVALID_ARGUMENT")
    assert pytest.RaisesExc(Exception, match=words).matches(Exception(said)), said


UNSERVED = {
    "unknown model": ("lineer", "", "NOT_FOUND", "no model named 'lineer'; did you mean 'linear'"),
    "unknown version": ("linear", "2", "NOT_FOUND", "no version of model 'linear' named '2'; known: 1"),
    "version that is no number": ("linear", "newest", "NOT_FOUND", "leave the version empty"),
    "corrupt file": ("broken", "", "UNAVAILABLE", "cannot be loaded.*export it again"),
    "model without versions": ("empty", "", "UNAVAILABLE", "put a model into a folder named 1"),
    "no PyTorch": ("exported", "", "UNAVAILABLE", "pip install torch"),
}


@pytest.mark.parametrize(("model", "version", "code", "words"), UNSERVED.values(), ids=UNSERVED)
def test_what_is_not_served_says_why(sidecar: RunningSidecar, model: str, version: str, code: str, words: str) -> None:
    told, said = refused(sidecar, infer_request(model, {"x": rows(1)}, version=version))

    assert told == code
    assert pytest.RaisesExc(Exception, match=words).matches(Exception(said)), said


def test_a_model_that_raises_says_so_and_goes_on(sidecar: RunningSidecar) -> None:
    code, said = refused(sidecar, infer_request("picky", {"x": np.array([9])}))

    assert (code, "must be within the inclusive range" in said) == ("UNKNOWN", True), said
    assert sidecar.infer("picky", {"x": np.array([2])})["y"].tolist() == [12]


def test_a_model_out_of_memory_says_so_and_goes_on(sidecar: RunningSidecar) -> None:
    code, _ = refused(sidecar, infer_request("glutton", {"x": np.array([1 << 50])}))

    assert code == "RESOURCE_EXHAUSTED"
    assert sidecar.infer("glutton", {"x": np.array([5])})["y"].tolist() == [5]


def test_a_model_of_another_signature_is_refused(sidecar: RunningSidecar) -> None:
    code, said = refused(sidecar, infer_request("linear", {"x": rows(1)}, signature="abc"))

    assert (code, "has no signature, the features have abc" in said) == ("FAILED_PRECONDITION", True)


def test_loading_takes_no_parameters(sidecar: RunningSidecar) -> None:
    asked = pb.RepositoryModelLoadRequest(model_name="linear")
    asked.parameters["file:1/model.onnx"].bytes_param = b"anything"

    assert refused(sidecar, asked, "RepositoryModelLoad")[0] == "INVALID_ARGUMENT"


# ------------------------------------------------------------------ shared memory


@contextlib.contextmanager
def shared(name: str, size: int) -> Iterator[shared_memory.SharedMemory]:
    memory = shared_memory.SharedMemory(name, create=True, size=size)
    try:
        yield memory
    finally:
        memory.close()
        with contextlib.suppress(FileNotFoundError):
            memory.unlink()


def register(sidecar: RunningSidecar, name: str, key: str, offset: int, size: int) -> None:
    asked = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    sidecar.call("SystemSharedMemoryRegister", asked, pb.SystemSharedMemoryRegisterResponse)


def unregister(sidecar: RunningSidecar, name: str) -> None:
    asked = pb.SystemSharedMemoryUnregisterRequest(name=name)
    sidecar.call("SystemSharedMemoryUnregister", asked, pb.SystemSharedMemoryUnregisterResponse)


def in_region(tensor: Any, region: str, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    tensor.parameters["shared_memory_offset"].int64_param = offset


def test_inputs_and_outputs_lie_in_shared_memory(sidecar: RunningSidecar) -> None:
    x = rows(5)
    with shared("featurestore_test_io", 4096) as memory:
        assert memory.buf is not None
        buffer = np.frombuffer(memory.buf, np.uint8)
        buffer[16 : 16 + x.nbytes] = x.view(np.uint8).ravel()
        register(sidecar, "io", "/featurestore_test_io", 8, 4000)
        asked = pb.ModelInferRequest(model_name="linear")
        in_region(asked.inputs.add(name="x", datatype="FP32", shape=x.shape), "io", x.nbytes, 8)
        in_region(asked.outputs.add(name="y"), "io", 20, 1000)

        reply = sidecar.call("ModelInfer", asked, pb.ModelInferResponse)

        found = np.frombuffer(buffer[1008:1028].tobytes(), np.float32)
        del buffer
        status = sidecar.call("SystemSharedMemoryStatus", b"", pb.SystemSharedMemoryStatusResponse)
        unregister(sidecar, "io")
        none_left = sidecar.call("SystemSharedMemoryStatus", b"", pb.SystemSharedMemoryStatusResponse)
    np.testing.assert_array_equal(found, sidecar.infer("linear", {"x": x})["y"][:, 0])
    assert (list(reply.outputs[0].shape), reply.raw_output_contents) == ([5, 1], [b""])
    assert (status.regions["io"].offset, status.regions["io"].byte_size, dict(none_left.regions)) == (8, 4000, {})


@pytest.mark.parametrize(
    ("size", "offset"), [(60, 8), (61, 0), (2**62, 2**62), (60, -1), (-60, 0)], ids=["end", "size", "huge", "-", "--"]
)
def test_nothing_beyond_a_region_is_read(sidecar: RunningSidecar, size: int, offset: int) -> None:
    with shared("featurestore_test_bounds", 4096):
        register(sidecar, "bounds", "featurestore_test_bounds", 0, 64)
        asked = pb.ModelInferRequest(model_name="linear")
        in_region(asked.inputs.add(name="x", datatype="FP32", shape=[5, 3]), "bounds", size, offset)
        try:
            assert refused(sidecar, asked)[0] == "INVALID_ARGUMENT"
        finally:
            unregister(sidecar, "bounds")


def test_memory_cut_short_by_its_owner_is_refused(sidecar: RunningSidecar) -> None:
    with shared("featurestore_test_cut", 8192):
        register(sidecar, "cut", "featurestore_test_cut", 0, 8192)
        os.truncate("/dev/shm/featurestore_test_cut", 0)
        asked = pb.ModelInferRequest(model_name="linear")
        in_region(asked.inputs.add(name="x", datatype="FP32", shape=[5, 3]), "cut", 60, 4096)
        try:
            code, said = refused(sidecar, asked)
        finally:
            unregister(sidecar, "cut")
    assert (code, "cut short" in said) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize("key", ["../etc/passwd", "/a/b", "", ".", "not_there"])
def test_only_shared_memory_that_is_there_is_registered(sidecar: RunningSidecar, key: str) -> None:
    asked = pb.SystemSharedMemoryRegisterRequest(name="n", key=key, byte_size=1)

    assert refused(sidecar, asked, "SystemSharedMemoryRegister")[0] == "INVALID_ARGUMENT"


def test_a_region_larger_than_its_memory_is_not_registered(sidecar: RunningSidecar) -> None:
    with shared("featurestore_test_small", 4096):
        asked = pb.SystemSharedMemoryRegisterRequest(name="small", key="featurestore_test_small", byte_size=4097)

        assert refused(sidecar, asked, "SystemSharedMemoryRegister")[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:65536", "127.0.0.1:99999", ":8001", "127.0.0.1:http", ""])
def test_what_is_no_address_is_refused_before_models_are_loaded(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="give host:port"), running(tmp_path / "not there", address=address):
        pass


def test_a_socket_takes_the_place_of_no_file(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match="a file is there, and no socket"):
        RunningSidecar(SidecarOptions(models=tmp_path, address=f"unix://{taken}"))
    assert taken.read_text() == "mine"
