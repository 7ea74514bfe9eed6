"""Tensors as the protocol has them: its types as numpy's, shapes that may vary, bytes to arrays and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InputError

Tensor = NDArray[Any]

#: BYTES are arrays of Python objects: text from models, bytes on the wire.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
#: The field of InferTensorContents for each type that has one.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
#: A dimension whose size each request chooses.
ANY_SIZE = -1
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TensorSpec:
    """What a model says of one of its inputs or outputs; sizes that vary are ANY_SIZE."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Its type in numpy."""
        return DTYPES[self.datatype]

    @cached_property
    def has_rows(self) -> bool:
        """Whether its first dimension varies."""
        return bool(self.shape) and self.shape[0] == ANY_SIZE

    def require(self, datatype: str, shape: Sequence[int]) -> None:
        """InputError unless such a tensor may be handed in."""
        if datatype != self.datatype:
            raise InputError(f"input {self.name!r} is {datatype}, the model takes {self.datatype}; send that type")
        if len(shape) != len(self.shape) or any(
            given < 0 or wanted not in (ANY_SIZE, given) for given, wanted in zip(shape, self.shape, strict=True)
        ):
            raise InputError(
                f"input {self.name!r} has shape {list(shape)}, the model takes {list(self.shape)} "
                "(-1: any size); send that shape"
            )


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy type; numpy text is BYTES."""
    return _DATATYPES.get(dtype, "BYTES")


def from_raw(data: bytes | memoryview, datatype: str, shape: Sequence[int], what: str) -> Tensor:
    """The tensor that bytes hold, over these bytes where its type allows; InputError naming `what`."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return _from_lengths(data, count, what).reshape(shape)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{what} has {len(data)} bytes, {datatype} of shape {list(shape)} has {count * dtype.itemsize}; "
            "send the elements row by row, without padding"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def to_raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor, row-major and little-endian."""
    if tensor.dtype.kind not in "OUS":
        return tensor.tobytes()
    values = [value.encode() if isinstance(value, str) else bytes(value) for value in tensor.ravel().tolist()]
    return b"".join(piece for value in values for piece in (_LENGTH.pack(len(value)), value))


def _from_lengths(data: bytes | memoryview, count: int, what: str) -> Tensor:
    values: list[bytes] = []
    place, end = 0, len(data)
    while place < end and len(values) < count:
        if place + 4 > end:
            break
        (length,) = _LENGTH.unpack_from(data, place)
        place += 4 + length
        if place > end:
            break
        values.append(bytes(data[place - length : place]))
    if place != end or len(values) != count:
        raise InputError(f"{what} does not hold {count} values of BYTES; send each after its length as uint32")
    tensor = np.empty(count, object)
    tensor[:] = values
    return tensor
