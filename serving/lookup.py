"""Batched lookup: keys in, columns and verdicts out. Knows no gRPC and no registry.

A constant number of calls per view and column, whatever the number of rows: keys are encoded once for all views that
share them, equal keys are fetched once, and the order of the request is restored on the packed rows, before decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.arrow_types import arrow_type
from featurestore.clock import Clock, timedelta_us, to_us
from featurestore.dtypes import Bool, Bytes, Date, DType, Int32, Int64, String
from featurestore.errors import InputError, ServingError
from featurestore.online.base import OnlineStore
from featurestore.online.keys import encode_keys
from featurestore.online.row_codec import DecodedRows
from featurestore.status import StaleReason, Status, row_statuses, stale_reasons
from serving.inputs import common_length, key_columns, request_columns
from serving.observing import Stage, mark
from serving.plan import ServicePlan, ViewPlan
from serving.response import OnlineResponse, ViewVerdicts
from serving.watermarks import Watermarks


class OnlineLookup:
    """Answers requests for one service from the online store. Holds no state of its own."""

    def __init__(self, plan: ServicePlan, store: OnlineStore, clock: Clock, watermarks: Watermarks) -> None:
        self.plan = plan
        self._store, self._clock, self._watermarks = store, clock, watermarks

    def lookup(
        self,
        keys: Mapping[str, pa.Array],
        request: Mapping[str, pa.Array] | None = None,
        max_age: timedelta | None = None,
    ) -> OnlineResponse:
        """The features of the entities in `keys`, with `request` columns appended; InputError names what is wrong.

        Rows older than `max_age` are STALE. With `on_stale="fail"` any STALE row makes this a ServingError.
        """
        plan = self.plan
        if max_age is not None and max_age <= timedelta(0):
            raise InputError(f"max_age is {max_age}; give a duration above zero, or none")
        by_name = key_columns(keys, plan.join_keys, plan.owner)
        extra = request_columns(request or {}, plan.request_fields, plan.owner)
        rows = common_length(by_name | extra, "join keys and request fields")
        mark(Stage.PARSE)
        response = self._answer(rows, by_name, extra, max_age)
        if response.degraded_rows and plan.service.on_stale == "fail":
            raise ServingError(_stale_message(response))
        return response

    def self_test(self) -> OnlineResponse:
        """Answer for a made-up entity, and decode one stored row of each view; raises what would break requests."""
        keys = {name: probe(dtype) for name, dtype in self.plan.join_keys.items()}
        request = {name: pa.nulls(1, arrow_type(field.dtype)) for name, field in self.plan.request_fields.items()}
        for view in self.plan.views:
            for _, stored in islice(self._store.scan(view.ref, 1), 1):
                view.decoder.decode(stored)
        return self._answer(1, keys, request, None)

    def _answer(
        self, rows: int, keys: Mapping[str, pa.Array], request: Mapping[str, pa.Array], max_age: timedelta | None
    ) -> OnlineResponse:
        now_us = to_us(self._clock.now())
        max_age_us = None if max_age is None else timedelta_us(max_age)
        distinct: dict[tuple[str, ...], DistinctKeys] = {}
        columns: list[Sequence[pa.Array]] = []
        verdicts = []
        for view in self.plan.views:
            if view.join_keys not in distinct:
                distinct[view.join_keys] = DistinctKeys.of(keys, view)
            asked = distinct[view.join_keys]
            stored = asked.in_order(self._store.read(view.ref, asked.keys))
            mark(Stage.FETCH)
            decoded = view.decoder.decode(stored)
            verdict = self._verdict(view, decoded, now_us, max_age_us)
            verdicts.append(verdict)
            columns.append(self._shown(view, stored, decoded, verdict))
            mark(Stage.DECODE)
        return OnlineResponse(
            plan=self.plan,
            keys=keys,
            columns=tuple(
                columns[place[0]][place[1]] if place else request[output.name]
                for output, place in zip(self.plan.outputs, self.plan.places, strict=True)
            ),
            views=tuple(verdicts),
            rows=rows,
            served_at_us=now_us,
            degraded_rows=_degraded_rows(verdicts),
        )

    def _verdict(self, view: ViewPlan, decoded: DecodedRows, now_us: int, max_age_us: int | None) -> ViewVerdicts:
        event_us = decoded.order.event_us
        nothing = all_null(decoded.columns, decoded.found)
        statuses = row_statuses(decoded.found, event_us, now_us, nothing, ttl_us=view.ttl_us)
        reasons = stale_reasons(
            statuses,
            event_us,
            now_us,
            max_age_us=max_age_us,
            freshness_us=view.freshness_us,
            watermark_us=None if view.freshness_us is None else self._watermarks.watermark_us(view.ref),
        )
        statuses[reasons != StaleReason.NONE] = Status.STALE
        return ViewVerdicts(ref=view.ref, statuses=statuses, reasons=reasons, event_us=event_us)

    def _shown(
        self, view: ViewPlan, stored: pa.BinaryArray, decoded: DecodedRows, verdict: ViewVerdicts
    ) -> Sequence[pa.Array]:
        """The columns that the client sees: no values of EXPIRED rows, nor of STALE ones where the service says so."""
        hidden = verdict.statuses == Status.EXPIRED
        if self.plan.service.on_stale == "null":
            hidden |= verdict.statuses == Status.STALE
        if not hidden.any():
            return decoded.columns
        # Hiding whole packed rows and decoding again costs the same for 5 and for 500 columns, and works for any type.
        return view.decoder.decode(pc.if_else(pa.array(hidden), pa.scalar(None, pa.binary()), stored)).columns


@dataclass(frozen=True, slots=True)
class DistinctKeys:
    """The encoded keys of a request without repetitions, and the way back to the order of the request."""

    keys: pa.BinaryArray
    indices: pa.Array | None

    @classmethod
    def of(cls, keys: Mapping[str, pa.Array], view: ViewPlan) -> DistinctKeys:
        """Encode the key columns of one view."""
        encoded = encode_keys([keys[name] for name in view.join_keys], view.key_types, view.join_keys)
        if len(encoded) <= 1:
            return cls(encoded, None)
        dictionary = encoded.dictionary_encode()
        if len(dictionary.dictionary) == len(encoded):
            return cls(encoded, None)
        return cls(dictionary.dictionary, dictionary.indices)

    def in_order(self, rows: pa.BinaryArray) -> pa.BinaryArray:
        """What belongs to each row of the request, given what belongs to each of `keys`; null for a null key."""
        return rows if self.indices is None else rows.take(self.indices)


def all_null(columns: Sequence[pa.Array], found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which found rows hold no value at all; looks at no more columns than it must."""
    open_rows = found.copy()
    for column in columns:
        if not open_rows.any():
            break
        open_rows &= False if column.null_count == 0 else column.is_null().to_numpy(zero_copy_only=False)
    return open_rows


def probe(dtype: DType) -> pa.Array:
    """One made-up key of a type."""
    return pa.array([_PROBES[dtype]], arrow_type(dtype))


_PROBES: dict[DType, object] = {Bool: False, Int32: 0, Int64: 0, String: "self-test", Bytes: b"self-test", Date: 0}


def _degraded_rows(verdicts: Sequence[ViewVerdicts]) -> int:
    stale = [verdict.statuses == Status.STALE for verdict in verdicts]
    return int(np.count_nonzero(np.logical_or.reduce(stale))) if stale else 0


def _stale_message(response: OnlineResponse) -> str:
    counts = {view.ref: int(np.count_nonzero(view.statuses == Status.STALE)) for view in response.views}
    listed = ", ".join(f"{ref} ({count} rows)" for ref, count in counts.items() if count)
    return (
        f"{response.plan.owner} refuses stale rows, and {listed} are older than promised or asked; "
        "publish newer data, ask with a larger max_age, or declare on_stale='serve'"
    )
