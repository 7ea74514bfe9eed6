"""GetFreshness: the age of views against their promises, read from the state store when asked.

It reads a file, so it is never answered on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from featurestore.errors import InputError, NotFoundError
from featurestore.feature_view import FeatureView
from featurestore.freshness import PublishStates, Verdict, ViewFreshness, freshness_of
from featurestore.outputs import pinned_views
from featurestore_client._pb.featurestore.serving.v1 import serving_pb2 as pb
from serving.access.principal import Principal
from serving.catalog import Catalog

_VERDICTS: dict[Verdict, pb.FreshnessVerdict] = {
    "holds": pb.FRESHNESS_VERDICT_HOLDS,
    "broken": pb.FRESHNESS_VERDICT_BROKEN,
    "no promise": pb.FRESHNESS_VERDICT_NO_PROMISE,
    "never published": pb.FRESHNESS_VERDICT_NEVER_PUBLISHED,
}


def answer_freshness(
    message: bytes, principal: Principal, catalog: Catalog, states: PublishStates, now_us: int
) -> bytes:
    """A GetFreshnessResponse to a GetFreshnessRequest; NotFoundError for a service or view nobody knows.

    Who may read a service may ask for the freshness of its views; to ask for views takes a grant on each.
    """
    try:
        asked = pb.GetFreshnessRequest.FromString(message)
    except DecodeError as error:
        raise InputError(f"the request is not a GetFreshnessRequest: {error}") from error
    if asked.service:
        principal.require_read(asked.service)
    else:
        principal.require_views(asked.views or catalog.views)
    chosen = _chosen(asked, catalog)
    judged = freshness_of((chosen[ref] for ref in sorted(chosen)), states, now_us)
    return pb.GetFreshnessResponse(
        views=[_encoded(view) for view in judged],
        judged_at_us=now_us,
        broken=sum(view.broken for view in judged),
    ).SerializeToString()


def _chosen(asked: pb.GetFreshnessRequest, catalog: Catalog) -> Mapping[str, FeatureView]:
    if asked.service and asked.views:
        raise InputError("the request names a service and views; set one of them, or none for all views")
    if asked.service:
        if asked.service not in catalog.services:
            raise NotFoundError("feature service", asked.service, catalog.services)
        return pinned_views(catalog.services[asked.service], catalog.views)
    if not asked.views:
        return catalog.views
    named = set(asked.views)
    unknown = sorted(named - {name for ref, view in catalog.views.items() for name in (ref, view.name)})
    if unknown:
        raise NotFoundError("feature view", unknown[0], catalog.views)
    return {ref: view for ref, view in catalog.views.items() if named & {ref, view.name}}


def _encoded(view: ViewFreshness) -> pb.ViewFreshness:
    return pb.ViewFreshness(
        view=view.view,
        verdict=_VERDICTS[view.verdict],
        broken=view.broken,
        freshness_us=view.promise_us,
        age_us=view.age_us,
        watermark_us=view.watermark_us,
        horizon_us=view.horizon_us,
        position=view.position,
    )
