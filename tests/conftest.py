"""Servers that tests of every folder share."""

from __future__ import annotations

import pytest

from tests.fix_postgres import postgres, postgres_server, postgres_shared
from tests.fix_redis import redis_farm


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
