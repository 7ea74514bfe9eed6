"""Servers that tests of every folder share."""

from __future__ import annotations

import signal

import pytest

from tests import fix_properties  # noqa: F401 - sets the bounds of properties
from tests.fix_postgres import postgres, postgres_server, postgres_shared
from tests.fix_redis import redis_farm


def pytest_configure() -> None:
    """Children can be interrupted, also where a shell that runs the tests in the background has that ignored.

    Set here because they inherit it: a `preexec_fn` for each would fork a process in which gRPC has threads, and its
    handlers then start a poller in the child, which aborts when the child closes what it does not need.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes of their own come first, whatever the order else: they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/faults/", "tests/acceptance/")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where tests of faults killed jobs, and how often."""
    for report in terminalreporter.getreports("passed"):
        if kills := [f"{name} {count}" for name, count in report.user_properties if name.startswith("kills at ")]:
            terminalreporter.write_line(f"{report.nodeid}: {', '.join(kills)}")


__all__ = ["postgres", "postgres_server", "postgres_shared", "redis_farm"]
