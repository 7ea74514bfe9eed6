"""Join keys as bytes, and the bucket each belongs to: half of what online writers and readers must agree on.

Layout and test vectors stand in docs/online-format.md. Equal join keys have equal bytes and different ones
different bytes, whatever the values hold; bytes sort as the join keys do, in declared order (text after its length).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.dtypes import INTEGERS, Bool, Bytes, Date, DType, String
from featurestore.errors import InputError
from featurestore.online import packing

KEY_VERSION = 1
#: Longest encoded key: SQLite and Redis keep keys in memory, and a row of its own kind is found by it.
KEY_BYTES_MAX = 1024
BUCKETS = 4096

_TAG_BOOL, _TAG_INT, _TAG_DATE, _TAG_STRING, _TAG_BYTES = b"b", b"i", b"d", b"s", b"x"

#: For a second, independent hash of the same bytes.
SECOND_SEED = np.uint64(0xD6E8FEB86659FD93)
_HASH_SEED = np.uint64(0x9E3779B97F4A7C15)
_HASH_LENGTH = np.uint64(0xC2B2AE3D27D4EB4F)
_HASH_WORD = np.uint64(0xFF51AFD7ED558CCD)
_HASH_LAST = np.uint64(0xC4CEB9FE1A85EC53)
_HASH_HALF, _HASH_END, _BUCKET_SHIFT = np.uint64(32), np.uint64(29), np.uint64(52)
_ALL_BITS_INT = 2**64 - 1
_ALL_BITS = np.uint64(_ALL_BITS_INT)


def encode_keys(
    columns: Sequence[pa.Array | pa.ChunkedArray], dtypes: Sequence[DType], names: Sequence[str] = ()
) -> pa.BinaryArray:
    """The encoded key of each row, null where any join key is null.

    `columns` are the join keys in declared order, in canonical Arrow types (integers in any Arrow integer type);
    `names` serve error messages. InputError when a key is longer than `KEY_BYTES_MAX` or an integer beyond int64.
    """
    assert len(columns) == len(dtypes) > 0
    arrays = [packing.as_array(column) for column in columns]
    pieces = [
        piece
        for index, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True))
        for piece in _key_pieces(array, dtype, _name(names, index))
    ]
    rows = list(_merged(pieces))
    keys = packing.join(rows)
    if len(rows) > 1:  # texts among them
        _check_lengths(keys, arrays, names)
    if any(array.null_count for array in arrays):
        nulls = np.logical_or.reduce([packing.null_mask(array) for array in arrays])
        keys = pc.if_else(pa.array(nulls), pa.scalar(None, pa.binary()), keys)
    return keys


def bucket_of(keys: pa.BinaryArray) -> NDArray[np.uint16]:
    """The bucket of each encoded key, the top 12 bits of its hash; 0 where the key is null."""
    return bucket_of_hash(key_hash(keys))


def bucket_of_hash(hashes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """The bucket that keys of these hashes belong to; hashes in order give buckets in order."""
    return (hashes >> _BUCKET_SHIFT).astype(np.uint16)


def first_buckets(limit: np.uint64) -> range:
    """The buckets of all keys whose hash is less than `limit`."""
    return range(int((limit - np.uint64(1)) >> _BUCKET_SHIFT) + 1 if limit else 0)


def decode_key(key: bytes, join_keys: Mapping[str, DType]) -> dict[str, object]:
    """The join keys of one encoded key, for messages; {"key": hex} when it is no key of theirs."""
    values: list[object] = []
    at = 1
    for dtype in join_keys.values():
        read = _decoded_part(key, at, dtype)
        if read is None:
            return {"key": key.hex()}
        value, at = read
        values.append(value)
    whole = key[:1] == bytes([KEY_VERSION]) and at == len(key)
    return dict(zip(join_keys, values, strict=True)) if whole else {"key": key.hex()}


def _decoded_part(key: bytes, at: int, dtype: DType) -> tuple[object, int] | None:
    tag, at = key[at : at + 1], at + 1
    if dtype in INTEGERS and tag == _TAG_INT:
        return int.from_bytes(key[at : at + 8], "big") - (1 << 63), at + 8
    if dtype == Bool and tag == _TAG_BOOL:
        return key[at : at + 1] == b"\1", at + 1
    if dtype == Date and tag == _TAG_DATE:
        return date(1970, 1, 1) + timedelta(int.from_bytes(key[at : at + 4], "big") - (1 << 31)), at + 4
    if (dtype, tag) not in ((String, _TAG_STRING), (Bytes, _TAG_BYTES)):
        return None
    end = at + 4 + int.from_bytes(key[at : at + 4], "big")
    text = key[at + 4 : end]
    return (text.decode("utf-8", "replace") if dtype == String else text), end


def key_hash(keys: pa.BinaryArray, seed: np.uint64 = _HASH_SEED) -> NDArray[np.uint64]:
    """A stable 64-bit hash of each encoded key, 0 where the key is null.

    The hash takes the seed and the length, then each little-endian 8-byte word (the last one filled with
    zeros) by xor, multiply and shift, then a final mix. The number of Python calls grows with the
    longest key only.
    """
    matrix = packing.to_matrix_view(keys)
    state = _ragged_hashes(keys, seed) if matrix is None else _even_hashes(matrix, seed)
    hashes = (state ^ (state >> _HASH_END)) * _HASH_LAST
    if keys.null_count:
        hashes[packing.null_mask(keys)] = 0
    return hashes


#: Bytes of fixed width: a constant, or words of one row each, most significant byte first.
_Piece = bytes | NDArray[np.unsignedinteger]


def _key_pieces(column: pa.Array, dtype: DType, name: str) -> list[_Piece | pa.BinaryArray]:
    """Tag and payload of one join key; nulls as anything."""
    if dtype in INTEGERS:
        return [_TAG_INT, _sortable(_int64(column, name))]
    assert column.type == arrow_type(dtype), f"join key {name}: {column.type} is not {arrow_type(dtype)}"
    if dtype == Date:
        return [_TAG_DATE, _sortable(_filled(column.cast(pa.int32()), 0).to_numpy())]
    if dtype == Bool:
        return [_TAG_BOOL, _filled(column.cast(pa.uint8()), 0).to_numpy()]
    assert dtype in (String, Bytes)
    text = _filled(column.view(pa.binary()), b"")
    return [_TAG_STRING if dtype == String else _TAG_BYTES, np.diff(packing.byte_offsets(text)).astype(">u4"), text]


def _sortable(values: NDArray[np.signedinteger]) -> NDArray[np.unsignedinteger]:
    """Big-endian with the sign bit flipped, so that bytes sort as the numbers do."""
    word = f"u{values.dtype.itemsize}"
    biased: NDArray[np.unsignedinteger] = values.view(word) ^ _SIGN[word]
    return biased.astype(f">{word}")


_SIGN = {"u4": np.uint32(1 << 31), "u8": np.uint64(1 << 63)}


def _int64(column: pa.Array, name: str) -> NDArray[np.int64]:
    assert pa.types.is_integer(column.type), f"join key {name}: {column.type} is not an integer type"
    if column.type != pa.int64():
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"join key {name}: a value does not fit int64 ({error}); declare it as string") from error
    values: NDArray[np.int64] = _filled(column, 0).to_numpy()
    return values


def _filled(column: pa.Array, value: object) -> pa.Array:
    return column.fill_null(value) if column.null_count else column


def _merged(pieces: Sequence[_Piece | pa.BinaryArray]) -> Iterator[pa.BinaryArray]:
    """The version and the pieces as rows; those of fixed width that follow each other are made one."""
    waiting: list[_Piece] = [bytes([KEY_VERSION])]
    for piece in pieces:
        if isinstance(piece, (bytes, np.ndarray)):
            waiting.append(piece)
            continue
        yield packing.from_matrix(_side_by_side(waiting))
        yield piece
        waiting = []
    if waiting:
        yield packing.from_matrix(_side_by_side(waiting))


def _side_by_side(pieces: Sequence[_Piece]) -> NDArray[np.uint8]:
    """A line of bytes for each row. numpy writes fields of a record in one call each, whatever their alignment."""
    kind, constants = _record(tuple(piece if isinstance(piece, bytes) else piece.dtype for piece in pieces))
    words = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    records = np.empty(len(words[0]), dtype=kind)
    for name, constant in constants:
        records[name] = constant
    for number, piece in enumerate(words):
        records[f"w{number}"] = piece
    lines: NDArray[np.uint8] = records.view(np.uint8).reshape(len(records), kind.itemsize)
    return lines


@lru_cache(maxsize=256)
def _record(pieces: tuple[bytes | np.dtype[Any], ...]) -> tuple[np.dtype[Any], list[tuple[str, int]]]:
    """The record type of pieces, and the bytes that are the same in every row."""
    fields: list[tuple[str, Any]] = []
    constants: list[tuple[str, int]] = []
    words = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            constants.append((f"c{len(constants)}", piece[0]))
            fields.append((constants[-1][0], np.uint8))
        else:
            fields.append((f"w{words}", piece))
            words += 1
    return np.dtype(fields), constants


def _check_lengths(keys: pa.BinaryArray, arrays: Sequence[pa.Array], names: Sequence[str]) -> None:
    lengths = np.diff(packing.byte_offsets(keys))
    if int(lengths.max(initial=0)) <= KEY_BYTES_MAX:
        return
    row = int(lengths.argmax())
    sizes = [len(value.as_buffer()) if isinstance(value, (pa.StringScalar, pa.BinaryScalar)) and value.is_valid else 8
             for value in (array[row] for array in arrays)]  # fmt: skip
    longest = int(np.argmax(sizes))
    raise InputError(
        f"join key {_name(names, longest)}: the value in row {row} has {sizes[longest]} bytes; the encoded key takes "
        f"{lengths[row]}, at most {KEY_BYTES_MAX} fit; use a shorter key, or a digest of it"
    )


def _name(names: Sequence[str], index: int) -> str:
    return repr(names[index]) if names else f"number {index + 1}"


def _even_hashes(keys: NDArray[np.uint8], seed: np.uint64) -> NDArray[np.uint64]:
    """The hash state of keys that all have one length, one a line."""
    count, length = keys.shape
    padded = np.zeros((count, -(-length // 8) * 8), dtype=np.uint8)
    padded[:, :length] = keys
    state = np.empty(count, dtype=np.uint64)
    state.fill(np.uint64(length * int(_HASH_LENGTH) & _ALL_BITS_INT) ^ seed)
    spare = np.empty_like(state)
    for words in padded.view("<u8").T:  # `_hash_step`, in place
        state ^= words
        state *= _HASH_WORD
        np.right_shift(state, _HASH_HALF, out=spare)
        state ^= spare
    return state


def _ragged_hashes(keys: pa.BinaryArray, seed: np.uint64) -> NDArray[np.uint64]:
    """The hash state of keys of different lengths: each step goes on with those that are long enough."""
    offsets = packing.byte_offsets(keys)
    begin, end = int(offsets[0]), int(offsets[-1])
    data = np.zeros(end - begin + 8, dtype=np.uint8)
    data[: end - begin] = packing.data_bytes(keys)[begin:end]
    # The little-endian word at every byte of the data.
    words: NDArray[np.uint64] = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    starts, lengths = offsets[:-1].astype(np.int64) - begin, np.diff(offsets).astype(np.int64)
    state = _hash_start(lengths.astype(np.uint64), seed)
    for first in range(0, int(lengths.max()), 8):
        longer = np.flatnonzero(lengths > first)
        foreign_bits = (8 * np.clip(first + 8 - lengths[longer], 0, 7)).astype(np.uint64)
        own_words = words[starts[longer] + first] & (_ALL_BITS >> foreign_bits)
        state[longer] = _hash_step(state[longer], own_words)
    return state


def _hash_start(lengths: NDArray[np.uint64], seed: np.uint64) -> NDArray[np.uint64]:
    return lengths * _HASH_LENGTH ^ seed


def _hash_step(state: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = state ^ words
    mixed *= _HASH_WORD
    mixed ^= mixed >> _HASH_HALF
    return mixed
