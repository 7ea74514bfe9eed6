"""Requests that nobody should send: made from the descriptors, so a new method or field is covered the day it is added.

Four kinds: a sound request with one field changed, a sound request with its bytes scrambled, any message of the right
type, and any bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

DEPTH_MAX = 4
#: How often a repeated field may repeat, where it repeats often: past every limit of features and columns.
MANY = 3_000

_EDGES = [
    *(0, 1, -1, 2, 7, 8, 9, 127, 128, 2_001, 10_001),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**31), -(2**63)),
]
_TEXTS = [
    *("", "origin", "number", "id", "hour", "departures", "all_types"),
    *("weather", "delays@2", "everything", "time", "temp", "wind", "sky"),
    *("weather:temp", "weather@9:temp", "weather@1:temp", "delays:busy", ":", "@", "\u00fc\0"),
]


def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    edges = sorted({edge for edge in _EDGES if low <= edge <= high} | {low, high})
    return st.sampled_from(edges) | st.integers(low, high)


_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: _integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: _integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: _integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: _integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_STRING: st.sampled_from(_TEXTS) | st.text(max_size=8),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=24)
    | st.sampled_from([b"\xff" * 8, bytes(64), b"\x00\x00\x00\x80" * 3, b"\x00\x00\x00\x00\x01\x00\x00\x00"]),
    # proto3 enums are open: numbers that have no name arrive as they are.
    FieldDescriptor.TYPE_ENUM: st.integers(0, 13) | _integers(-(2**31), 2**31 - 1),
}


_INTEGERS = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_INT64)


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return any_message(field.message_type, depth + 1)
    return _SCALARS[field.type]


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """What a field may hold; for a repeated one a list."""
    one = _one(field, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


@st.composite
def any_message(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    """Any message of a type; nested ones get fewer fields the deeper they lie."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if (field.type != FieldDescriptor.TYPE_MESSAGE or depth < DEPTH_MAX) and draw(st.booleans()):
            _put(message, field, draw(_values(field, depth)))
    return message


@st.composite
def with_one_change(draw: st.DrawFn, sound: Sequence[Message]) -> Message:
    """A sound message in which one field, somewhere, holds something else, nothing, or more of the same."""
    message = type(sound[0])()
    message.CopyFrom(draw(st.sampled_from(sound)))
    place = draw(st.sampled_from(list(_places(message))))
    fields: list[Any] = list(place.DESCRIPTOR.fields)
    field: Any = draw(st.sampled_from([held for held, _ in place.ListFields()] * 3 + fields))
    value = getattr(place, field.name)
    match draw(st.sampled_from(["near", "near", "any", "none"])):
        case "near" if field.type == FieldDescriptor.TYPE_BYTES:
            _put(place, field, draw(_bent(value)))
        case "near" if field.enum_type is not None:
            _put(place, field, draw(st.sampled_from(list(field.enum_type.values))).number)
        case "near" if field.type in _INTEGERS:
            _put(place, field, max(0, value + draw(st.integers(-2, 2))))
        case "near" if field.is_repeated and value:
            _put(place, field, list(value) * draw(st.sampled_from([2, MANY])))
        case "none":
            place.ClearField(field.name)
        case _:
            _put(place, field, draw(_values(field, 0)))
    return message


def _places(message: Message) -> Iterator[Message]:
    """The message and all those inside it."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                yield from _places(part)


def _bent(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of the same length, or nearly so."""
    kept = len(data)
    return st.one_of(
        st.sampled_from([bytes(kept), b"\xff" * kept, b"\x7f" * kept, data[::-1], data[:-1], data + b"\0", data * 2]),
        st.binary(min_size=kept, max_size=kept),
    )


@st.composite
def scrambled(draw: st.DrawFn, sound: Sequence[Message]) -> bytes:
    """The bytes of a sound message, cut, with a piece put in, taken out, repeated or overwritten."""
    data = draw(st.sampled_from([message.SerializeToString() for message in sound]))
    start = draw(st.integers(0, len(data)))
    stop = draw(st.integers(start, len(data)))
    match draw(st.sampled_from(["cut", "remove", "repeat", "replace", "flip"])):
        case "cut":
            return data[:start]
        case "remove":
            return data[:start] + data[stop:]
        case "repeat":
            return data[:stop] + data[start:stop] * draw(st.integers(1, 9)) + data[stop:]
        case "replace":
            return data[:start] + draw(st.binary(max_size=9)) + data[stop:]
        case _:
            flipped = bytes(byte ^ (1 << draw(st.integers(0, 7))) for byte in data[start : start + 1])
            return data[:start] + flipped + data[start + 1 :]


def requests(descriptor: Descriptor, sound: Sequence[Message]) -> st.SearchStrategy[bytes]:
    """Bytes for a method whose request has this type."""
    anything = any_message(descriptor).map(lambda message: message.SerializeToString()) | st.binary(max_size=64)
    if not sound:
        return anything
    changed = with_one_change(sound).map(lambda message: message.SerializeToString())
    return st.one_of(changed, changed, scrambled(sound), anything)
