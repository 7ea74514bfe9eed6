"""Show all that is known of one applied object (contract, consumers, what happened to it), one run or one apply."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from featurestore.cli.consumers import consumers_of_service, consumers_of_views
from featurestore.cli.described import described
from featurestore.cli.list_objects import apply_row, plural, run_row
from featurestore.cli.output import instant, print_json
from featurestore.cli.repository import Context, Repository
from featurestore.cli.view_record import freshness_record, last_breaches, last_publishes, quarantined
from featurestore.errors import InputError, NotFoundError
from featurestore.feature_service import FeatureService
from featurestore.fingerprint import signature_document
from featurestore.outputs import pinned_views
from featurestore.registry.document import entity_document, service_document, source_document, view_document
from featurestore.registry.intents import read_apply
from featurestore.source import FileSource, Source

Document = dict[str, Any]

#: A longer number is no apply, and SQLite could not look for it.
APPLY_DIGITS_MAX = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `describe`."""
    parser.add_argument("kind", type=singular, choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a name; of a feature view also name@version, of a source a file it reads or a view it feeds",
    )


#: What a load counts, as a run records it.
LOADED = ("read", "added", "corrections", "duplicates", "ambiguous", "quarantined", "warned", "outside")


def run(args: argparse.Namespace, context: Context) -> int:
    """0; NotFoundError for an unknown name."""
    with context.repository() as repository:
        document = KINDS[args.kind](repository, args.name)
    if context.json:
        print_json(document)
    else:
        print(described({name: value for name, value in document.items() if name != "features"}))  # columns say more
    return 0


def _entity(repository: Repository, name: str) -> Document:
    entities = repository.registry.entities()
    if name not in entities:
        raise NotFoundError("entity", name, entities)
    used = [
        ref for ref, view in repository.registry.views().items() if any(entity.name == name for entity in view.entities)
    ]
    return entity_document(entities[name]) | {
        "feature_views": used,
        "definition": repository.registry.fingerprint("entity", name),
        "consumers": consumers_of_views(repository, used),
    }


def _source(repository: Repository, name: str) -> Document:
    """By a path it reads, or by a view that it feeds: sources have no names of their own."""
    views = repository.registry.views()
    matching = [view for ref, view in views.items() if name in (ref, view.name, *_paths(view.source))]
    if not matching:
        known = {path for view in views.values() for path in _paths(view.source)}
        raise NotFoundError("source", name, known | set(views))
    source = matching[0].source
    if any(view.source != source for view in matching):
        refs = ", ".join(view.ref for view in matching)
        raise InputError(f"several sources read {name!r}; name one of the feature views they feed: {refs}")
    fed = [ref for ref, view in views.items() if view.source == source]
    return source_document(source) | {"feature_views": fed, "consumers": consumers_of_views(repository, fed)}


def _paths(source: Source) -> list[str]:
    return [source.path] if isinstance(source, FileSource) else list(source.inputs.values())


def _view(repository: Repository, name: str) -> Document:
    registry = repository.registry
    view = registry.view(name)
    document = view_document(view)
    document["entities"] = [entity["name"] for entity in document["entities"]]
    document["join_keys"] = [{"name": key, "dtype": str(dtype)} for key, dtype in view.join_keys.items()]
    document["on_violation"] = view.on_violation
    services = [
        service.name
        for service in registry.services().values()
        if any(f"{chosen.view}@{chosen.version}" == view.ref for chosen in service.selections)
    ]
    document |= {
        "feature_services": services,
        "schema_id": registry.schema_id(view.ref),
        "schema_ids": sorted(registry.row_schemas(view.ref)),
        "definition": registry.fingerprint("view", view.ref),
        "consumers": consumers_of_views(repository, [view.ref]),
        "last_breaches": last_breaches(repository, view),
        "quarantined": quarantined(repository, view),
        "freshness_record": freshness_record(repository, view),
        "last_publishes": last_publishes(repository, view),
    }
    published = repository.state.publish_state(view.ref)
    if published is not None:
        document["published"] = {
            "position": published.position,
            "horizon": instant(published.published_to_us),
            "watermark": instant(published.watermark_us),
            "acknowledged_at": instant(published.acknowledged_at_us),
        }
    return document


def _service(repository: Repository, name: str) -> Document:
    registry = repository.registry
    service: FeatureService = registry.service(name)
    views = pinned_views(service, registry.views())
    return service_document(service) | {
        "on_stale": service.on_stale,
        "feature_views": list(views),
        "columns": signature_document(service, registry.views())["columns"],
        "definition": registry.fingerprint("service", name),
        "signature": registry.signature(name),
        "consumers": consumers_of_service(repository, name),
        "freshness_record": [{"view": ref} | freshness_record(repository, view) for ref, view in views.items()],
    }


def _run(repository: Repository, name: str) -> Document:
    found = repository.state.run(name)
    return run_row(found) | {
        "error": found.error,
        "views": [_run_view(ref, counts) for ref, counts in found.counts.items()],
    }


def _run_view(ref: str, counts: Document) -> Document:
    """What a run did with one view; None where it did not get so far."""
    loaded, published = counts.get("loaded") or {}, counts.get("published") or {}
    return {
        "view": ref,
        **{name: loaded.get(name) for name in LOADED},
        "breaches": loaded.get("breaches"),
        "entities": published.get("entities"),
        "rows_written": published.get("rows_written"),
        "repaired": published.get("repaired"),
        "position": published.get("position"),
        "as_of": instant(published.get("horizon_us")),
        "error": counts.get("error"),
    }


def _apply(repository: Repository, name: str) -> Document:
    if not name.isdecimal() or len(name) > APPLY_DIGITS_MAX:
        raise InputError(f"{name!r} is not the number of an apply; `featurestore list applies` shows them")
    record = read_apply(repository.registry, int(name))
    return apply_row(record) | {
        "finished_at": instant(record.finished_at_us),
        "definitions": record.fingerprint,
        "steps": list(record.steps),
    }


KINDS: dict[str, Callable[[Repository, str], Document]] = {
    "entity": _entity,
    "source": _source,
    "feature-view": _view,
    "feature-service": _service,
    "run": _run,
    "apply": _apply,
}


def singular(kind: str) -> str:
    """`feature-views`, as `list` calls them, for `feature-view`; both are understood."""
    return next((one for one in KINDS if plural(one) == kind), kind)
