"""The command line itself: flags, exit codes, errors for people and for programs."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from featurestore import errors
from featurestore.cli import commands
from featurestore.cli.commands import COMMANDS, Command
from featurestore.cli.main import EXIT_CODES, exit_code, main


def all_errors(
    kind: type[errors.FeatureStoreError] = errors.FeatureStoreError,
) -> Iterator[type[errors.FeatureStoreError]]:
    for child in kind.__subclasses__():
        if child.__module__ == "featurestore.errors":
            yield child
            yield from all_errors(child)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """A command `fail` that raises what it is given."""

    def install(error: BaseException) -> None:
        module: Any = ModuleType("failing_command")
        module.__doc__ = "Fails."
        module.add_arguments = lambda parser: None

        def run(args: object, context: object) -> int:
            raise error

        module.run = run
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(commands.COMMANDS, "fail", Command("failing_command", "fail", "Tests"))

    return install


# ------------------------------------------------------------------ the table of commands


def test_every_command_of_the_table_exists_and_says_what_it_is() -> None:
    for name, command in COMMANDS.items():
        module = import_module(command.module)
        assert callable(module.run), name
        assert callable(module.add_arguments), name
        assert module.__doc__, name


def test_help_lists_every_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = re.findall(r"^  ([a-z-]+)  +\S", capsys.readouterr().out, re.MULTILINE)
    assert [name for name in listed if not name.startswith("-")] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_names_the_global_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("-C DIR", "--json", "--now TIME"))


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("featurestore 0.")


# ------------------------------------------------------------------ flags


def test_global_flags_stand_before_or_after_the_command(run, repository: Path) -> None:
    orders: list[list[str | Path]] = [
        ["-C", repository, "--json", "config"],
        ["config", "--json", "-C", repository],
        ["--json", "config", "-C", repository],
        ["-C", repository, "config", "--json"],
        [f"-C{repository}", "config", "--json", "--now=2024-01-01T00:00:00Z"],
        ["--now", "2024-01-01T00:00:00Z", "--json", "-C", repository, "config"],
    ]
    for order in orders:
        assert run(*order).json["project"] == "shop"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command given; see featurestore --help"),
        (["aply"], "no command named 'aply'; did you mean 'apply'?"),
        (["apply", "--alow-empty"], "unrecognized arguments: --alow-empty; see featurestore apply --help"),
        (["apply", "--allow"], "unrecognized arguments: --allow"),
        (["list", "things"], "invalid choice: 'things'"),
        (["list"], "the following arguments are required: KIND"),
        (["--frob"], "unrecognized arguments: --frob"),
        (["-C"], "expected one argument"),
    ],
)
def test_a_mistyped_command_line_is_input_that_is_wrong(run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_a_time_that_is_none_is_refused(run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'yesterday' is not a time" in run("-C", repository, "plan", "--now", "yesterday").err
    assert "has no time zone" in run("-C", repository, "plan", "--now", "2024-01-01T00:00:00").err
    monkeypatch.setenv("FEATURESTORE_NOW", "from:never")
    assert run("-C", repository, "plan").code == 2


# ------------------------------------------------------------------ exit codes


def test_every_error_has_an_exit_code_of_its_own_class_or_a_parent() -> None:
    assert {kind.__name__: exit_code(kind.__new__(kind)) for kind in all_errors()} == {
        "DefinitionError": 2,
        "ConfigError": 2,
        "InputError": 2,
        "NotFoundError": 2,
        "EvolutionError": 2,
        "ContractViolation": 2,
        "TooManyBreaches": 1,
        "SourceError": 2,
        "ParityError": 1,
        "StoreError": 3,
        "StoreUnreachable": 3,
        "StoreBusy": 4,
        "LeaseLost": 4,
        "StoreFull": 3,
        "ServingError": 3,
        "AccessError": 3,
        "Unauthenticated": 3,
        "PermissionDenied": 3,
        "IssuerUnreachable": 3,
        "ModelError": 3,
        "ModelUnavailable": 3,
        "ModelFailed": 3,
        "ModelOutOfMemory": 3,
    }
    assert set(EXIT_CODES.values()) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StoreBusy("held by ana"), 4),
        (errors.StoreFull("full"), 3),
        (errors.ParityError("differ"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "out.csv"), 2),
        (ZeroDivisionError("division by zero"), 70),
    ],
)
def test_errors_become_exit_codes(error: BaseException, code: int, run, raising) -> None:
    raising(error)
    assert run("fail").code == code


def test_an_error_is_one_line_on_stderr_and_nothing_on_stdout(run, raising) -> None:
    raising(errors.StoreBusy("held by ana; wait"))
    done = run("fail")
    assert (done.out, done.err) == ("", "featurestore: held by ana; wait\n")


def test_with_json_an_error_is_one_document_on_stdout(run, raising) -> None:
    raising(errors.StoreBusy("held by ana; wait"))
    done = run("fail", "--json")
    assert done.json == {
        "error": {"kind": "StoreBusy", "message": "held by ana; wait", "exit_code": 4, "retryable": True}
    }
    assert done.err == ""


def test_with_json_a_mistyped_command_is_a_document_too(run) -> None:
    assert run("--json", "aply").json["error"]["kind"] == "UsageError"


def test_problems_of_definitions_are_told_one_by_one_in_json(run, repository: Path) -> None:
    (repository / "definitions" / "x.py").write_text("\nraise ValueError('x')")
    document = run("-C", repository, "plan", "--json").json
    assert document["error"]["problems"] == [
        {
            "path": "definitions/x.py",
            "line": 2,
            "what": "ValueError: x",
            "way_out": "nothing of this file was loaded; mend this line",
        }
    ]


def test_a_defect_shows_its_traceback_only_when_asked(run, raising, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError("division by zero"))
    plain = run("fail")
    assert "a defect of featurestore: ZeroDivisionError: division by zero; please report it" in plain.err
    assert "Traceback" not in plain.err
    monkeypatch.setenv("FEATURESTORE_DEBUG", "1")
    assert "Traceback" in run("fail").err


# ------------------------------------------------------------------ as a process


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "featurestore.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


def test_output_into_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "featurestore.cli.main", "--json", "frob"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 141


def test_the_exit_code_and_the_document_reach_the_shell(tmp_path: Path) -> None:
    process = start("config", "--json", "-C", str(tmp_path))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert json.loads(out)["error"]["kind"] == "ConfigError"
