"""Training sets of a repository: what is asked for, pinned to the history there is now, and the answer to a spine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

from featurestore.compiler.point_in_time_join import KNOWLEDGE
from featurestore.errors import InputError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.offline.manifest import make_manifest
from featurestore.offline.noted import note_training_set
from featurestore.offline.served import PublishLog
from featurestore.offline.spine import Spine
from featurestore.offline.training_set import TrainingSet, TrainingSetQuery, build_table
from featurestore.outputs import pinned_views, service_of
from featurestore.repository import Repository


def training_query(
    repository: Repository,
    service: str | None,
    features: Sequence[str] | None,
    *,
    knowledge: str = "created",
    full_feature_names: bool = False,
    with_status: bool = False,
) -> TrainingSetQuery:
    """The query of a service, or of features as view:field, over history as far as it goes now."""
    if knowledge not in KNOWLEDGE:
        raise InputError(f"knowledge is {knowledge!r}; it is one of: {', '.join(KNOWLEDGE)}")
    repository.finish_interrupted_apply()
    views = repository.registry.views()
    chosen = _service(repository, service, features, views)
    pinned = pinned_views(chosen, views)
    repository.drain(pinned.values())
    # Logs first: what they say was published is then within the positions.
    served = pinned if knowledge == "as_served" else ()
    publishes = {ref: PublishLog.of_records(repository.state.publish_log(ref)) for ref in served}
    with repository.offline.open(write=False):
        positions = {ref: repository.offline.position(ref) for ref in pinned}
    return TrainingSetQuery(
        project=repository.registry.project,
        service=chosen,
        views=pinned,
        positions=positions,
        knowledge=knowledge,
        full_feature_names=full_feature_names,
        with_status=with_status,
        publishes=publishes,
    )


def training_set(
    repository: Repository, query: TrainingSetQuery, spine: Spine, as_of: datetime | None = None
) -> TrainingSet:
    """The answer to a spine, `as_of` being the one instant at which all of it asks, if there is one."""
    store = repository.offline
    with store.open(write=False):
        table, outputs = build_table(store, query, spine)
    describe = partial(
        make_manifest,
        query,
        spine,
        table,
        outputs,
        store.engine,
        made_at=repository.clock.now().isoformat(),
        as_of=None if as_of is None else as_of.isoformat(),
    )
    written = partial(note_training_set, repository.state)
    return TrainingSet(table=table, outputs=outputs, query=query, spine=spine, describe=describe, on_written=written)


def _service(
    repository: Repository, service: str | None, features: Sequence[str] | None, views: Mapping[str, FeatureView]
) -> FeatureService:
    if (service is None) == (features is None):
        raise InputError("name a feature service, or features as view:field; one of the two")
    if features is not None:
        return service_of(features, views)
    assert service is not None
    return repository.registry.service(service)
