"""Batched lookup: keys in, columns and verdicts out. Knows no gRPC and no registry.

A constant number of calls per view and column, whatever the number of rows, and of requests that are answered together:
keys are encoded once for all views that share them, equal keys are fetched once, and the order of the requests is
restored on the packed rows, before decoding.
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
from featurestore.clock import Clock, duration_text, timedelta_us, to_us
from featurestore.dtypes import Bool, Bytes, Date, DType, Int32, Int64, String
from featurestore.errors import InputError, ServingError
from featurestore.online.base import OnlineStore
from featurestore.online.decoded_columns import DecodedColumns
from featurestore.online.keys import bucket_of, bucket_of_hash, encode_keys, key_hash
from featurestore.online.reading import Standing, Wanted
from featurestore.online.row_codec import DecodedRows
from featurestore.status import StaleReason, Status, row_statuses, stale_reasons
from serving.inputs import common_length, key_columns, request_columns
from serving.plan import ServicePlan, ViewPlan
from serving.response import OnlineResponse, ViewVerdicts
from serving.watermarks import Watermarks

# As plain numbers: a member of an enumeration costs a microsecond each time it is compared with an array.
_EXPIRED, _STALE, _NO_REASON = int(Status.EXPIRED), int(Status.STALE), int(StaleReason.NONE)
#: A Standing for each of the rows fetched for each view.
Standings = Sequence[NDArray[np.uint8]]


@dataclass(slots=True, eq=False)
class Request:
    """A request that can be answered: its columns are canonical, and of `rows` rows."""

    rows: int
    keys: Mapping[str, pa.Array]
    request: Mapping[str, pa.Array]
    max_age_us: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests with one `max_age`, the rows of one after those of the other.

    `wanted` has an item for each view of the plan, whose rows `judged` is to be given.
    """

    requests: Sequence[Request]
    distinct: Sequence[DistinctKeys]
    wanted: Sequence[Wanted]


class ServiceLookup:
    """Requests for one service, before and after their rows are fetched. Pure: fetching is for others to do."""

    def __init__(self, plan: ServicePlan, clock: Clock, watermarks: Watermarks) -> None:
        self.plan = plan
        self._clock, self._watermarks = clock, watermarks

    def check(
        self,
        keys: Mapping[str, pa.Array],
        request: Mapping[str, pa.Array] | None = None,
        max_age: timedelta | None = None,
    ) -> Request:
        """A request for the entities in `keys`; InputError names what is wrong with it.

        `request` columns are appended to the features. Rows older than `max_age` are STALE.
        """
        plan = self.plan
        if max_age is not None and max_age <= timedelta(0):
            raise InputError(f"max_age is {duration_text(max_age)}; give a duration above zero, or none")
        by_name = key_columns(keys, plan.join_keys, plan.owner)
        extra = request_columns(request or {}, plan.request_rules, plan.owner)
        rows = common_length(by_name | extra, "join keys and request fields")
        return Request(rows, by_name, extra, None if max_age is None else timedelta_us(max_age))

    def probe(self) -> Request:
        """A request for a made-up entity, whose request fields are null whatever their contracts say."""
        keys = {name: probe(dtype) for name, dtype in self.plan.join_keys.items()}
        request = {name: pa.nulls(1, arrow_type(field.dtype)) for name, field in self.plan.request_fields.items()}
        return Request(1, keys, request, None)

    def ask(self, requests: Sequence[Request]) -> Asked:
        """What to fetch for requests that have one `max_age`."""
        keys = requests[0].keys if len(requests) == 1 else _one_after_another([each.keys for each in requests])
        by_names: dict[tuple[str, ...], DistinctKeys] = {}
        distinct: list[DistinctKeys] = []
        for view in self.plan.views:
            if view.join_keys not in by_names:
                by_names[view.join_keys] = DistinctKeys.of(keys, view)
            distinct.append(by_names[view.join_keys])
        wanted = [Wanted(view.ref, own.keys, own.buckets) for view, own in zip(self.plan.views, distinct, strict=True)]
        return Asked(requests, distinct, wanted)

    def judged(
        self, asked: Asked, rows: Sequence[pa.BinaryArray], standings: Standings | None = None
    ) -> list[OnlineResponse]:
        """The answer to each request, from what is stored for each of `asked.wanted`; judged by the time of this call.

        Whatever the service says about STALE rows: `require_fresh` is for who sends an answer to ask.
        """
        now_us, max_age_us = to_us(self._clock.now()), asked.requests[0].max_age_us
        columns: list[DecodedColumns] = []
        verdicts = []
        for place, (view, distinct, found) in enumerate(zip(self.plan.views, asked.distinct, rows, strict=True)):
            stored = distinct.in_order(found)
            decoded = view.decoder.decode(stored)
            verdict = self._verdict(view, decoded, now_us, max_age_us)
            if standings is not None:
                _lower(verdict, distinct.in_order_of(standings[place]))
            verdicts.append(verdict)
            columns.append(self._shown(view, stored, decoded, verdict))
        return self._cut(asked.requests, columns, verdicts, now_us)

    def require_fresh(self, response: OnlineResponse) -> None:
        """ServingError when rows are STALE and the service says `on_stale="fail"`."""
        if response.degraded_rows and self.plan.service.on_stale == "fail":
            raise ServingError(_stale_message(response))

    def _cut(
        self,
        requests: Sequence[Request],
        columns: Sequence[DecodedColumns],
        verdicts: Sequence[ViewVerdicts],
        now_us: int,
    ) -> list[OnlineResponse]:
        """The rows of each request as its answer."""
        responses, first = [], 0
        all_fresh = not any([np.count_nonzero(verdict.reasons) for verdict in verdicts])
        for each in requests:
            whole = len(requests) == 1
            last = first + each.rows
            views = tuple(verdicts) if whole else tuple(verdict.part(first, last) for verdict in verdicts)
            response = OnlineResponse(
                plan=self.plan,
                keys=each.keys,
                request=each.request,
                decoded=columns if whole else [decoded.part(first, each.rows) for decoded in columns],
                views=views,
                rows=each.rows,
                served_at_us=now_us,
                degraded_rows=0 if all_fresh else _degraded_rows(views),
            )
            responses.append(response)
            first = last
        return responses

    def _verdict(self, view: ViewPlan, decoded: DecodedRows, now_us: int, max_age_us: int | None) -> ViewVerdicts:
        event_us = decoded.order.event_us
        statuses = row_statuses(decoded.found, event_us, now_us, decoded.blank, ttl_us=view.ttl_us)
        reasons = stale_reasons(
            statuses,
            event_us,
            now_us,
            max_age_us=max_age_us,
            freshness_us=view.freshness_us,
            watermark_us=None if view.freshness_us is None else self._watermarks.watermark_us(view.ref),
        )
        if np.count_nonzero(reasons):
            statuses[reasons != _NO_REASON] = _STALE
        return ViewVerdicts(ref=view.ref, statuses=statuses, reasons=reasons, event_us=event_us, stored=decoded.order)

    def _shown(
        self, view: ViewPlan, stored: pa.BinaryArray, decoded: DecodedRows, verdict: ViewVerdicts
    ) -> DecodedColumns:
        """The columns that the client sees: no values of EXPIRED rows, nor of STALE ones where the service says so."""
        stale_too = self.plan.service.on_stale == "null"
        if view.ttl_us is None and not stale_too:
            return decoded.decoded
        hidden = verdict.statuses == _EXPIRED
        if stale_too:
            hidden |= verdict.statuses == _STALE
        if not np.count_nonzero(hidden):
            return decoded.decoded
        # Hiding whole packed rows and decoding again costs the same for 5 and for 500 columns, and works for any type.
        return view.decoder.decode(pc.if_else(pa.array(hidden), pa.scalar(None, pa.binary()), stored)).decoded


class OnlineLookup(ServiceLookup):
    """Answers requests for one service from an online store, on the spot: for commands and scripts."""

    def __init__(self, plan: ServicePlan, store: OnlineStore, clock: Clock, watermarks: Watermarks) -> None:
        super().__init__(plan, clock, watermarks)
        self._store = store

    def lookup(
        self,
        keys: Mapping[str, pa.Array],
        request: Mapping[str, pa.Array] | None = None,
        max_age: timedelta | None = None,
    ) -> OnlineResponse:
        """The features of the entities in `keys`, as `check` and `judged` say; ServingError as `require_fresh` does."""
        response = self._answer(self.check(keys, request, max_age))
        self.require_fresh(response)
        return response

    def self_test(self) -> OnlineResponse:
        """Answer for a made-up entity, and decode one stored row of each view; raises what would break requests."""
        for view in self.plan.views:
            for _, stored in islice(self._store.scan(view.ref, 1), 1):
                view.decoder.decode(stored)
        return self._answer(self.probe())

    def _answer(self, request: Request) -> OnlineResponse:
        asked = self.ask([request])
        (response,) = self.judged(asked, [self._store.read(wanted.ref, wanted.keys) for wanted in asked.wanted])
        return response


@dataclass(frozen=True, slots=True)
class DistinctKeys:
    """The encoded keys of a request without repetitions and nulls, their buckets, and the way back to its order."""

    keys: pa.BinaryArray
    buckets: NDArray[np.uint16]
    indices: pa.Array | None

    @classmethod
    def of(cls, keys: Mapping[str, pa.Array], view: ViewPlan) -> DistinctKeys:
        """Encode the key columns of one view."""
        if len(view.join_keys) == 1 and pa.types.is_primitive(keys[view.join_keys[0]].type):
            return cls._of_numbers(keys[view.join_keys[0]], view)
        encoded = encode_keys([keys[name] for name in view.join_keys], view.key_types, view.join_keys)
        hashes = key_hash(encoded)
        # Different hashes have different keys; equal ones are looked at in full.
        if encoded.null_count == 0 and _distinct(hashes):
            return cls(encoded, bucket_of_hash(hashes), None)
        dictionary = encoded.dictionary_encode()
        if encoded.null_count:
            return cls(dictionary.dictionary, bucket_of(dictionary.dictionary), dictionary.indices)
        buckets = np.empty(len(dictionary.dictionary), dtype=np.uint16)
        buckets[dictionary.indices.to_numpy()] = bucket_of_hash(hashes)
        return cls(dictionary.dictionary, buckets, dictionary.indices)

    @classmethod
    def _of_numbers(cls, column: pa.Array, view: ViewPlan) -> DistinctKeys:
        """The same for one column of numbers: they are told apart before they are encoded."""
        indices = None
        if column.null_count or not _distinct(column.to_numpy(zero_copy_only=False)):
            dictionary = column.dictionary_encode()
            column, indices = dictionary.dictionary, dictionary.indices
        encoded = encode_keys([column], view.key_types, view.join_keys)
        return cls(encoded, bucket_of(encoded), indices)

    def in_order(self, rows: pa.BinaryArray) -> pa.BinaryArray:
        """What belongs to each row of the request, given what belongs to each of `keys`; null for a null key."""
        return rows if self.indices is None else rows.take(self.indices)

    def in_order_of(self, standings: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same for standings; a null key is confirmed to have no row."""
        if self.indices is None:
            return standings
        taken: NDArray[np.uint8] = pa.array(standings).take(self.indices).fill_null(Standing.CONFIRMED).to_numpy()
        return taken


def _distinct(values: NDArray[np.generic]) -> bool:
    """Whether none of them occurs twice."""
    if len(values) < 2:
        return True
    ordered = np.sort(values)
    return np.count_nonzero(ordered[1:] == ordered[:-1]) == 0


def _one_after_another(columns: Sequence[Mapping[str, pa.Array]]) -> dict[str, pa.Array]:
    return {name: pa.concat_arrays([each[name] for each in columns]) for name in columns[0]}


def _lower(verdict: ViewVerdicts, standings: NDArray[np.uint8]) -> None:
    """Say of rows that the store did not confirm that they are STALE, or an ERROR where nothing is known of them."""
    live = (verdict.statuses == Status.PRESENT) | (verdict.statuses == Status.NULL)
    unconfirmed = live & (standings == Standing.UNCONFIRMED)
    verdict.reasons[unconfirmed] = StaleReason.UNCONFIRMED
    verdict.statuses[unconfirmed] = Status.STALE
    verdict.reasons[standings == Standing.UNKNOWN] = StaleReason.NONE
    verdict.statuses[standings == Standing.UNKNOWN] = Status.ERROR


def probe(dtype: DType) -> pa.Array:
    """One made-up key of a type."""
    return pa.array([_PROBES[dtype]], arrow_type(dtype))


_PROBES: dict[DType, object] = {Bool: False, Int32: 0, Int64: 0, String: "self-test", Bytes: b"self-test", Date: 0}


def _degraded_rows(verdicts: Sequence[ViewVerdicts]) -> int:
    stale = [verdict.statuses == _STALE for verdict in verdicts if verdict.reasons.any()]
    return int(np.count_nonzero(np.logical_or.reduce(stale))) if stale else 0


def _stale_message(response: OnlineResponse) -> str:
    counts = {view.ref: int(np.count_nonzero(view.statuses == _STALE)) for view in response.views}
    listed = ", ".join(f"{ref} ({count} rows)" for ref, count in counts.items() if count)
    return (
        f"{response.plan.owner} refuses stale rows, and {listed} are older than promised or asked; "
        "publish newer data, ask with a larger max_age, or declare on_stale='serve'"
    )
