"""Requests and replies of the Open Inference Protocol as tensors and back; all checks of what comes from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from featurestore.errors import InputError, suggest
from serving.inference._pb.inference import open_inference_pb2 as pb
from serving.inference.loaded_version import LoadedVersion
from serving.inference.shared_memory import Regions
from serving.inference.tensors import CONTENTS, DTYPES, Tensor, TensorSpec, datatype_of, from_raw, to_raw

AnyMessage = TypeVar("AnyMessage", bound=Message)

REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"


def parsed(kind: type[AnyMessage], message: bytes) -> AnyMessage:
    """The message that the bytes are; InputError when they are not."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InputError(f"the request is not a {kind.DESCRIPTOR.name}: {error}") from error


# ---------------------------------------------------------------- requests


def read_inputs(asked: pb.ModelInferRequest, version: LoadedVersion, regions: Regions) -> tuple[dict[str, Tensor], int]:
    """The inputs by name, in the request's order, and how many rows they have (1 where a run takes one request)."""
    raw = iter(asked.raw_input_contents)
    given: dict[str, Tensor] = {}
    for tensor in asked.inputs:
        spec = version.inputs.get(tensor.name)
        if spec is None:
            raise InputError(
                f"model {version.name!r} takes no input {tensor.name!r}{suggest(tensor.name, list(version.inputs))}"
            )
        if tensor.name in given:
            raise InputError(f"input {tensor.name!r} is given twice; give each input once")
        shape = tuple(tensor.shape)
        spec.require(tensor.datatype, shape)
        given[tensor.name] = _elements(tensor, spec, shape, raw, asked, regions)
    if len(given) < len(version.inputs):
        missing = [name for name in version.inputs if name not in given]
        raise InputError(
            f"model {version.name!r} needs input {', '.join(map(repr, missing))}; it takes: {', '.join(version.inputs)}"
        )
    if next(raw, None) is not None:
        raise InputError(
            f"raw_input_contents has {len(asked.raw_input_contents)} items, more than the inputs that need one; "
            "send one for each input that is not in shared memory"
        )
    return given, _rows(given, version)


def _elements(
    tensor: pb.ModelInferRequest.InferInputTensor,
    spec: TensorSpec,
    shape: Sequence[int],
    raw: object,
    asked: pb.ModelInferRequest,
    regions: Regions,
) -> Tensor:
    what = f"input {tensor.name!r}"
    if REGION in tensor.parameters:
        place = tensor.parameters
        region = regions.get(place[REGION].string_param)
        # A copy: its owner may change it, or cut it short, while the model runs.
        data = bytes(region.view(_number(place, SIZE), _number(place, OFFSET), what))
        return from_raw(data, spec.datatype, shape, what)
    if not asked.raw_input_contents:
        return _typed(tensor, spec, shape, what)
    data = next(raw, None)  # type: ignore[call-overload]  # an iterator of bytes
    if data is None:
        raise InputError(f"{what} has no item in raw_input_contents; send one for each input, in their order")
    if tensor.HasField("contents"):
        raise InputError(f"{what} has both contents and raw_input_contents; send one of them")
    return from_raw(data, spec.datatype, shape, what)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec, shape: Sequence[int], what: str) -> Tensor:
    if spec.datatype not in CONTENTS:
        raise InputError(f"{what} is {spec.datatype}, which only travels in raw_input_contents; send it there")
    values = getattr(tensor.contents, CONTENTS[spec.datatype])
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if len(values) != count:
        raise InputError(
            f"{what} has {len(values)} elements in {CONTENTS[spec.datatype]}, shape {list(shape)} has {count}; "
            "send them all, in the field of their type, or use raw_input_contents"
        )
    if spec.datatype == "BYTES":
        elements = np.empty(count, object)
        elements[:] = list(values)
        return elements.reshape(shape)
    try:
        return np.array(values, DTYPES[spec.datatype]).reshape(shape)
    except OverflowError as error:
        raise InputError(f"{what} has elements that {spec.datatype} cannot hold: {error}") from error


def _rows(given: Mapping[str, Tensor], version: LoadedVersion) -> int:
    if not version.together:
        return 1
    rows = {name: len(tensor) for name, tensor in given.items()}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(f"the inputs differ in rows ({listed}); give each of them one row per row")
    return next(iter(rows.values()))


def _number(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    if name not in parameters:
        return 0
    parameter = parameters[name]
    return parameter.int64_param or parameter.uint64_param


# ---------------------------------------------------------------- replies


def require_outputs(asked: pb.ModelInferRequest, version: LoadedVersion, regions: Regions) -> None:
    """InputError, or NotFoundError, when an output that is asked for cannot be given; before the model runs."""
    known = [spec.name for spec in version.model.outputs]
    for wanted in asked.outputs:
        if wanted.name not in known:
            raise InputError(f"model {version.name!r} gives no output {wanted.name!r}{suggest(wanted.name, known)}")
        if REGION in wanted.parameters:
            regions.get(wanted.parameters[REGION].string_param)


def reply_message(
    asked: pb.ModelInferRequest, version: LoadedVersion, outputs: Mapping[str, Tensor], regions: Regions
) -> bytes:
    """A ModelInferResponse with the outputs asked for, or all."""
    reply = pb.ModelInferResponse(model_name=version.name, model_version=version.label, id=asked.id)
    if not asked.outputs:
        for name, tensor in outputs.items():
            reply.outputs.add(name=name, datatype=datatype_of(tensor.dtype), shape=tensor.shape)
            reply.raw_output_contents.append(to_raw(tensor))
        return reply.SerializeToString()
    for wanted in asked.outputs:
        tensor = outputs[wanted.name]
        added = reply.outputs.add(name=wanted.name, datatype=datatype_of(tensor.dtype), shape=tensor.shape)
        data = to_raw(tensor)
        if REGION in wanted.parameters:
            _put(wanted, data, added, regions)
            data = b""
        reply.raw_output_contents.append(data)
    return reply.SerializeToString()


def _put(
    wanted: pb.ModelInferRequest.InferRequestedOutputTensor,
    data: bytes,
    added: pb.ModelInferResponse.InferOutputTensor,
    regions: Regions,
) -> None:
    """Into the region that the output was asked for in."""
    what, place = f"output {wanted.name!r}", wanted.parameters
    room, offset = _number(place, SIZE), _number(place, OFFSET)
    if len(data) > room:
        raise InputError(f"{what} has {len(data)} bytes, its place in shared memory {room}; give it more")
    region = regions.get(place[REGION].string_param)
    region.view(len(data), offset, what)[:] = data
    added.parameters[REGION].string_param = region.name
    added.parameters[SIZE].int64_param = len(data)
    if offset:
        added.parameters[OFFSET].int64_param = offset
