"""The steps from what is applied to what is declared. `plan` prints them, `apply` executes the same ones.

Stores are touched first (histories made or widened: harmless when repeated), then all definitions change in one
transaction, then data of removed views is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar, Literal

from featurestore.clock import duration_text
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
from featurestore.registry.readers import RECENT, recent_readers
from featurestore.registry.registry import Registry, Snapshot
from featurestore.registry.state import StateStore
from featurestore.registry.tier_notes import tier_notes

ALLOW_EMPTY, ALLOW_DATA_LOSS, ALLOW_IN_USE = "--allow-empty", "--allow-data-loss", "--allow-in-use"

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

    def refusals(self, allowed: Collection[str] = ()) -> list[str]:
        """Why apply refuses, one text for each step it would not do; `allowed` holds flags that were passed."""
        return [text for step in self.steps for text in _refusals(step, allowed)]

    def check(self, allowed: Collection[str] = ()) -> None:
        """EvolutionError that lists every refused step."""
        if refused := self.refusals(allowed):
            raise EvolutionError("\n  ".join(["apply refuses, and changed nothing:", *refused]))


def _refusals(step: Step, allowed: Collection[str]) -> Iterator[str]:
    if isinstance(step, Update) and step.impact == "breaking":
        breaks = "; ".join(change.what for change in step.changes if change.impact == "breaking")
        yield f"{step.subject} {step.name}: {breaks}; {step.way_out}"
    if step.needs and step.needs not in allowed:
        yield f"{step.subject} {step.name}: {step.reason}; {step.way_out}"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a plan asks beside the definitions. By default every view holds data, and nobody was seen reading."""

    #: Rows of a view's history, asked for removed views only; None: not known.
    history_rows: Callable[[str], int | None] = lambda ref: None
    #: Whether the view was ever published.
    published: Callable[[str], bool] = lambda ref: True
    #: Who reads the view beside the applied services, in words.
    readers: Callable[[str], Sequence[str]] = lambda ref: ()


def make_plan(
    registry: Registry,
    state: StateStore,
    declared: Definitions,
    history_rows: Callable[[str], int],
    recent: timedelta = RECENT,
) -> Plan:
    """The steps from what is applied to `declared`; readers seen within `recent` hold their views."""

    def readers(ref: str) -> list[str]:
        seen = recent_readers(state, recent)
        return [str(reader) for reader in seen if ref in reader.views]

    def published(ref: str) -> bool:
        return state.publish_state(ref) is not None

    around = Surroundings(history_rows=history_rows, published=published, readers=readers)
    return plan_between(registry.snapshot(), declared, around)


def plan_between(snapshot: Snapshot, declared: Definitions, around: Surroundings | None = None) -> Plan:
    """The steps from `snapshot` to `declared`. `around` None: no access, so what is applied is taken for published."""
    around = around or Surroundings(published=lambda ref: ref in snapshot.definitions.views)
    steps = [
        *_history_steps(snapshot, declared),
        *_entity_steps(snapshot, declared),
        *_view_steps(snapshot, declared),
        *_service_steps(snapshot, declared, around.published),
        *_removals(snapshot, declared, around),
    ]
    return Plan(steps=tuple(steps), target=declared, notes=(*matrix_notes(declared), *tier_notes(declared)))


def make_teardown(registry: Registry, history_rows: Callable[[str], int]) -> Plan:
    """The steps that remove everything."""
    nothing = Definitions()
    around = Surroundings(history_rows=history_rows)
    removals = _removals(registry.snapshot(), nothing, around, "teardown")
    steps = [replace(step, way_out="", needs="", reason=step.reason.partition("; ")[0]) for step in removals]
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
            ttl = "never expires" if view.ttl is None else f"ttl {duration_text(view.ttl)}"
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
        if not changes:
            continue
        empty = [ref for ref in _refs(service) if ref not in _refs(applied[name]) and not published(ref)]
        yield _service_update(name, changes, empty)


def _service_update(name: str, changes: list[Change], empty: list[str]) -> Update:
    way_out = "models and clients that bind to it must bind anew"
    if any(change.impact == "breaking" for change in changes):
        way_out = "declare a feature service of another name beside it, and move its callers there"
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
    snapshot: Snapshot, declared: Definitions, around: Surroundings, why: str = "no longer declared"
) -> Iterator[Step]:
    applied = snapshot.definitions
    for name in sorted(set(applied.services) - set(declared.services)):
        way_out = "clients that still ask for it get an error"
        yield Remove(kind="service", name=name, reason=why, impact="signature", way_out=way_out)
    rows = {ref: around.history_rows(ref) for ref in sorted(set(applied.views) - set(declared.views))}
    for ref, count in rows.items():
        users = _users(snapshot, ref, around) if count != 0 or around.published(ref) else []
        yield _view_removal(ref, why, users)
    for name in sorted(set(applied.entities) - set(declared.entities)):
        yield Remove(kind="entity", name=name, reason=why)
    for ref, count in rows.items():
        yield _data_drop(ref, count)


def _users(snapshot: Snapshot, ref: str, around: Surroundings) -> list[str]:
    """Who would miss the view. An applied service counts even if it goes too: running servers still answer by it."""
    services = sorted(name for name, service in snapshot.definitions.services.items() if ref in _refs(service))
    return [*(f"feature service {name}" for name in services), *around.readers(ref)]


def _view_removal(ref: str, why: str, users: Sequence[str]) -> Remove:
    if not users:
        return Remove(kind="view", name=ref, reason=why)
    return Remove(
        kind="view",
        name=ref,
        reason=f"{why}; in use by {_listed(users)}",
        impact="breaking",
        way_out=f"keep it declared until applied services and readers have left it, or pass {ALLOW_IN_USE}",
        needs=ALLOW_IN_USE,
    )


def _listed(users: Sequence[str], shown: int = 5) -> str:
    return ", ".join(users[:shown]) + (f" and {len(users) - shown} more" if len(users) > shown else "")


def _data_drop(ref: str, rows: int | None) -> DropData:
    if rows == 0:
        return DropData(name=ref, reason="its history holds no rows")
    return DropData(
        name=ref,
        reason="its history may hold rows" if rows is None else f"its history holds {rows} rows",
        impact="breaking",
        way_out=f"keep the view declared, or pass {ALLOW_DATA_LOSS}",
        needs=ALLOW_DATA_LOSS,
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
