"""Rows that clients push to the serving process: request in, answer out, whatever the protocol.

The rules are the library's (`featurestore.ingest.push`). A push waits for disks and stores, so it is never done on the
event loop; no push opens a DuckDB file.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.ingest.push import Pusher, PushResult
from serving.access.principal import Principal
from serving.wire import Limits, decode_push, encode_push


class PushDoor:
    """Takes pushes of many clients; safe for threads."""

    def __init__(self, pusher: Pusher, limits: Limits) -> None:
        self._pusher, self._limits = pusher, limits

    def view(self, name: str) -> FeatureView:
        """The view `name` (or `name@version`) as it is applied now; NotFoundError lists the views there are."""
        return self._pusher.registry.snapshot().view(name)

    def push(self, view: str, columns: Mapping[str, pa.Array]) -> PushResult:
        """Push columns, named as in the view's source; InputError when they are no table or too long a one."""
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"the columns to push have different lengths: {told}; give every row all of them")
        if max(lengths.values(), default=0) > self._limits.rows_max:
            raise InputError(
                f"{max(lengths.values())} rows are pushed, at most {self._limits.rows_max} fit one request; split them"
            )
        return self._pusher.push(view, pa.table(dict(columns)))

    def answer(self, message: bytes, principal: Principal) -> bytes:
        """A PushResponse to a PushRequest of this principal."""
        view, columns = decode_push(message, self._limits)
        principal.require_push(view)
        return encode_push(self.push(view, columns))
