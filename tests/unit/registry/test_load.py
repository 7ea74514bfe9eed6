"""Definitions are loaded by path, from one repository alone, and every problem of every file is reported at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from featurestore.errors import ConfigError, DefinitionError
from featurestore.registry.load import load_definitions

Write = Callable[[Mapping[str, str]], Path]

ENTITIES = """
from featurestore import Entity, String
airport = Entity(name="airport", join_keys={"airport": String})
"""
WEATHER = """
from featurestore import FeatureView, Field, FileSource, Float64
from definitions.flights.entities import airport
weather = FeatureView(
    name="weather",
    entities=[airport],
    schema=[Field(name="temp", dtype=Float64)],
    source=FileSource(path="w.csv", timestamp_field="t"),
)
"""
SERVICE = """
from featurestore import FeatureService
from definitions.flights.weather import weather
from definitions.flights.entities import airport
late = FeatureService(name="late", features=[weather])
"""
SOUND = {
    "definitions/flights/entities.py": ENTITIES,
    "definitions/flights/weather.py": WEATHER,
    "definitions/services.py": SERVICE,
}


def problems_of(repository: Path) -> list[tuple[str, int, str, str]]:
    with pytest.raises(DefinitionError) as caught:
        load_definitions(repository)
    return [(problem.path, problem.line, problem.what, problem.way_out) for problem in caught.value.problems]


# ------------------------------------------------------------------ what is found


def test_definitions_are_found_in_all_files_and_imported_objects_count_once(write_files: Write) -> None:
    found = load_definitions(write_files(SOUND))
    assert list(found.entities) == ["airport"]
    assert list(found.views) == ["weather@1"]
    assert list(found.services) == ["late"]
    assert found.views["weather@1"].entities[0] is found.entities["airport"]


def test_files_and_folders_beginning_with_an_underscore_or_a_dot_are_imported_only_by_others(
    write_files: Write,
) -> None:
    hidden = {
        "definitions/_shared/entities.py": ENTITIES,
        "definitions/.old/broken.py": "raise ValueError",
        "definitions/_draft.py": "raise ValueError",
        "definitions/weather.py": WEATHER.replace("definitions.flights", "definitions._shared"),
    }
    found = load_definitions(write_files(hidden))
    assert list(found.entities) == ["airport"]
    assert list(found.views) == ["weather@1"]


def test_an_entity_that_only_a_view_knows_is_found(write_files: Write) -> None:
    inline = WEATHER.replace("from definitions.flights.entities import airport", "").replace(
        "[airport]", '[Entity(name="airport", join_keys={"airport": String})]'
    )
    found = load_definitions(write_files({"definitions/w.py": "from featurestore import Entity, String\n" + inline}))
    assert list(found.entities) == ["airport"]


def test_a_second_repository_sees_nothing_of_the_first(tmp_path: Path) -> None:
    for name, key in (("first", "String"), ("second", "Int64")):
        for path, text in SOUND.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("String", key))
    before, search_path = set(sys.modules), list(sys.path)
    first, second = (load_definitions(tmp_path / name) for name in ("first", "second"))
    assert str(first.entities["airport"].join_keys["airport"]) == "string"
    assert str(second.entities["airport"].join_keys["airport"]) == "int64"
    assert not {name for name in set(sys.modules) - before if name.startswith("definitions")}
    assert sys.path == search_path


def test_a_changed_file_is_seen_even_within_the_same_second(write_files: Write) -> None:
    """Python's own cache of compiled files would believe a file of the same second and size."""
    for name in ("airport", "airfoil", "airline"):
        found = load_definitions(write_files({"definitions/e.py": ENTITIES.replace("airport", name)}))
        assert list(found.entities) == [name]


def test_modules_called_definitions_elsewhere_are_not_used_and_stay(write_files: Write, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "definitions" / "flights").mkdir(parents=True)
    (elsewhere / "definitions" / "__init__.py").write_text("")
    (elsewhere / "definitions" / "flights" / "extra.py").write_text("x = 1")
    sys.path.insert(0, str(elsewhere))
    try:
        import definitions  # type: ignore[import-not-found,unused-ignore]

        load_definitions(write_files(SOUND))
        assert sys.modules["definitions"] is definitions
        missing = SOUND | {"definitions/x.py": "from definitions.flights.extra import x"}
        assert problems_of(write_files(missing))[0][2] == (
            "ModuleNotFoundError: No module named 'definitions.flights.extra'"
        )
    finally:
        sys.path.remove(str(elsewhere))
        for name in [name for name in sys.modules if name.partition(".")[0] == "definitions"]:
            del sys.modules[name]


def test_modules_beside_the_definitions_can_be_imported(write_files: Write) -> None:
    files = {
        "shared_names.py": "NAME = 'airport'",
        "definitions/e.py": "from shared_names import NAME\n" + ENTITIES.replace('name="airport"', "name=NAME"),
    }
    assert list(load_definitions(write_files(files)).entities) == ["airport"]
    assert "shared_names" not in sys.modules


def test_packages_with_an_init_file_work_too(write_files: Write) -> None:
    files = {**SOUND, "definitions/__init__.py": "", "definitions/flights/__init__.py": "from .entities import airport"}
    assert list(load_definitions(write_files(files)).views) == ["weather@1"]


def test_another_folder_may_hold_the_definitions(write_files: Write) -> None:
    files = {path.replace("definitions/", "features/"): text for path, text in SOUND.items()}
    files = {path: text.replace("definitions.", "features.") for path, text in files.items()}
    assert list(load_definitions(write_files(files), "features").views) == ["weather@1"]


def test_what_definitions_print_goes_to_stderr(write_files: Write, capsys: pytest.CaptureFixture[str]) -> None:
    load_definitions(write_files({"definitions/e.py": "print('hello')" + ENTITIES}))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_missing_folder_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder definitions in .*; make it"):
        load_definitions(tmp_path)


# ------------------------------------------------------------------ what goes wrong


def test_every_problem_of_every_file_is_reported_in_order_of_file_and_line(write_files: Write) -> None:
    files = {
        **SOUND,
        "definitions/a_syntax.py": "x = 1\ndef broken(:\n",
        "definitions/b_import.py": "\nimport no_such_module_anywhere\n",
        "definitions/c_raises.py": "def f():\n    raise RuntimeError('boom')\nf()\n",
        "definitions/d_exits.py": "import sys\nsys.exit(3)\n",
        "definitions/e_keyword.py": """
            from featurestore import Entity, String
            x = 1
            e = Entity(name="e", join_key={"e": String})
            """,
        "definitions/f_rules.py": """
            from featurestore import Entity, Float64
            bad_name = Entity(name="bad name", join_keys={"k": Float64})
            """,
    }
    found = problems_of(write_files(files))
    assert [(path, line) for path, line, _, _ in found] == [
        ("definitions/a_syntax.py", 2),
        ("definitions/b_import.py", 2),
        ("definitions/c_raises.py", 2),
        ("definitions/d_exits.py", 2),
        ("definitions/e_keyword.py", 4),
        ("definitions/f_rules.py", 3),
        ("definitions/f_rules.py", 3),
    ]
    assert [what for _, _, what, _ in found][:5] == [
        "SyntaxError: invalid syntax",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        "RuntimeError: boom",
        "the file ends the process (SystemExit: 3)",
        "Entity has no argument 'join_key'",
    ]
    assert "did you mean 'join_keys'?" in found[4][3]
    assert all(way_out for _, _, _, way_out in found)


def test_a_fault_in_a_file_that_others_import_is_reported_once(write_files: Write) -> None:
    files = SOUND | {"definitions/flights/entities.py": ENTITIES + "airport.nothing\n"}
    found = problems_of(write_files(files))
    assert [(path, line) for path, line, _, _ in found] == [("definitions/flights/entities.py", 4)]


def test_an_unknown_view_is_no_news_while_some_file_does_not_load(write_files: Write) -> None:
    """The view may well be in that file."""
    service = """
        from dataclasses import replace
        from featurestore import FeatureService
        from definitions.flights.weather import weather
        hidden = [replace(weather, name="other")]
        late = FeatureService(name="late", features=[hidden[0][["temp"]]])
        """
    files = {**SOUND, "definitions/services.py": service, "definitions/other.py": "raise ValueError('x')"}
    assert [path for path, *_ in problems_of(write_files(files))] == ["definitions/other.py"]
    del files["definitions/other.py"]
    (found,) = problems_of(write_files(files | {"definitions/other.py": ""}))
    assert "no feature view 'other' is declared at the top of a definitions file" in found[2]


@pytest.mark.parametrize(
    ("text", "what", "way_out"),
    [
        ('Field(name="x", dtype=Int32, nulable=False)', "Field has no argument 'nulable'", "did you mean 'nullable'?"),
        ('Field("x", Int32)', "Field takes keyword arguments only", 'write Field(name="...", ...)'),
        ('Field(name="x")', "Field needs 'dtype'", "add what is missing"),
        ("FileSource()", "FileSource needs 'path' and 'timestamp_field'", "add what is missing"),
        ('FeatureView(name="x", ttll=1)', "FeatureView has no argument 'ttll'", "did you mean 'ttl'?"),
    ],
)
def test_a_wrong_argument_is_named_with_its_line_and_the_nearest_one(
    write_files: Write, text: str, what: str, way_out: str
) -> None:
    repository = write_files({"definitions/a.py": f"from featurestore import *\n\nx = {text}\n"})
    ((path, line, said, out),) = problems_of(repository)
    assert (path, line, said) == ("definitions/a.py", 3, what)
    assert way_out in out


def test_an_alias_of_a_field_that_is_not_chosen_is_named(write_files: Write) -> None:
    service = SERVICE.replace("features=[weather]", 'features=[weather[["temp"]].alias(tmp="t")]')
    ((path, line, what, _),) = problems_of(write_files({**SOUND, "definitions/services.py": service}))
    assert (path, line) == ("definitions/services.py", 5)
    assert "weather selects no field 'tmp'; selected: temp" in what


def test_file_names_that_cannot_be_modules_are_reported(write_files: Write) -> None:
    files = {**SOUND, "definitions/a.b.py": "", "definitions/flights.py": ""}
    assert [(path, what) for path, _, what, _ in problems_of(write_files(files))] == [
        ("definitions/a.b.py", "a.b.py cannot be imported: a name with a dot is no module name"),
        ("definitions/flights.py", "flights.py and the folder flights/ are the same module"),
    ]


def test_one_problem_reads_as_one_sentence_with_place_and_way_out(write_files: Write) -> None:
    repository = write_files({"definitions/a.py": ENTITIES.replace("String}", "Float64}").replace("String", "Float64")})
    with pytest.raises(DefinitionError) as caught:
        load_definitions(repository)
    assert str(caught.value) == (
        "1 problem in the definitions:\n"
        "  definitions/a.py:3: entity 'airport': join key 'airport' is a float64; "
        "a join key is one of bool, int32, int64, string, bytes, date"
    )
