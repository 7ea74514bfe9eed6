"""plan, apply, list, describe, teardown and config, as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.registry.apply import applying
from featurestore.registry.readers import record_reader
from featurestore.registry.registry import open_state


def test_plan_prints_the_steps_and_apply_does_the_same_ones(run, repository: Path) -> None:
    planned = run("-C", repository, "plan", "--json").json
    applied = run("-C", repository, "apply", "--json").json
    assert planned["steps"] == applied["steps"]
    assert [(step["action"], step["subject"], step["name"]) for step in applied["steps"]] == [
        ("create", "history", "weather@1"),
        ("create", "entity", "airport"),
        ("create", "feature view", "weather@1"),
        ("create", "feature service", "late"),
    ]
    assert applied["revision"] == 1
    assert run("-C", repository, "plan").out.startswith("nothing to do: what is declared is applied")


def test_plan_changes_nothing(run, repository: Path) -> None:
    run("-C", repository, "plan")
    assert run("-C", repository, "list", "feature-views", "--json").json == []
    assert not (repository / "data" / "offline.duckdb").exists()


def test_plan_unapplied_tells_by_its_exit_code_whether_anything_would_change(run, repository: Path, declare) -> None:
    assert run("-C", repository, "plan", "--unapplied").code == 1
    run("-C", repository, "apply")
    assert run("-C", repository, "plan", "--unapplied").code == 0
    declare("hours=3", "hours=4")
    assert run("-C", repository, "plan").code == 0
    assert run("-C", repository, "plan", "--unapplied").code == 1


def test_plan_check_fails_on_what_apply_would_refuse_and_on_nothing_else(run, repository: Path, declare) -> None:
    assert run("-C", repository, "plan", "--check").code == 0
    run("-C", repository, "apply")
    declare("schema=[", 'schema=[Field(name="wind", dtype=Int32), ')
    assert run("-C", repository, "plan", "--check").code == 0
    declare("hours=3", "hours=4")
    done = run("-C", repository, "plan", "--check")
    assert done.code == 1
    assert "declare the change as version=2 beside it" in done.out


def test_plan_names_the_class_of_each_change_and_the_way_out_of_breaking_ones(run, repository: Path, declare) -> None:
    run("-C", repository, "apply")
    declare("hours=3", "hours=4")
    shown = run("-C", repository, "plan").out
    assert "breaking    update feature view weather@1: ttl 3h -> 4h" in shown
    assert "signature   update feature service late" in shown
    assert "declare the change as version=2 beside it" in shown
    assert "apply would refuse 1 of them" in shown
    refused = run("-C", repository, "apply")
    assert refused.code == 2
    assert "apply refuses, and changed nothing" in refused.err


def test_plan_names_the_fields_that_can_lose_digits_in_the_matrix(run, repository: Path) -> None:
    assert "late: as float32 in the matrix these can lose digits: temp (float64)" in run("-C", repository, "plan").out


def test_plan_sql_prints_what_makes_and_widens_histories(run, repository: Path, declare) -> None:
    created = run("-C", repository, "plan", "--sql", "--json").json["sql"]
    assert len(created) == 1
    assert created[0].startswith("CREATE TABLE")
    run("-C", repository, "apply")
    declare("schema=[", 'schema=[Field(name="wind", dtype=Int32), ')
    shown = run("-C", repository, "plan", "--sql").out
    assert "ALTER TABLE" in shown
    assert '"wind"' in shown


def test_problems_of_definitions_exit_2_with_place_and_way_out(run, repository: Path, declare) -> None:
    declare("hours=3", "hours=-3")
    done = run("-C", repository, "apply")
    assert done.code == 2
    assert "definitions/flights.py:5: feature view 'weather': ttl=-3h is not positive" in done.err


def test_an_apply_in_another_process_makes_this_one_busy_and_names_it(run, repository: Path) -> None:
    registry, state = open_state(repository / "data" / "registry.db", "shop")
    with applying(state, 0):
        done = run("-C", repository, "apply")
    registry.close()
    assert done.code == 4
    assert f"pid {os.getpid()} (apply)" in done.err


def test_the_command_after_a_killed_apply_finishes_it(run, repository: Path, caplog) -> None:
    command = [sys.executable, "-m", "featurestore.cli.main", "-C", str(repository), "apply"]
    environment = dict(os.environ) | {"FEATURESTORE_FAILPOINT": "apply.prepared"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 137
    planned = run("-C", repository, "plan")
    assert "finished apply 1, which was interrupted" in caplog.text
    assert planned.out.startswith("nothing to do")


# ------------------------------------------------------------------ list and describe

KINDS = ["entities", "sources", "feature-views", "feature-services", "runs", "applies"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_registry_lists_nothing_and_says_what_to_do(run, repository: Path, kind: str) -> None:
    assert run("-C", repository, "list", kind, "--json").json == []
    assert run("-C", repository, "list", kind).out.startswith(f"no {kind}; ")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("entities", ["airport string", "ops", "Where planes land."]),
        ("sources", ["file", "w.csv", "weather@1"]),
        ("feature-views", ["weather@1", "3h", "airport"]),
        ("feature-view", ["weather@1"]),
        ("feature-services", ["late", "weather@1"]),
        ("applies", ["done"]),
    ],
)
def test_list_shows_what_is_applied(run, repository: Path, kind: str, words: list[str]) -> None:
    run("-C", repository, "apply")
    shown = run("-C", repository, "list", kind).out
    assert all(word in shown for word in words), shown
    assert len(run("-C", repository, "list", kind, "--json").json) == 1


def test_describe_tells_everything_about_one(run, repository: Path) -> None:
    run("-C", repository, "apply")
    entity = run("-C", repository, "describe", "entity", "airport", "--json").json
    assert entity["feature_views"] == ["weather@1"]
    view = run("-C", repository, "describe", "feature-views", "weather", "--json").json
    assert (view["schema_id"], view["feature_services"], len(view["definition"])) == (1, ["late"], 64)
    service = run("-C", repository, "describe", "feature-service", "late", "--json").json
    assert service["columns"][0]["fill"] == 0.0
    assert len(service["signature"]) == 64
    applied = run("-C", repository, "describe", "apply", "1", "--json").json
    assert applied["state"] == "done"
    assert len(applied["steps"]) == 4
    assert applied["steps"][3]["signature"] == service["signature"]
    for kind, name in (("entity", "airport"), ("feature-view", "weather"), ("apply", "1")):
        assert name in run("-C", repository, "describe", kind, name).out


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("entity", "airprt", "no entity named 'airprt'; did you mean 'airport'?"),
        ("feature-view", "weather@7", "no feature view named 'weather@7'; did you mean 'weather@1'?"),
        ("feature-service", "x", "no feature service named 'x'"),
        ("run", "x", "no run named 'x'"),
        ("apply", "7", "no apply named '7'; known: 1"),
        ("apply", "x", "'x' is not the number of an apply"),
    ],
)
def test_an_unknown_name_is_told_the_nearest_one(run, repository: Path, kind: str, name: str, said: str) -> None:
    run("-C", repository, "apply")
    done = run("-C", repository, "describe", kind, name)
    assert done.code == 2
    assert said in done.err


# ------------------------------------------------------------------ teardown and config


def test_teardown_does_nothing_without_yes(run, repository: Path) -> None:
    run("-C", repository, "apply")
    asked = run("-C", repository, "teardown")
    assert asked.code == 2
    assert "remove feature view weather@1" in asked.err
    assert "pass --yes to do it" in asked.err
    assert len(run("-C", repository, "list", "feature-views", "--json").json) == 1


def test_teardown_with_yes_removes_everything_and_may_be_repeated(run, repository: Path) -> None:
    run("-C", repository, "apply")
    done = run("-C", repository, "teardown", "--yes", "--json").json
    assert [step["action"] for step in done["steps"]] == ["remove", "remove", "remove", "drop"]
    assert run("-C", repository, "list", "entities", "--json").json == []
    assert run("-C", repository, "teardown").out == "nothing to do: nothing is applied\n"
    assert run("-C", repository, "teardown", "--yes").code == 0
    assert run("-C", repository, "apply").code == 0


def test_config_prints_settings_that_can_be_copied_into_the_file(run, repository: Path) -> None:
    shown = run("-C", repository, "config").out
    (repository / "featurestore.toml").write_text(shown)
    assert run("-C", repository, "config").out == shown
    assert "[offline]" in shown
    assert 'path = "data/offline.duckdb"' in shown


def test_config_shows_what_the_environment_overrides(run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_SERVING_PORT", "7000")
    assert run("-C", repository, "config", "--json").json["serving"]["port"] == 7000


# ------------------------------------------------------------------ a snapshot for CI


def test_a_pull_request_is_checked_against_a_snapshot_without_registry_and_stores(
    run, repository: Path, declare, tmp_path: Path
) -> None:
    run("-C", repository, "apply")
    snapshot = tmp_path / "registry.json"
    assert run("-C", repository, "registry", "export", "--out", snapshot).code == 0
    assert run("-C", repository, "registry", "export").out == snapshot.read_text(encoding="utf-8")
    shutil.rmtree(repository / "data")
    against = ("plan", "--check", "--against", snapshot)

    assert run("-C", repository, *against).out.startswith("nothing to do")
    declare("schema=[", 'schema=[Field(name="wind", dtype=Int32), ')
    assert run("-C", repository, *against).code == 0
    declare("hours=3", "hours=4")
    broken = run("-C", repository, *against)
    assert broken.code == 1
    assert "feature view weather@1: ttl 3h -> 4h" in broken.out
    assert not (repository / "data").exists()


def test_a_removal_passes_the_check_with_the_flags_that_apply_asks_for(run, repository: Path, tmp_path: Path) -> None:
    run("-C", repository, "apply")
    run("-C", repository, "registry", "export", "--out", tmp_path / "r.json")
    (repository / "definitions" / "flights.py").write_text("")
    check = ("plan", "--check", "--against", tmp_path / "r.json", "--allow-empty")
    refused = run("-C", repository, *check, "--json")
    assert refused.code == 1
    assert [text.rpartition(" ")[2] for text in refused.json["refused"]] == ["--allow-in-use", "--allow-data-loss"]
    assert run("-C", repository, *check, "--allow-in-use", "--allow-data-loss").code == 0


def test_a_snapshot_that_cannot_be_used_exits_2(run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"format": "featurestore-registry/9"}')
    done = run("-C", repository, "plan", "--check", "--against", tmp_path / "r.json")
    assert done.code == 2
    assert "a snapshot of format 'featurestore-registry/9'" in done.err
    assert run("-C", repository, "registry", "export", "--out", tmp_path / "none" / "r.json").code == 2


# ------------------------------------------------------------------ what describe tells


def test_describe_shows_contract_owner_and_readers_in_words(run, repository: Path, declare) -> None:
    declare(
        "ttl=timedelta(hours=3),",
        'ttl=timedelta(hours=3), freshness=timedelta(hours=1), owner="ops", tier="critical", '
        'links={"runbook": "https://wiki.example.com/weather"}, on_violation="quarantine",',
    )
    run("-C", repository, "apply")
    registry, state = open_state(repository / "data" / "registry.db", "shop")
    signature = registry.signature("late")
    record_reader(state, "service", "late", ["weather@1"], service="late", signature=signature)
    record_reader(state, "model", "late_model", ["weather@1"], service="late", signature=signature, digest="d" * 64)
    counts = {"weather@1": {"loaded": {"read": 9, "quarantined": 2, "warned": 0}, "published": None, "error": None}}
    state.finish_run(state.start_run("materialize", ["weather@1"]).id, "succeeded", counts)
    registry.close()

    shown = run("-C", repository, "describe", "feature-view", "weather").out
    for words in (
        "links             runbook=https://wiki.example.com/weather",
        "ttl               3h",
        "temp   float64  <= 60.0",
        "sky    string   one of clear",
        "model            late_model",
        "never published",
    ):
        assert words in shown, shown
    view = run("-C", repository, "describe", "feature-view", "weather", "--json").json
    assert [(row["kind"], row["name"], row["seen_at"] is None) for row in view["consumers"]] == [
        ("feature service", "late", False),
        ("model", "late_model", False),
    ]
    assert [(row["read"], row["quarantined"]) for row in view["last_breaches"]] == [(9, 2)]
    assert view["quarantined"] == {"rows": 0, "pushed": 0, "breaches": {}}
    refused = repository / "refused.csv"
    refused.write_text("airport,t,temp,sky\nJFK,2024-01-01T00:00:00Z,99,clear\n")
    pushed = run("-C", repository, "push", "weather", refused)
    assert (pushed.code, "row 0: temp is above" in pushed.out) == (2, True), pushed.err
    assert run("-C", repository, "quarantine", "list", "--json").json["rows"] == 1
    view = run("-C", repository, "describe", "feature-view", "weather", "--json").json
    assert view["quarantined"] == {"rows": 1, "pushed": 1, "breaches": {"temp:le": 1}}
    assert view["freshness_record"]["broken"] is True
    service = run("-C", repository, "describe", "feature-service", "late", "--json").json
    assert [row["name"] for row in service["consumers"]] == ["late_model", "late"]
    assert run("-C", repository, "describe", "source", "w.csv", "--json").json["feature_views"] == ["weather@1"]
    assert run("-C", repository, "describe", "source", "weather", "--json").json["path"] == "w.csv"
    assert run("-C", repository, "describe", "source", "v.csv").code == 2
