"""What every command gets beside its own arguments, and the flags that stand before or after any command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from featurestore.repository import Repository

__all__ = ["Context", "Repository", "add_global_arguments"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every command gets beside its own arguments."""

    directory: Path
    json: bool
    now: str | None

    def repository(self) -> Repository:
        """The repository of `-C DIR`, or of the current folder."""
        return Repository.open(self.directory, self.now)


def add_global_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that stand before or after any command."""
    group = parser.add_argument_group("everywhere")
    group.add_argument("-C", dest="directory", metavar="DIR", default=".", help="the repository (default: here)")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout")
    group.add_argument(
        "--now",
        metavar="TIME",
        help="the time to take for now: ISO 8601 (stands still) or from:ISO (runs on); also FEATURESTORE_NOW",
    )
