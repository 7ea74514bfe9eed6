"""List what is applied (entities, sources, feature-views, feature-services), and what was done (runs, applies)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from featurestore.cli.arguments import count
from featurestore.cli.output import duration, instant, print_json, table
from featurestore.cli.repository import Context, Repository
from featurestore.feature_view import FeatureView
from featurestore.registry.intents import ApplyRecord, list_applies
from featurestore.registry.state import Run
from featurestore.source import FileSource, Source

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `list`."""
    parser.add_argument("kind", type=plural, choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "--limit", type=count, default=50, help="most runs or applies shown, newest first (default: 50)"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """0, also when there is nothing to list."""
    with context.repository() as repository:
        rows = KINDS[args.kind](repository, args.limit)
    if context.json:
        print_json(rows)
    elif rows:
        print(table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows]))
    else:
        print(f"no {args.kind}; {WAYS_OUT.get(args.kind, 'declare some and run `featurestore apply`')}")
    return 0


def _entities(repository: Repository, limit: int) -> list[Row]:
    return [
        {
            "entity": entity.name,
            "join_keys": [f"{name} {dtype}" for name, dtype in entity.join_keys.items()],
            "owner": entity.owner,
            "description": entity.description,
        }
        for entity in repository.registry.entities().values()
    ]


def _sources(repository: Repository, limit: int) -> list[Row]:
    """Equal sources of several views are one."""
    used: list[tuple[Source, list[str]]] = []
    for ref, view in repository.registry.views().items():
        for source, refs in used:
            if source == view.source:
                refs.append(ref)
                break
        else:
            used.append((view.source, [ref]))
    return [
        {
            "kind": "file" if isinstance(source, FileSource) else "sql",
            "reads": [source.path] if isinstance(source, FileSource) else list(source.inputs.values()),
            "timestamp_field": source.timestamp_field,
            "created_timestamp_column": source.created_timestamp_column,
            "timezone": source.timezone,
            "feature_views": refs,
        }
        for source, refs in used
    ]


def _views(repository: Repository, limit: int) -> list[Row]:
    return [_view(repository, ref, view) for ref, view in repository.registry.views().items()]


def _view(repository: Repository, ref: str, view: FeatureView) -> Row:
    published = repository.state.publish_state(ref)
    return {
        "feature_view": ref,
        "join_keys": list(view.join_keys),
        "fields": len(view.schema),
        "ttl": duration(view.ttl),
        "freshness": duration(view.freshness),
        "schema": repository.registry.schema_id(ref),
        "published_to": None if published is None else instant(published.published_to_us),
        "owner": view.owner,
    }


def _services(repository: Repository, limit: int) -> list[Row]:
    return [
        {
            "feature_service": service.name,
            "features": sum(len(chosen.fields) for chosen in service.selections),
            "request_fields": len(service.request_fields),
            "feature_views": list(dict.fromkeys(f"{chosen.view}@{chosen.version}" for chosen in service.selections)),
            "signature": repository.registry.signature(service.name)[:12],
            "owner": service.owner,
        }
        for service in repository.registry.services().values()
    ]


def _runs(repository: Repository, limit: int) -> list[Row]:
    return [run_row(run) for run in repository.state.runs(limit)]


def run_row(run: Run) -> Row:
    """A run as one row."""
    return {
        "run": run.id,
        "kind": run.kind,
        "state": run.state,
        "started_at": instant(run.started_at_us),
        "finished_at": instant(run.finished_at_us),
        "feature_views": list(run.views),
        "error": run.error.partition("\n")[0],
    }


def _applies(repository: Repository, limit: int) -> list[Row]:
    return [apply_row(record) for record in list_applies(repository.registry, limit)]


def apply_row(record: ApplyRecord) -> Row:
    """An apply as one row."""
    return {
        "apply": record.id,
        "state": record.state,
        "who": record.who,
        "at": instant(record.started_at_us),
        "revision": record.revision,
        "steps": len(record.steps),
        "definitions": record.fingerprint[:12],
    }


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


KINDS: dict[str, Callable[[Repository, int], list[Row]]] = {
    "entities": _entities,
    "sources": _sources,
    "feature-views": _views,
    "feature-services": _services,
    "runs": _runs,
    "applies": _applies,
}
_PLURALS = {"entity": "entities", "apply": "applies"}


def plural(kind: str) -> str:
    """`feature-views` for `feature-view`, and so on; both are understood."""
    return _PLURALS.get(kind, kind if kind in KINDS or f"{kind}s" not in KINDS else f"{kind}s")


#: What fills a kind that is empty, where it is not an apply of more definitions.
WAYS_OUT = {"runs": "jobs appear here once they ran", "applies": "run `featurestore apply`"}
