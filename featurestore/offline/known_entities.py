"""The entities known at an instant: the spine of a training set that is asked for `--as-of T`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arrow_types import arrow_type
from featurestore.compiler.latest_rows import LatestRows
from featurestore.errors import InputError
from featurestore.feature_view import FeatureView
from featurestore.offline.base import OfflineStore
from featurestore.offline.training_set import TrainingSetQuery
from featurestore.outputs import common_join_keys


def known_entities(store: OfflineStore, query: TrainingSetQuery, as_of_us: int) -> pa.Table:
    """The distinct join keys of all rows visible at `as_of_us`, sorted; from the views that have every join key.

    InputError when no view has them all (nothing says which entities belong together), or when the service takes
    request fields, which only a spine can carry.
    """
    if query.service.request_fields:
        names = ", ".join(field.name for field in query.service.request_fields)
        raise InputError(f"the service takes request fields ({names}), which only a spine can carry; pass --spine")
    keys = common_join_keys(query.views.values())
    complete = [view for view in query.views.values() if view.join_keys.keys() == keys.keys()]
    if not complete:
        raise InputError(
            f"no view has all join keys ({', '.join(keys)}), so nothing says which entities belong together; pass a "
            f"spine with these columns"
        )
    schema = pa.schema([(name, arrow_type(dtype)) for name, dtype in keys.items()])
    known = [store.entities(_known_rows(query, view, as_of_us)).select(list(keys)).cast(schema) for view in complete]
    distinct = pa.concat_tables(known).group_by(list(keys)).aggregate([])
    order = pc.sort_indices(distinct, sort_keys=[(name, "ascending") for name in keys])
    return distinct.take(order)


def _known_rows(query: TrainingSetQuery, view: FeatureView, as_of_us: int) -> LatestRows:
    """The rows of a view that are known at the instant; as served, those of the last publish acknowledged by then."""
    position, horizon_us, knowledge = query.positions[view.ref], as_of_us, query.knowledge
    if knowledge == "as_served":
        log, knowledge = query.publishes[view.ref], "created"
        last = int(log.last_by(np.array([as_of_us]))[0])
        position, horizon_us = (log.positions[last], log.horizons_us[last]) if last >= 0 else (0, as_of_us)
    return LatestRows(
        project=query.project,
        view=view,
        position_to=int(position),
        horizon_to_us=int(horizon_us),
        knowledge=knowledge,
    )
