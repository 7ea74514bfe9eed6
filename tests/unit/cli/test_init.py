"""`init` makes a repository that works, and touches nothing that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.cli.commands import COMMANDS
from featurestore.cli.init import project_name
from featurestore.registry.load import load_definitions


def test_the_minimal_repository_can_be_applied_at_once(run, tmp_path: Path) -> None:
    done = run("init", tmp_path / "my-shop")
    assert done.code == 0
    assert "next: cd" in done.out
    root = tmp_path / "my-shop"
    assert sorted(path.name for path in root.iterdir()) == [
        ".gitignore",
        "README.md",
        "definitions",
        "featurestore.toml",
        "sources",
        "spine.csv",
    ]
    assert run("-C", root, "config", "--json").json["project"] == "my_shop"
    assert run("-C", root, "apply").code == 0
    assert run("-C", root, "plan", "--unapplied").code == 0
    assert (root / "data" / "registry.db").is_file()
    assert "/data/" in (root / ".gitignore").read_text()


def test_every_command_of_the_minimal_readme_is_built(run, tmp_path: Path) -> None:
    run("init", tmp_path / "shop")
    readme = (tmp_path / "shop" / "README.md").read_text()
    commands = [line.split()[1] for line in readme.splitlines() if line.startswith("featurestore ")]
    assert commands[:2] == ["plan", "apply"]
    assert set(commands) <= set(COMMANDS)


def test_the_flights_repository_holds_sound_definitions(run, tmp_path: Path) -> None:
    assert run("init", tmp_path / "flights", "--template", "flights").code == 0
    found = load_definitions(tmp_path / "flights")
    assert len(found.views) >= 4
    assert found.services
    assert not list(tmp_path.glob("**/__pycache__"))


def test_a_folder_that_holds_anything_is_refused_and_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = run("init", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "is not empty; name a new folder" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert run("init", tmp_path / "notes.txt").code == 2


def test_an_empty_folder_and_missing_parents_are_fine(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("init", tmp_path / "empty").code == 0
    assert run("init", tmp_path / "a" / "b").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_json_tells_what_was_made(run, tmp_path: Path) -> None:
    document = run("init", tmp_path / "shop", "--json").json
    assert (document["project"], document["template"]) == ("shop", "minimal")
    assert "definitions/stations.py" in document["files"]


@pytest.mark.parametrize(
    ("folder", "project"),
    [("shop", "shop"), ("my-shop 2", "my_shop_2"), ("2shop", "project_2shop"), ("é", "project"), ("x" * 80, "x" * 63)],
)
def test_a_folder_name_becomes_a_project_name(folder: str, project: str) -> None:
    assert project_name(folder) == project
