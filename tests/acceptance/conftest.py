"""What the acceptance tests share: the command, and a folder that is prepared once for a module and copied per test."""

from __future__ import annotations

from tests.fix_cli import cli, inside

__all__ = ["cli", "inside"]
