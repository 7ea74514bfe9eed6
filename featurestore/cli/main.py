"""Entry point of the command: finds the command in the table, runs it, turns errors into exit codes and words.

Exit codes: 0 done; 1 a check found something; 2 the user's input is wrong; 3 a store or service cannot be used; 4 busy;
70 a defect of ours (the traceback is shown when FEATURESTORE_DEBUG is set); 130 interrupted; 141 the reader of our
output went away.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from featurestore import __version__
from featurestore.cli.commands import COMMANDS
from featurestore.cli.output import print_json
from featurestore.cli.repository import Context, add_global_arguments
from featurestore.errors import (
    ConfigError,
    ContractViolation,
    DefinitionError,
    EvolutionError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    ParityError,
    ServingError,
    SourceError,
    StoreBusy,
    StoreError,
    TooManyBreaches,
    suggest,
)

DEFECT, INTERRUPTED, NO_READER = 70, 130, 141

#: The nearest class in an error's ancestry decides.
EXIT_CODES: dict[type[FeatureStoreError], int] = {
    ParityError: 1,
    TooManyBreaches: 1,
    ConfigError: 2,
    ContractViolation: 2,
    DefinitionError: 2,
    EvolutionError: 2,
    InputError: 2,
    NotFoundError: 2,
    SourceError: 2,
    ServingError: 3,
    StoreError: 3,
    StoreBusy: 4,
}


class UsageError(InputError):
    """The command line cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that `--json` holds for mistyped commands too."""

    def error(self, message: str) -> NoReturn:
        """A UsageError that ends with the way out."""
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code (`--help` and `--version` raise SystemExit, as argparse does)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Arrow reads this when it is first imported. Its own pools reserve gigabytes of address space; the system's does
    # not, and a load stays within a limit of 2 GiB.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        code = _guarded(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER


def _guarded(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    with _remembering_ctrl_c() as ctrl_c:
        try:
            return _run(arguments)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            return _report_interruption(as_json)
        except Exception as error:  # noqa: BLE001 - the last resort: a defect gets an exit code and a short message
            # An engine that was interrupted says so in words of its own.
            return _report_interruption(as_json) if ctrl_c.is_set() else _report_error(error, as_json)


@contextmanager
def _remembering_ctrl_c() -> Iterator[threading.Event]:
    """An event that is set once Ctrl-C was pressed, beside the KeyboardInterrupt that Python raises."""
    pressed = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, remember)
    try:
        yield pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _report_interruption(as_json: bool) -> int:
    message = "interrupted; what was begun is finished or resumed by the next command"
    return _report(KeyboardInterrupt(message), INTERRUPTED, as_json)


def _report_error(error: Exception, as_json: bool) -> int:
    match error:
        case FeatureStoreError():
            code = exit_code(error)
        case OSError():
            code = _os_error_code(error)
        case _:
            code = DEFECT
    if code == DEFECT and "FEATURESTORE_DEBUG" in os.environ:
        traceback.print_exception(error)
    return _report(error, code, as_json)


def exit_code(error: FeatureStoreError) -> int:
    """The exit code of an error of ours."""
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), DEFECT)


def _os_error_code(error: OSError) -> int:
    """A full disk is a store's fault; any other file that cannot be used was named by the user."""
    return EXIT_CODES[StoreError] if error.errno in (errno.ENOSPC, errno.EDQUOT) else EXIT_CODES[InputError]


def _run(arguments: list[str]) -> int:
    place = _command_place(arguments)
    if place is None:
        _top_parser().parse_args(arguments)
        raise UsageError("no command given; see featurestore --help")
    name = arguments[place]
    if name not in COMMANDS:
        raise UsageError(f"no command named {name!r}{suggest(name, list(COMMANDS))}")
    module = import_module(COMMANDS[name].module)
    parser = Parser(prog=f"featurestore {name}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    add_global_arguments(parser)
    parsed = parser.parse_args(arguments[:place] + arguments[place + 1 :])
    now = parsed.now if parsed.now is not None else os.environ.get("FEATURESTORE_NOW")
    context = Context(directory=Path(parsed.directory), json=parsed.json, now=now)
    return int(module.run(parsed, context))


def _command_place(arguments: Sequence[str]) -> int | None:
    """Where the command stands: the first word that is neither a flag nor the value of a global flag."""
    place = 0
    while place < len(arguments):
        if not arguments[place].startswith("-"):
            return place
        place += 2 if arguments[place] in ("-C", "--now") else 1
    return None


def _top_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="featurestore",
        usage="featurestore [-C DIR] [--json] [--now TIME] COMMAND ...",
        description="A feature store whose offline and online answers agree bit for bit.",
        epilog=_commands_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_global_arguments(parser)
    parser.add_argument("--version", action="version", version=f"featurestore {__version__}")
    return parser


def _commands_text() -> str:
    width = max(map(len, COMMANDS))
    lines: list[str] = []
    for group, members in groupby(COMMANDS.items(), key=lambda item: item[1].group):
        lines += [f"{group}:", *(f"  {name.ljust(width)}  {command.help}" for name, command in members), ""]
    return "\n".join([*lines, "featurestore COMMAND --help tells more about one of them."])


def _report(error: BaseException, code: int, as_json: bool) -> int:
    message = str(error) if code != DEFECT else f"a defect of featurestore: {type(error).__name__}: {error}"
    if code == DEFECT and "FEATURESTORE_DEBUG" not in os.environ:
        message += "; please report it, with the traceback that FEATURESTORE_DEBUG=1 shows"
    if as_json:
        print_json({"error": {"kind": type(error).__name__, "message": message, "exit_code": code} | _facts(error)})
    else:
        print(f"featurestore: {message}", file=sys.stderr)
    return code


def _facts(error: BaseException) -> dict[str, Any]:
    if isinstance(error, DefinitionError):
        problems = [
            {"path": problem.path, "line": problem.line, "what": problem.what, "way_out": problem.way_out}
            for problem in error.problems
        ]
        return {"problems": problems}
    return {"retryable": error.retryable} if isinstance(error, FeatureStoreError) else {}


if __name__ == "__main__":
    sys.exit(main())
