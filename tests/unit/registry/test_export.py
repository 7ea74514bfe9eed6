"""The snapshot that CI compares with: the same bytes for the same registry, and no damage goes unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InputError
from featurestore.fingerprint import definition_fingerprint
from featurestore.registry.export import read_snapshot, snapshot_text
from featurestore.registry.plan import plan_between
from featurestore.registry.registry import Snapshot
from tests.unit.registry.evolution_world import APPLIED, MODEL, WEATHER
from tests.unit.registry.test_evolution import SNAPSHOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A snapshot on disk."""
    path = tmp_path / "registry.json"
    path.write_text(snapshot_text(SNAPSHOT, "shop"), encoding="utf-8")
    return path


def test_a_snapshot_comes_back_and_plans_the_same(file: Path) -> None:
    read = read_snapshot(file, "shop")
    assert read.definitions == APPLIED
    assert read.row_schemas == SNAPSHOT.row_schemas
    assert read.signatures == SNAPSHOT.signatures
    assert plan_between(read, APPLIED).steps == ()
    narrowed = replace(APPLIED, views={**APPLIED.views, WEATHER.ref: replace(WEATHER, ttl=None)})
    assert plan_between(read, narrowed) == plan_between(SNAPSHOT, narrowed)


def test_a_snapshot_is_the_same_text_whatever_the_order_and_the_revision(file: Path) -> None:
    turned = replace(APPLIED, views={ref: APPLIED.views[ref] for ref in sorted(APPLIED.views)[::-1]})
    again: Snapshot = replace(SNAPSHOT, revision=7, definitions=turned)
    assert snapshot_text(again, "shop") == file.read_text(encoding="utf-8")
    assert file.read_text(encoding="utf-8").endswith("}\n")


def test_a_view_that_a_snapshot_does_not_show_empty_is_not_dropped_unasked(file: Path) -> None:
    left = replace(APPLIED, views={ref: view for ref, view in APPLIED.views.items() if ref != "delays@1"}, services={})
    refused = plan_between(read_snapshot(file, "shop"), left).refusals()
    assert [text.partition(";")[0] for text in refused] == [
        "feature view delays@1: no longer declared",
        "data delays@1: its history may hold rows",
    ]
    assert plan_between(SNAPSHOT, left).refusals(["--allow-data-loss", "--allow-in-use"]) == []


def test_a_service_that_moves_to_a_view_made_in_the_same_change_needs_a_flag(file: Path) -> None:
    """Nothing is published of it yet, whatever the store holds: `apply` would refuse, so CI says it now."""
    second = replace(WEATHER, version=2)
    moved = replace(MODEL, features=[second[["temp", "sky"]]])
    declared = replace(APPLIED, views={**APPLIED.views, second.ref: second}, services={MODEL.name: moved})
    plan = plan_between(read_snapshot(file, "shop"), declared)
    assert "weather@2 never published" in plan.refusals()[0]
    assert plan.refusals(["--allow-empty"]) == []


def edited(change: Callable[[Any], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return edit


def _view(document: Any) -> Any:
    return document["feature_views"]["weather@1"]


def _fields(document: Any) -> Any:
    return _view(document)["document"]["schema"]


def _swap(objects: Any) -> None:
    first, *_, last = objects
    objects[first], objects[last] = objects[last], objects[first]


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "cut short": (lambda text: text[:-40], "is damaged, it is not JSON"),
    "left with marks of a merge": (lambda text: text.replace("{", "<<<<<<< HEAD\n{", 1), "is damaged, it is not JSON"),
    "nested without end": (lambda text: "[" * 100_000, "is damaged, it is not JSON"),
    "something else": (lambda text: "[]", "is no snapshot of a registry"),
    "of another format": (
        edited(lambda document: document.update(format="featurestore-registry/2")),
        "is a snapshot of format 'featurestore-registry/2', this release reads 'featurestore-registry/1'",
    ),
    "of another project": (edited(lambda document: document.update(project="x")), "is a snapshot of project 'x'"),
    "widened by hand": (edited(lambda document: _fields(document)[0].update(le=99)), "feature_views: weather@1 is not"),
    "labelled by hand": (
        edited(lambda document: document["entities"]["airport"]["document"].update(owner="me")),
        "entities: airport is not as it was exported",
    ),
    "under another name": (
        edited(lambda document: document["entities"].update(other=document["entities"].pop("airport"))),
        "entities: other is not",
    ),
    "with rows of other fields": (
        edited(lambda document: _view(document)["row_schemas"]["1"].pop()),
        "feature_views: weather@1 is not",
    ),
    "without a pinned view": (
        edited(lambda document: document["feature_views"].pop("delays@1")),
        "feature_views: delays@1 (missing)",
    ),
    "under each other's names": (
        edited(lambda document: _swap(document["feature_views"])),
        "is not as it was exported",
    ),
    "with both sides of a merge": (
        lambda text: text.replace('"weather@1": {', '"weather@1": {},\n    "weather@1": {', 1),
        "is damaged, it is not JSON ('weather@1' stands there twice)",
    ),
    "without a part": (
        edited(lambda document: document.pop("entities")),
        "holds something that this release cannot read",
    ),
    "with an attribute of the future": (
        edited(lambda document: _fields(document)[0].update(color="red")),
        "a newer featurestore wrote it",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_snapshot_is_refused_with_the_reason(file: Path, damage: str) -> None:
    change, said = DAMAGE[damage]
    text = file.read_text(encoding="utf-8")
    file.write_text(change(text), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_snapshot(file, "shop")
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(file))


def test_a_snapshot_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_snapshot(tmp_path / "none.json", "shop")


def test_definitions_stand_beside_their_fingerprints(file: Path) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    assert _view(document)["definition"] == definition_fingerprint(WEATHER)
