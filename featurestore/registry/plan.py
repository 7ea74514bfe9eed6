"""The steps from what is applied to what is declared. `plan` prints them, `apply` executes the same ones.

Stores are touched first (histories made or widened: harmless when repeated), then all definitions change in one
transaction, then data of removed views is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from featurestore.errors import EvolutionError
from featurestore.feature_service import FeatureService
from featurestore.feature_view import FeatureView
from featurestore.fingerprint import definition_fingerprint, service_signature
from featurestore.registry.definitions import Definitions
from featurestore.registry.diff import (
    Change,
    Impact,
    entity_changes,
    service_changes,
    view_changes,
    worst,
)
from featurestore.registry.matrix_notes import matrix_notes
from featurestore.registry.registry import Registry, Snapshot
from featurestore.registry.state import StateStore

ALLOW_EMPTY, ALLOW_DATA_LOSS = "--allow-empty", "--allow-data-loss"

Kind = Literal["entity", "view", "service"]
_KIND_WORDS: dict[Kind, str] = {"entity": "entity", "view": "feature view", "service": "feature service"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing apply does to `name`; `needs` names the flag without which it refuses."""

    verb: ClassVar[str]
    name: str
    reason: str
    impact: Impact = "compatible"
    way_out: str = ""
    needs: str = ""

    @property
    def subject(self) -> str:
        """What `name` is, in words."""
        return "history"

    def __str__(self) -> str:
        return f"{self.verb} {self.subject} {self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class CreateHistory(Step):
    """Make the history table of a new view."""

    verb = "create"


@dataclass(frozen=True, kw_only=True)
class AddColumns(Step):
    """Widen a history by new fields."""

    verb = "widen"
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DropData(Step):
    """Drop online rows, history and job state of a removed view."""

    verb = "drop"

    @property
    def subject(self) -> str:
        """Both stores and the job state."""
        return "data"


@dataclass(frozen=True, kw_only=True)
class _DefinitionStep(Step):
    kind: Kind

    @property
    def subject(self) -> str:
        """What `name` is, in words."""
        return _KIND_WORDS[self.kind]


@dataclass(frozen=True, kw_only=True)
class Create(_DefinitionStep):
    """A definition becomes known."""

    verb = "create"


@dataclass(frozen=True, kw_only=True)
class Update(_DefinitionStep):
    """A known definition changes, in `changes`."""

    verb = "update"
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Remove(_DefinitionStep):
    """A definition is no longer declared."""

    verb = "remove"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What apply would do, in order, and `notes` on what to know before (nothing to do, not even with no steps)."""

    steps: tuple[Step, ...]
    target: Definitions
    notes: tuple[str, ...] = ()

    def refusals(self, *, allow_empty: bool = False, allow_data_loss: bool = False) -> list[str]:
        """Why apply refuses, one text for each step it would not do."""
        allowed = {ALLOW_EMPTY: allow_empty, ALLOW_DATA_LOSS: allow_data_loss}
        return [text for step in self.steps for text in _refusals(step, allowed)]

    def check(self, *, allow_empty: bool = False, allow_data_loss: bool = False) -> None:
        """EvolutionError that lists every refused step."""
        if refused := self.refusals(allow_empty=allow_empty, allow_data_loss=allow_data_loss):
            raise EvolutionError("\n  ".join(["apply refuses, and changed nothing:", *refused]))


def _refusals(step: Step, allowed: Mapping[str, bool]) -> Iterator[str]:
    if isinstance(step, Update) and step.impact == "breaking":
        breaks = "; ".join(change.what for change in step.changes if change.impact == "breaking")
        yield f"{step.subject} {step.name}: {breaks}; {step.way_out}"
    if step.needs and not allowed[step.needs]:
        yield f"{step.subject} {step.name}: {step.reason}; {step.way_out}"


def make_plan(registry: Registry, state: StateStore, declared: Definitions, history_rows: Callable[[str], int]) -> Plan:
    """The steps to `declared`. `history_rows` counts rows of a history; it is asked for removed views only."""
    snapshot = registry.snapshot()

    def published(ref: str) -> bool:
        return state.publish_state(ref) is not None

    steps = [
        *_history_steps(snapshot, declared),
        *_entity_steps(snapshot, declared),
        *_view_steps(snapshot, declared),
        *_service_steps(snapshot, declared, published),
        *_removals(snapshot, declared, history_rows),
    ]
    return Plan(steps=tuple(steps), target=declared, notes=matrix_notes(declared))


def make_teardown(registry: Registry, history_rows: Callable[[str], int]) -> Plan:
    """The steps that remove everything."""
    nothing = Definitions()
    steps = [
        replace(step, way_out="", needs="")
        for step in _removals(registry.snapshot(), nothing, history_rows, "teardown")
    ]
    return Plan(steps=tuple(steps), target=nothing)


# ------------------------------------------------------------------ creations and updates


def _history_steps(snapshot: Snapshot, declared: Definitions) -> Iterator[Step]:
    for ref, view in sorted(declared.views.items()):
        applied = snapshot.definitions.views.get(ref)
        if applied is None:
            yield CreateHistory(name=ref, reason=f"{len(view.join_keys)} join keys, {len(view.schema)} fields")
        elif added := tuple(name for name in view.fields if name not in applied.fields):
            yield AddColumns(
                name=ref, columns=added, reason=f"columns {', '.join(added)}; earlier rows stay as they are"
            )


def _entity_steps(snapshot: Snapshot, declared: Definitions) -> Iterator[Step]:
    applied = snapshot.definitions
    for name, entity in sorted(declared.entities.items()):
        if name not in applied.entities:
            keys = ", ".join(f"{key} {dtype}" for key, dtype in entity.join_keys.items())
            yield Create(kind="entity", name=name, reason=f"join keys {keys}")
        elif changes := entity_changes(applied.entities[name], entity):
            kept = [ref for ref in declared.views if ref in applied.views]
            in_use = any(used.name == name for ref in kept for used in declared.views[ref].entities)
            if not in_use:  # views that keep it break with it; new ones take it as it is
                changes = [Change(what=change.what) for change in changes]
            yield _update("entity", name, changes, "declare an entity of another name beside it, for new view versions")


def _view_steps(snapshot: Snapshot, declared: Definitions) -> Iterator[Step]:
    applied = snapshot.definitions.views
    for ref, view in sorted(declared.views.items()):
        if ref not in applied:
            ttl = "never expires" if view.ttl is None else f"ttl {view.ttl}"
            yield Create(kind="view", name=ref, reason=f"{', '.join(view.fields)}; {ttl}")
        elif changes := view_changes(applied[ref], view, snapshot.row_schemas.get(ref, {})):
            yield _update("view", ref, changes, _next_version(view, {**applied, **declared.views}))


def _next_version(view: FeatureView, views: Mapping[str, FeatureView]) -> str:
    highest = max(other.version for other in views.values() if other.name == view.name)
    return f"keep version={view.version} as it was and declare the change as version={highest + 1} beside it"


def _service_steps(snapshot: Snapshot, declared: Definitions, published: Callable[[str], bool]) -> Iterator[Step]:
    applied = snapshot.definitions.services
    for name, service in sorted(declared.services.items()):
        if name not in applied:
            count = sum(len(chosen.fields) for chosen in service.selections)
            yield Create(kind="service", name=name, reason=f"{count} features of {', '.join(_refs(service))}")
            continue
        signatures = (snapshot.signatures[name], service_signature(service, declared.views))
        changes = service_changes(applied[name], service, declared.views, signatures)
        if not changes and definition_fingerprint(applied[name]) == definition_fingerprint(service):
            continue
        empty = [ref for ref in _refs(service) if ref not in _refs(applied[name]) and not published(ref)]
        yield _service_update(name, changes or [Change(what="definition")], empty)


def _service_update(name: str, changes: list[Change], empty: list[str]) -> Update:
    way_out = "models and clients that bind to it must bind anew"
    if empty:
        changes = [*changes, Change(what=f"{', '.join(empty)} never published, so its features would be NOT_FOUND")]
        views = " ".join(empty)
        way_out = (
            f"apply the view alone, run `featurestore materialize-incremental --views {views}`, then move the "
            f"service; or pass {ALLOW_EMPTY}"
        )
    step = _update("service", name, changes, way_out)
    return replace(step, needs=ALLOW_EMPTY) if empty else step


def _update(kind: Kind, name: str, changes: list[Change], way_out: str) -> Update:
    impact = worst([change.impact for change in changes])
    return Update(
        kind=kind,
        name=name,
        changes=tuple(changes),
        reason="; ".join(change.what for change in changes),
        impact=impact,
        way_out="" if impact == "compatible" and kind != "service" else way_out,
    )


def _refs(service: FeatureService) -> list[str]:
    return list(dict.fromkeys(f"{chosen.view}@{chosen.version}" for chosen in service.selections))


# ------------------------------------------------------------------ removals


def _removals(
    snapshot: Snapshot, declared: Definitions, history_rows: Callable[[str], int], why: str = "no longer declared"
) -> Iterator[Step]:
    applied = snapshot.definitions
    for name in sorted(set(applied.services) - set(declared.services)):
        way_out = "clients that still ask for it get an error"
        yield Remove(kind="service", name=name, reason=why, impact="signature", way_out=way_out)
    gone = sorted(set(applied.views) - set(declared.views))
    for ref in gone:
        yield Remove(kind="view", name=ref, reason=why)
    for name in sorted(set(applied.entities) - set(declared.entities)):
        yield Remove(kind="entity", name=name, reason=why)
    for ref in gone:
        rows = history_rows(ref)
        yield DropData(
            name=ref,
            reason=f"its history holds {rows} rows" if rows else "its history holds no rows",
            impact="breaking" if rows else "compatible",
            way_out=f"keep the view declared, or pass {ALLOW_DATA_LOSS}" if rows else "",
            needs=ALLOW_DATA_LOSS if rows else "",
        )


def step_document(step: Step, target: Definitions) -> dict[str, Any]:
    """A step as plain JSON, with both fingerprints of what it leads to."""
    document: dict[str, Any] = {
        "action": step.verb,
        "subject": step.subject,
        "name": step.name,
        "impact": step.impact,
        "reason": step.reason,
    }
    document |= {key: value for key, value in (("way_out", step.way_out), ("needs", step.needs)) if value}
    if isinstance(step, (Create, Update)):
        by_kind: dict[Kind, Mapping[str, Any]] = {
            "entity": target.entities,
            "view": target.views,
            "service": target.services,
        }
        document["definition"] = definition_fingerprint(by_kind[step.kind][step.name])
        if step.kind == "service":
            document["signature"] = service_signature(target.services[step.name], target.views)
    return document
