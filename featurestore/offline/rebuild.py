"""Builds a training set again from its manifest: recorded definitions, recorded positions, the same spine."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from featurestore.clock import to_us
from featurestore.dtypes import DType
from featurestore.errors import InputError
from featurestore.offline.base import OfflineStore
from featurestore.offline.export import MANIFEST_SUFFIX
from featurestore.offline.known_entities import known_entities
from featurestore.offline.manifest import make_manifest, recorded_query
from featurestore.offline.sources import read_table
from featurestore.offline.spine import Spine, read_spine, spine_as_of
from featurestore.offline.training_set import TrainingSetQuery, build_table
from featurestore.outputs import common_join_keys


def rebuild(store: OfflineStore, recorded: Mapping[str, Any], path: Path, spine: object = None) -> dict[str, Any]:
    """The manifest of the training set as it comes out now.

    The spine is `spine` where given; else the recorded file, or for `--as-of` the entities known then; else, for a
    spine that was handed over in memory, the spine's columns of the training set beside the manifest.
    """
    query = recorded_query(recorded)
    with store.open(write=False):
        asked = _spine(store, query, recorded, path, spine)
        table, outputs = build_table(store, query, asked)
    rebuilt = make_manifest(
        query, asked, table, outputs, store.engine, made_at=recorded["made_at"], as_of=recorded["spine"]["as_of"]
    )
    if spine is None and recorded["spine"]["path"] is None and recorded["spine"]["as_of"] is None:
        # The spine was taken from the set itself, where request fields stand in their declared types: only the
        # digest of the whole set can tell a change.
        rebuilt["spine"]["digest"] = recorded["spine"]["digest"]
    return rebuilt


def _spine(
    store: OfflineStore, query: TrainingSetQuery, recorded: Mapping[str, Any], path: Path, given: object
) -> Spine:
    keys = common_join_keys(query.views.values())
    request = {field.name: field.dtype for field in query.service.request_fields}
    if given is not None:
        return read_spine(given, keys, request)
    described = recorded["spine"]
    if described["as_of"] is not None:
        instant_us = to_us(datetime.fromisoformat(described["as_of"]))
        return spine_as_of(known_entities(store, query, instant_us), instant_us)
    if described["path"] is not None:
        return _recorded_spine(path.parent / described["path"], keys, request)
    beside = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX))
    if not beside.exists():
        raise InputError(f"the spine was handed over in memory and {beside} is not there to take it from; pass --spine")
    if beside.suffix == ".csv":
        raise InputError(f"the spine was handed over in memory, and {beside} does not keep its types; pass --spine")
    return read_spine(read_table(beside).select(described["columns"]), keys, request)


def _recorded_spine(path: Path, keys: Mapping[str, DType], request: Mapping[str, DType]) -> Spine:
    if not path.exists():
        raise InputError(f"the recorded spine {path} is not there any more; pass --spine with the file it was")
    return read_spine(path, keys, request)
